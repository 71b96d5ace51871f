"""Evaluation of a split during training: scores, metrics per query, pictures for TensorBoard."""
