"""2D-TAN, a network that scores the moments of a video for a query (arXiv 1912.03590).

Shape letters: B batch, S clips, H hidden.
"""

import torch
from torch import Tensor, nn

from cdn_tune.model.family import Batch, Losses, Memory
from cdn_tune.model.layers.clip_pool import MeanPool
from cdn_tune.model.layers.fusion import Fusion
from cdn_tune.model.layers.loss import moment_loss
from cdn_tune.model.layers.map_convs import MapConvs
from cdn_tune.model.layers.map_model import FusedMapModel, MapOutput, build_proposals, map_memory, switch_floats
from cdn_tune.model.layers.query import QueryEncoder
from cdn_tune.model.tan.config import TANConfig, TANLoss
from cdn_tune.moments.temporal_map import iou_maps, valid_mask


class TAN(FusedMapModel):
    """The whole network, for frame features of size D and word vectors of size W."""

    config: TANConfig
    loss_config: TANLoss
    loss_names = ("moment_loss",)

    def __init__(self, config: TANConfig, feature_size: int, word_size: int, loss: TANLoss | None = None) -> None:
        super().__init__()
        hidden, clips, query = config.hidden, config.clips, config.query
        self.config, self.feature_size, self.word_size = config, feature_size, word_size
        self.loss_config = loss or TANLoss()
        self.reads_padding = query.bidirectional and query.read_padding
        self.rounding = "none" if config.overlaps == "exact" else "share"
        width = query.hidden // 2 if query.bidirectional else query.hidden
        self.query = QueryEncoder(word_size, width, query.layers, query.bidirectional, query.read_padding, join=False)
        self.clip_pool = MeanPool(feature_size, hidden, clips)
        self.proposals = build_proposals(config)
        self.fusion = Fusion(hidden, query.hidden)
        finest, *coarser = (valid_mask(*each) for each in config.maps)
        self.map = MapConvs(hidden, config.map.kernel_sizes, finest, coarser=coarser, gates=config.gates)
        self.score = nn.Conv2d(hidden, 1, 1)
        self.add_switches()

    def convolve(self, fused: Tensor, query: Tensor, mask: Tensor, scale: int) -> Tensor:  # noqa: ARG002
        """Convolves fused maps [B, H, S, S], whatever the query."""
        moments: Tensor = self.map(fused, scale)
        return moments

    def loss(self, output: MapOutput, batch: Batch) -> Losses:
        """Returns the moment loss + the losses of switches."""
        moment = output.logits.new_zeros((), dtype=torch.float32)
        for each in output.maps:
            moment = moment + self.losses(each, iou_maps(batch.durations, batch.moments, each.clips).float()).total
        switches = self.switch_losses(output, batch.durations, batch.moments[:, None])
        return Losses(moment + switches.total, {"moment_loss": moment, **switches.parts})

    def losses(self, output: MapOutput, ious: Tensor) -> Losses:
        """Returns the moment loss of one map, given the IoU of every cell with each query's moment [B, S, S]."""
        loss = self.loss_config
        moment = moment_loss(
            output.logits.float(),
            ious,
            output.mask,
            loss.min_iou,
            loss.max_iou,
            bias=loss.bias,
            saturating=loss.saturating,
        )
        return Losses(moment, {"moment_loss": moment})

    def memory(self, frames: int, batch: int, dtype: torch.dtype, device: torch.device) -> Memory:  # noqa: ARG002
        """Returns an estimate of training's working memory."""
        config = self.config
        return map_memory(config, config.map.kernel_sizes, self.feature_size, frames, switch_floats(config))
