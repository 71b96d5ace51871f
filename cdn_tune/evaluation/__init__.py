"""The final word on a run: its best checkpoint on the test split, once."""
