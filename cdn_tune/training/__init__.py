"""One trial: epochs, optimiser, precision, checkpoints, evaluation of a split. Knows nothing of Ray."""
