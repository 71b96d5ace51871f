"""A search simulated: its real decisions over recorded learning curves, in seconds instead of hours."""
