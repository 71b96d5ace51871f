"""What a person sees in the terminal: tables, progress, and errors of one line."""
