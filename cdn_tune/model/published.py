"""Models as published: weights under the published names, with the published settings and behaviour, mistakes included.

A family that has been published has a module ``cdn_tune.model.FAMILY.published``.
"""

import importlib
from collections.abc import Mapping
from typing import Any, Literal, overload

from torch import Tensor, nn

from cdn_tune.config import DataConfig, ModelConfig
from cdn_tune.errors import ConfigError
from cdn_tune.model.cdn.network import CDN
from cdn_tune.model.cdn.published import published_config, published_names, published_settings
from cdn_tune.model.family import MomentModel
from cdn_tune.model.weights import Arrays, Published

__all__ = [
    "FAMILIES",
    "from_published",
    "import_state",
    "nms",
    "published_config",
    "published_names",
    "published_settings",
]
FAMILIES = ("cdn", "snag", "mmn", "tan")


@overload
def from_published(state: Arrays, config: Mapping[str, Any], family: Literal["cdn"] = "cdn") -> CDN: ...
@overload
def from_published(state: Arrays, config: Mapping[str, Any], family: Literal["snag", "mmn", "tan"]) -> Published: ...
@overload
def from_published(state: Arrays, config: Mapping[str, Any], family: str) -> nn.Module: ...
def from_published(state: Arrays, config: Mapping[str, Any], family: str = "cdn") -> nn.Module:
    """Returns a new model with weights under the published names; it computes what the published model computes.

    Args:
        state: Tensors or arrays by published name; a leading ``module.`` is accepted.
        config: The published settings that they were trained with. Of ``cdn``, see `published_config` of its module.
        family: ``cdn``, ``snag``, ``mmn`` or ``tan``. All but a ``cdn``, which is the network itself, are `Published`.

    Raises:
        CheckpointError: If a setting is wrong, or entries are missing, unknown, misshapen or not finite (named).
        ConfigError: If there is no such published family.
    """
    model: nn.Module = _module(family).from_published(state, config)
    return model


def import_state(state: Arrays, model: ModelConfig, data: DataConfig) -> MomentModel:
    """Returns the network of an experiment with published weights; what the published code does otherwise is set.

    Args:
        state: Tensors or arrays by published name; a leading ``module.`` is accepted.
        model: The experiment's model section, which must describe the published model.
        data: Its data section.

    Raises:
        CheckpointError: If entries are missing, unknown, misshapen or not finite (named).
        ConfigError: If the experiment's family has not been published, or not in this variant.
    """
    network: MomentModel = _module(model.name).import_state(state, model, data)
    return network


def nms(segments: Tensor, scores: Tensor, params: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """Returns what SnAG's suppression leaves of segments [n, 2], with their scores; `params` are its settings."""
    left: tuple[Tensor, Tensor] = _module("snag").nms(segments, scores, params)
    return left


def _module(family: str) -> Any:
    if family not in FAMILIES:
        raise ConfigError(f"{family!r} is no published family; choose one of {', '.join(FAMILIES)}")
    return importlib.import_module(f"cdn_tune.model.{family}.published")
