"""What a search will take, and the checks before it starts."""
