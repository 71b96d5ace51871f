"""Weights of CDN's published implementation: its names, its shapes, its settings.

Shape letters: C channels, E experts, K kernel size.
"""

import math
import re
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from cdn_tune.config import DataConfig, ModelConfig
from cdn_tune.errors import CheckpointError, ConfigError
from cdn_tune.model.cdn.config import CDNConfig
from cdn_tune.model.cdn.network import CDN
from cdn_tune.model.weights import build_config, load_published

_PROPOSALS = {"SparsePropMaxPool": "pool", "SparsePropConv": "conv"}
_PUBLISHED = {ours: theirs for theirs, ours in _PROPOSALS.items()}

_LSTM = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
_CLIP_POOL = {"frame": "vis_conv", "guide": "guide_emb_fn.0", "reduce": "vis_out_conv"}
_CLIP_POOL |= {"guide_key": "att_fn1", "frame_key": "att_fn2", "weight": "att_fn3"}
_MIXING = {"query": "att_linear1", "map": "att_linear2", "mix": "att_linear"}
_CONV2D = re.compile(r"map_layer\.convs\.(?P<layer>\d+)\.(?P<leaf>weight|bias)")
_CONV1D = ("frame_layer.vis_conv.weight", "frame_layer.vis_out_conv.weight")  # 1x1 convolutions that are linears here


def published_config(settings: Mapping[str, Any]) -> CDNConfig:
    """Returns the configuration that behaves as the published model with these settings.

    Args:
        settings: ``num_clips``, ``proposal``, ``scale_layers``, ``hidden``, ``attention_steps``, ``kernel_sizes``,
            ``dynamic`` (a flag per layer), ``num_experts``, ``lstm_layers``, ``lstm_bidirectional``; no others.

    Raises:
        CheckpointError: If a setting is missing or impossible.
    """
    try:
        query = {"layers": settings["lstm_layers"], "bidirectional": settings["lstm_bidirectional"]}
        sizes = settings["kernel_sizes"]
        layers = {"layers": len(sizes), "kernel_size": sizes, "dynamic_layers": settings["dynamic"]}
        values = {
            "clips": settings["num_clips"],
            "hidden": settings["hidden"],
            "query": query | {"read_padding": True},
            "attention_steps": settings["attention_steps"],
            "proposals": _PROPOSALS[settings["proposal"]],
            "scale_layers": settings["scale_layers"],
            "map": layers | {"experts": settings["num_experts"]},
        }
    except KeyError as error:
        raise CheckpointError(f"published settings: no or unknown {error.args[0]!r}") from error
    return build_config(CDNConfig, values)


def published_settings(model: ModelConfig, data: DataConfig) -> dict[str, Any]:
    """Returns a model's configuration as published settings; a `ConfigError` if no published model is like it."""
    if not isinstance(model, CDNConfig):
        raise ConfigError(f"model.name={model.name}: published weights are those of a cdn; change the experiment")
    variants = {
        "model.clip_pool": (model.clip_pool, "attention"),
        "model.attention_size": (model.attention_size, 256),
        "model.map.mixing": (model.map.mixing, "both"),
        "model.map.residual": (model.map.residual, True),
        "model.map.batch_norm": (model.map.batch_norm, True),
        "model.map.norm_over": (model.map.norm_over, "all"),
    }
    for key, (value, published) in variants.items():
        if value != published:
            raise ConfigError(f"{key}={value}: the published model has {published} only; change the experiment")
    for key, on in model.switched_on.items():
        raise ConfigError(f"{key}={on}: the published model has no such thing; change the experiment")
    return {
        "num_clips": model.clips,
        "proposal": _PUBLISHED[model.proposals],
        "scale_layers": list(model.scales),
        "hidden": model.hidden,
        "visual_dim": data.feature_size,
        "word_dim": data.word_size,
        "attention_steps": model.attention_steps,
        "kernel_sizes": list(model.map.kernel_sizes),
        "dynamic": list(model.map.dynamic),
        "num_experts": model.map.experts,
        "lstm_layers": model.query.layers,
        "lstm_bidirectional": model.query.bidirectional,
    }


def from_published(state: Mapping[str, Any], settings: Mapping[str, Any]) -> CDN:
    """Returns a new model with weights under the published names; it computes what the published model computes.

    Args:
        state: Tensors or arrays by published name; a leading ``module.`` is accepted.
        settings: The settings they were trained with, see `published_config`; besides ``visual_dim`` and ``word_dim``.

    Raises:
        CheckpointError: If a setting is wrong, or entries are missing, unknown, misshapen or not finite (named).
    """
    config = published_config(settings)
    try:
        model = CDN(config, settings["visual_dim"], settings["word_dim"])
    except KeyError as error:
        raise CheckpointError(f"published settings: no {error.args[0]!r}") from error
    load_published(model, state, published_names(config), partial(_published_shape, config=config), _converted)
    return model


def import_state(state: Mapping[str, Any], model: ModelConfig, data: DataConfig) -> CDN:
    """Returns an experiment's network with published weights; see `cdn_tune.model.published.import_state`."""
    return from_published(state, published_settings(model, data))


def published_names(config: CDNConfig) -> Iterator[tuple[str, str]]:
    """Yields our name and the published name of every entry of a model's state."""
    for ours, theirs, leaves in _modules(config):
        for leaf, their_leaf in leaves.items():
            yield f"{ours}.{leaf}", f"{theirs}.{their_leaf}"


def _modules(config: CDNConfig) -> Iterator[tuple[str, str, dict[str, str]]]:
    """Yields our name, the published name and the entries of every module."""
    plain = {"weight": "weight", "bias": "bias"}
    directions = {"forwards": "", "backwards": "_reverse"} if config.query.bidirectional else {"forwards": ""}
    for layer in range(config.query.layers):
        for direction, suffix in directions.items():
            leaves = {f"{leaf}_l0": f"{leaf}_l{layer}{suffix}" for leaf in _LSTM}
            yield f"query.{direction}.{layer}", "textual_encoding.textual_encoder", leaves
    if config.query.bidirectional:
        yield "query.join", "textual_encoding.tex_linear", plain
    for ours, theirs in _CLIP_POOL.items():
        yield f"clip_pool.{ours}", f"frame_layer.{theirs}", plain
    for step in range(config.attention_steps):
        yield f"clip_pool.steps.{step}", f"frame_layer.global_emb_fn.{step}", plain
    if config.proposals == "conv":
        layers = [f"{scale}.{index}" for scale, count in enumerate(config.scales) for index in range(count)]
        for index, theirs in enumerate(layers):
            yield f"proposals.layers.{index}", f"prop_layer.layers.{theirs}", plain
    yield "fusion.query", "fusion_layer.tex_linear", plain
    yield "fusion.moment", "fusion_layer.vis_conv", plain
    for index, dynamic in enumerate(config.map.dynamic):
        yield f"map.convs.{index}", f"map_layer.convs.{index}", plain
        for ours, theirs in _MIXING.items() if dynamic else ():
            yield f"map.convs.{index}.{ours}", f"map_layer.convs.{index}.{theirs}", plain
    for index in range(config.map.layers + 1):
        yield f"map.norms.{index}", f"map_layer.bn_layers.{index}", plain | {name: name for name in _STATISTICS}
    yield "score", "pred_layer", plain


def _published_shape(theirs: str, ours: Tensor, config: CDNConfig) -> torch.Size:
    """Returns the shape of a published entry, given our tensor."""
    if theirs in _CONV1D:
        return torch.Size((*ours.shape, 1))
    conv = _CONV2D.fullmatch(theirs)
    if conv is None:
        return ours.shape
    dynamic = config.map.dynamic[int(conv["layer"])]
    if conv["leaf"] == "bias":
        return ours.shape if dynamic else ours[0].shape
    taps, experts, channels, _ = ours.shape
    side = math.isqrt(taps)
    return torch.Size((experts, channels * channels * taps) if dynamic else (channels, channels, side, side))


def _converted(theirs: Tensor, name: str, ours: Tensor) -> Tensor:
    """Returns a published tensor in our shape and type: kernels have their taps last there, first here."""
    conv = _CONV2D.fullmatch(name)
    if conv is not None and conv["leaf"] == "weight":
        taps, *kernel = ours.shape
        theirs = theirs.reshape(*kernel, taps).permute(3, 0, 1, 2)
    return theirs.reshape(ours.shape).to(ours.dtype)
