"""One optimisation step: losses, micro-batches, optimiser, precision, process group."""
