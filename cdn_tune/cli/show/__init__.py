"""What several commands print: output, tables, progress."""
