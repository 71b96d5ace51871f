"""Which way of multiplying mixed kernels is the fastest on a card: checked, measured once, kept."""
