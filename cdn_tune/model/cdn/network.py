"""CDN, a network that scores the moments of a video for a query (Cross-modal Dynamic Networks, IEEE TMM).

Shape letters: B batch, S clips, H hidden.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from cdn_tune.model.cdn.clip_pool import AttentionPool
from cdn_tune.model.cdn.config import CDNConfig, CDNLoss
from cdn_tune.model.cdn.dynamic_conv import DynamicConv2d
from cdn_tune.model.cdn.loss import attention_loss, moment_loss
from cdn_tune.model.cdn.map_stack import MapStack
from cdn_tune.model.cdn.memory import working_memory
from cdn_tune.model.family import Batch, Losses, Memory
from cdn_tune.model.kernels.products import MixedShape
from cdn_tune.model.layers.clip_pool import MeanPool
from cdn_tune.model.layers.fusion import Fusion
from cdn_tune.model.layers.map_model import FusedMapModel, MapOutput, build_proposals
from cdn_tune.model.layers.query import QueryEncoder
from cdn_tune.moments.temporal_map import iou_maps, valid_mask


class CDN(FusedMapModel):
    """The whole network, for frame features of size D and word vectors of size W."""

    config: CDNConfig
    loss_config: CDNLoss
    loss_names = ("moment_loss", "attention_loss")
    rounding = "share"  # as published

    def __init__(self, config: CDNConfig, feature_size: int, word_size: int, loss: CDNLoss | None = None) -> None:
        super().__init__()
        hidden, clips, query = config.hidden, config.clips, config.query
        self.config, self.feature_size, self.word_size = config, feature_size, word_size
        self.loss_config = loss or CDNLoss()
        self.reads_padding = query.read_padding
        self.query = QueryEncoder(word_size, hidden, query.layers, query.bidirectional, query.read_padding)
        self.clip_pool: nn.Module = (
            AttentionPool(feature_size, hidden, clips, config.attention_steps, config.attention_size)
            if config.clip_pool == "attention"
            else MeanPool(feature_size, hidden, clips)
        )
        self.proposals = build_proposals(config)
        self.fusion = Fusion(hidden)
        finest, *coarser = (valid_mask(*each) for each in config.maps)
        self.map = MapStack(config.map, hidden, hidden, finest, coarser, config.gates)
        self.score = nn.Conv2d(hidden, 1, 1)
        self.add_switches()

    def convolve(self, fused: Tensor, query: Tensor, mask: Tensor, scale: int) -> Tensor:
        """Convolves fused maps [B, H, S, S] with kernels that depend on their queries [B, H]."""
        moments: Tensor = self.map(fused, query, mask, scale)
        return moments

    def loss(self, output: MapOutput, batch: Batch) -> Losses:
        """Returns moment loss + β attention loss, which is 0 with mean pooling, + the losses of switches."""
        config = self.loss_config
        moment = output.logits.new_zeros((), dtype=torch.float32)
        for each in output.maps:
            targets = iou_maps(batch.durations, batch.all_moments, each.clips).float()  # [B, S, S]
            moment = moment + moment_loss(each.logits.float(), targets, each.mask, config.min_iou, config.max_iou)
        if output.attention is None:
            attention = moment.new_zeros(())
        else:
            attention = attention_loss(output.attention.float(), config.attention_lambda)
        parts = {"moment_loss": moment, "attention_loss": attention}
        switches = self.switch_losses(output, batch.durations, batch.all_moments)
        return Losses(moment + config.attention_beta * attention + switches.total, {**parts, **switches.parts})

    @property
    def mixed_shapes(self) -> tuple[MixedShape, ...]:
        """The shapes of its dynamic layers on maps of every scale."""
        return tuple(
            dict.fromkeys(layer.shape(size) for layer in self._dynamic_layers() for size, _ in self.config.maps)
        )

    def use_products(self, products: Mapping[MixedShape, str]) -> None:
        """Sets how a GPU multiplies in its dynamic layers."""
        for layer in self._dynamic_layers():
            sizes = [size for size, _ in self.config.maps if layer.shape(size) in products]
            layer.products = {size: products[layer.shape(size)] for size in sizes}

    def _dynamic_layers(self) -> list[DynamicConv2d]:
        return [layer for layer in self.map.convs if isinstance(layer, DynamicConv2d)]

    def memory(self, frames: int, batch: int, dtype: torch.dtype, device: torch.device) -> Memory:
        """Returns an estimate of training's working memory."""
        return working_memory(self.config, self.feature_size, frames, batch, dtype, device)
