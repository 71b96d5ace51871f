"""One trial: epochs, optimiser, precision, checkpoints, evaluation of a split. Independent of Ray."""
