"""Annotations, feature store, vocabulary, dataset, batches, planted data."""
