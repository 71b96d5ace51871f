"""The training loss of a batch: forward pass in a format, losses in float32."""

from __future__ import annotations

import torch
from torch import nn

from cdn_tune.config import Experiment
from cdn_tune.data.dataset import Batch
from cdn_tune.model.cdn.loss import attention_loss, moment_loss
from cdn_tune.moments.temporal_map import iou_maps
from cdn_tune.training.step.precision import autocast


def losses(model: nn.Module, batch: Batch, experiment: Experiment, dtype: torch.dtype) -> torch.Tensor:
    """Returns loss, moment loss and attention loss of some queries, means over them, float32 [3].

    Args:
        model: A CDN, possibly wrapped.
        batch: The queries, on the model's device.
        experiment: Whose loss it is: moment loss + β attention loss.
        dtype: Format of the forward pass.
    """
    config = experiment.loss
    targets = iou_maps(batch.durations, batch.moments, experiment.model.clips)  # [B, S, S]
    with autocast(batch.visual.device, dtype):
        output = model(batch.visual, batch.words, batch.word_mask)
    moment = moment_loss(output.logits.float(), targets.float(), output.mask, config.min_iou, config.max_iou)
    if output.attention is None:
        attention = moment.new_zeros(())
    else:
        attention = attention_loss(output.attention.float(), config.attention_lambda)
    return torch.stack([moment + config.attention_beta * attention, moment, attention])
