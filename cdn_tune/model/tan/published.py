"""2D-TAN as published: its names, its settings, its inputs and outputs."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from cdn_tune.config import DataConfig, ModelConfig
from cdn_tune.errors import CheckpointError, ConfigError
from cdn_tune.model.layers.map_model import MapOutput
from cdn_tune.model.tan.config import TANConfig, TANLoss
from cdn_tune.model.tan.network import TAN
from cdn_tune.model.weights import Arrays, Published, as_tensors, build_config, load_published, recorded_inputs, setting

_PROPOSALS = {"SparsePropMaxPool": "pool", "SparsePropConv": "conv"}
_LSTM = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")


class PublishedTAN(Published):
    """2D-TAN, by the names of the recorded arrays.

    Args:
        model: The network.
        threshold: IoU above which suppression drops a moment.
        limit: Moments that are kept.
    """

    def __init__(self, model: TAN, threshold: float, limit: int) -> None:
        super().__init__()
        self.model, self.threshold, self.limit = model, threshold, limit

    def raw(self, inputs: Arrays) -> dict[str, Tensor]:
        """Returns ``logits``, ``mask`` and ``scores``, each [B, 1, S, S]."""
        output = self._output(as_tensors(inputs))
        mask = output.mask.to(output.logits.dtype).expand_as(output.logits)
        scores = torch.sigmoid(output.logits) * mask
        return {"logits": output.logits[:, None], "mask": mask[:, None], "scores": scores[:, None]}

    def losses(self, inputs: Arrays) -> dict[str, Tensor]:
        """Returns ``bce``, the only part, and ``total``."""
        given = as_tensors(inputs)
        total, parts = self.model.losses(self._output(given), given["iou_map"][:, 0])
        return {"bce": parts["moment_loss"], "total": total}

    @torch.no_grad()
    def predict(self, index: int, arrays: Arrays) -> list[tuple[Tensor, Tensor]]:
        """Returns the best moments of a recorded query, after suppression."""
        given = recorded_inputs(arrays)
        found = self.model.spans(self._output(given), given["durations"])
        moments, scores = self.model.suppress(found, self.limit, self.threshold)
        kept = ~scores[index].isnan()
        return [(moments[index][kept], scores[index][kept])]

    def _output(self, given: Mapping[str, Tensor]) -> MapOutput:
        output: MapOutput = self.model(given["visual"], given["words"], given["word_mask"][..., 0])
        return output


def from_published(state: Arrays, config: Mapping[str, Any]) -> PublishedTAN:
    """Returns a model with weights under the published names.

    Args:
        state: Tensors or arrays by published name.
        config: The published YAML tree, names in capitals.

    Raises:
        CheckpointError: If a setting is missing or impossible, or entries do not fit (named).
    """
    tan = setting(config, "TAN")
    convs, text = setting(tan, "MAP_MODULE.PARAMS"), setting(tan, "FUSION_MODULE.PARAMS")
    hidden, kernels = setting(tan, "FRAME_MODULE.PARAMS.HIDDEN_SIZE"), setting(convs, "KERNEL_SIZES")
    border = [sum(size // 2 for size in kernels)] + [0] * (len(kernels) - 1)
    frames, stride = setting(config, "DATASET.NUM_SAMPLE_CLIPS"), setting(config, "DATASET.TARGET_STRIDE")
    proposal = setting(tan, "PROP_MODULE.NAME")
    ours = {
        "TAN.FRAME_MODULE.PARAMS.KERNEL_SIZE": (setting(tan, "FRAME_MODULE.PARAMS.KERNEL_SIZE"), stride),
        "TAN.FUSION_MODULE.PARAMS.HIDDEN_SIZE": (setting(text, "HIDDEN_SIZE"), hidden),
        "TAN.MAP_MODULE.PARAMS.HIDDEN_SIZES": (setting(convs, "HIDDEN_SIZES"), [hidden] * len(kernels)),
        "TAN.MAP_MODULE.PARAMS.PADDINGS": (setting(convs, "PADDINGS"), border),
    }
    for name, (value, only) in ours.items():
        if value != only:
            raise CheckpointError(f"published settings: {name}={value} is not supported, {only} alone is")
    if proposal not in _PROPOSALS:
        raise CheckpointError(f"published settings: TAN.PROP_MODULE.NAME={proposal} is none of {', '.join(_PROPOSALS)}")
    values = {
        "clips": frames // stride,
        "hidden": hidden,
        "query": {
            "layers": setting(text, "LSTM.NUM_LAYERS"),
            "hidden": setting(text, "TXT_HIDDEN_SIZE"),
            "bidirectional": setting(text, "LSTM.BIDIRECTIONAL"),
            "read_padding": True,
        },
        "proposals": _PROPOSALS[proposal],
        "scale_layers": setting(tan, "PROP_MODULE.PARAMS.NUM_SCALE_LAYERS"),
        "map": {"layers": len(kernels), "kernel_size": kernels},
        "overlaps": "rounded",
    }
    params = setting(config, "LOSS.PARAMS")
    loss = {
        "min_iou": setting(params, "MIN_IOU"),
        "max_iou": setting(params, "MAX_IOU"),
        "bias": setting(params, "BIAS"),
        "saturating": True,
    }
    network = TAN(
        build_config(TANConfig, values),
        setting(tan, "FRAME_MODULE.PARAMS.INPUT_SIZE"),
        setting(text, "TXT_INPUT_SIZE"),
        build_config(TANLoss, loss),
    )
    load_published(network, state, published_names(network.config))
    limit = max(int(number) for number in str(setting(config, "TEST.RECALL")).split(","))
    return PublishedTAN(network, setting(config, "TEST.NMS_THRESH"), limit)


def import_state(state: Arrays, model: ModelConfig, data: DataConfig) -> TAN:
    """Returns an experiment's network with published weights; see `cdn_tune.model.published.import_state`."""
    if not isinstance(model, TANConfig):
        raise ConfigError(f"model.name={model.name}: these weights are those of a tan; change the experiment")
    for key, value in model.switched_on.items():
        raise ConfigError(f"{key}={value}: the published model has no such thing; change the experiment")
    published = {"query": model.query.model_copy(update={"read_padding": True}), "overlaps": "rounded"}
    network = TAN(model.model_copy(update=published), data.feature_size, data.word_size)
    load_published(network, state, published_names(network.config))
    return network


def published_names(config: TANConfig) -> Iterator[tuple[str, str]]:
    """Yields our name and the published name of every entry of a model's state."""
    modules = {
        "clip_pool.frame": "frame_layer.vis_conv",
        "fusion.query": "fusion_layer.tex_linear",
        "fusion.moment": "fusion_layer.vis_conv",
        "score": "pred_layer",
    }
    if config.proposals == "conv":
        lengths = [f"{scale}.{index}" for scale, count in enumerate(config.scales) for index in range(count)]
        modules |= {f"proposals.layers.{number}": f"prop_layer.layers.{at}" for number, at in enumerate(lengths)}
    modules |= {f"map.convs.{layer}": f"map_layer.convs.{layer}" for layer in range(config.map.layers)}
    for ours, theirs in modules.items():
        for leaf in ("weight", "bias"):
            yield f"{ours}.{leaf}", f"{theirs}.{leaf}"
    directions = {"forwards": "", "backwards": "_reverse"} if config.query.bidirectional else {"forwards": ""}
    for layer in range(config.query.layers):
        for direction, suffix in directions.items():
            for leaf in _LSTM:
                theirs = f"fusion_layer.textual_encoder.{leaf}_l{layer}{suffix}"
                yield f"query.{direction}.{layer}.{leaf}_l0", theirs
