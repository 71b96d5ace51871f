"""Planted data: annotations, features and word vectors with known answers, in the real layouts, always labelled."""

from cdn_tune.data.planted.plant import Planted, plant

__all__ = ["Planted", "plant"]
