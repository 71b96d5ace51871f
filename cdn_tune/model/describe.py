"""What a model amounts to, without building it."""

from __future__ import annotations

import torch

from cdn_tune.config import ModelConfig
from cdn_tune.model.cdn.network import CDN


def count_parameters(config: ModelConfig, feature_size: int, word_size: int) -> int:
    """Returns how many parameters a CDN has; nothing is allocated.

    Args:
        config: What it is made of.
        feature_size: Size of a frame feature D.
        word_size: Size of a word vector W.
    """
    with torch.device("meta"):
        model = CDN(config, feature_size, word_size)
    return sum(parameter.numel() for parameter in model.parameters())
