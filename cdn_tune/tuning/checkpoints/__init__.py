"""Which checkpoints of a search are kept."""
