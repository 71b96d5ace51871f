"""A model family, a sampler, a stopping rule and a metric for cdn-tune, registered by entry points."""
