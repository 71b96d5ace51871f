"""The table of model families. Imports no torch: an entry is imported when it is used.

A family outside this package is registered by the package it is installed with, as an entry point of `GROUP`
(`cdn_tune.plugins`) under its name. One that is not installed is added by the environment, which every process of a
search on this machine inherits, and which ``cdn-tune cluster submit --env CDN_TUNE_FAMILIES`` hands over:
``CDN_TUNE_FAMILIES=NAME=MODULE:CLASS``, several separated by commas, whose modules must be on ``PYTHONPATH``.
Configurations and checkpoints hold names alone, so that opening one imports nothing that is not named here.
"""

import difflib
import os
import pkgutil
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from cdn_tune import plugins
from cdn_tune.errors import ConfigError

if TYPE_CHECKING:
    from cdn_tune.config.family import ModelConfig

DEFAULT = "cdn"  # of configurations that name none, written when there was no other
ENVIRONMENT = "CDN_TUNE_FAMILIES"
GROUP = "cdn_tune.families"
FAMILIES = {
    "cdn": "cdn_tune.model.cdn.config:CDNConfig",
    "mmn": "cdn_tune.model.mmn.config:MMNConfig",
    "snag": "cdn_tune.model.snag.config:SnAGConfig",
    "tan": "cdn_tune.model.tan.config:TANConfig",
}


def known() -> dict[str, str]:
    """Returns ``MODULE:CLASS`` of every family by name: of `FAMILIES`, of installed packages, of the environment."""
    found = plugins.installed(GROUP, FAMILIES, _check)
    return {**FAMILIES, **{name: f"{each.__module__}:{each.__qualname__}" for name, each in found.items()}, **_added()}


def _added() -> dict[str, str]:
    """Returns the families that the environment adds."""
    added = {}
    for entry in filter(None, os.environ.get(ENVIRONMENT, "").split(",")):
        name, _, target = (part.strip() for part in entry.partition("="))
        if not name or ":" not in target:
            raise ConfigError(f"{ENVIRONMENT}: {entry!r} is no NAME=MODULE:CLASS; write it like toy=my_models.toy:Toy")
        added[name] = target
    return added


def _check(name: str, found: Any) -> None:
    """Raises an error if what an entry point names is no family's configuration."""
    from cdn_tune.config.family import ModelConfig

    if not isinstance(found, type) or not issubclass(found, ModelConfig):
        raise TypeError("it is no subclass of cdn_tune.config.ModelConfig")
    if (own := found().name) != name:
        raise ValueError(f"its class has name: {own!r}, and the entry point has to have the same")
    found.loss()
    if not isinstance(getattr(found, "label", None), str):
        raise TypeError("its class has no label, the family's name in tables")


def family(name: Any) -> "type[ModelConfig]":
    """Returns a family's configuration class; raises a `ConfigError` if it is unknown or cannot be imported."""
    table = {**FAMILIES, **_added()}
    if not isinstance(name, str) or name not in table:
        table = known()
    if not isinstance(name, str) or name not in table:
        near = difflib.get_close_matches(str(name), table, n=1, cutoff=0.4)
        mend = f"did you mean {near[0]}?" if near else "use one of them, or install the package that registers it"
        raise ConfigError(f"{name!r} is no model family; known are {', '.join(table)}; {mend}")
    try:
        found: type[ModelConfig] = pkgutil.resolve_name(table[name])
    except (ImportError, AttributeError, ValueError) as error:
        told = f"{ENVIRONMENT} names {table[name]}, put it on PYTHONPATH" if name in _added() else f"mend {table[name]}"
        raise ConfigError(f"{name!r} cannot be imported ({error}); {told}") from None
    return found


def default() -> "ModelConfig":
    """Returns the default family's configuration, all at defaults."""
    return family(DEFAULT)()


def all_of(name: str | None = None) -> "list[type[ModelConfig]]":
    """Returns the configuration classes of all families, in the order of the table; or of the named one alone."""
    return [family(each) for each in (known() if name is None else [name])]


def name_in(values: Mapping[str, Any]) -> Any:
    """Returns the family that nested values of an experiment name; `DEFAULT` if they name none."""
    section = values.get("model")
    return section.get("name", DEFAULT) if isinstance(section, Mapping) else DEFAULT


def label_in(values: Mapping[str, Any]) -> str:
    """Returns the label of the family of an experiment's nested values; its name, if it cannot be imported here."""
    name = name_in(values)
    try:
        return family(name).label
    except ConfigError:
        return str(name)


def per_layer(key: str) -> tuple[str, type] | None:
    """Returns the layer count's key of a dotted key with a value per layer, and that value's type; None for others."""
    for each in all_of():
        for own, (count, kind) in each.per_layer.items():
            if key == f"model.{own}":
                return f"model.{count}", kind
    return None


def layers_key(key: str) -> str:
    """Returns the layer count's key of a dotted key with a value per layer; other keys as they are."""
    return (per_layer(key) or (key,))[0]
