"""cdn-tune: Ray-distributed hyperparameter search for CDN video moment retrieval."""

__version__ = "0.1.0"
