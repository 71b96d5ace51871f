"""`cdn-tune search`: starts and stops a search, and shows its state."""
