"""Strict YAML: duplicate keys are refused, and numbers such as 1e-4 are numbers."""

import re
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from cdn_tune.errors import ConfigError


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader without its two surprises (YAML 1.1 reads 1e-4 as a string; the last duplicate wins)."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[Hashable] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, Hashable) and key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} appears twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:[0-9][0-9_]*(?:\.[0-9_]*)?|\.[0-9_]+)[eE][-+]?[0-9]+$"),
    list("-+0123456789."),
)


def parse(text: str) -> Any:
    """Returns one YAML value; raises a `yaml.YAMLError` if the text is no YAML."""
    return yaml.load(text, Loader=_Loader)  # noqa: S506 - a SafeLoader


def read_mapping(path: Path) -> dict[str, Any]:
    """Returns the mapping that a YAML file holds.

    Raises:
        ConfigError: If the file is missing, unreadable, empty, no YAML, or no mapping.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file; check the path") from None
    except IsADirectoryError:
        raise ConfigError(f"{path}: is a folder; name the YAML file in it") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as UTF-8 text ({error})") from None
    try:
        value = parse(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {_one_line(error)}") from None
    if not isinstance(value, dict):
        kind = "is empty" if value is None else f"holds a {type(value).__name__}"
        raise ConfigError(f"{path}: {kind}; a mapping of keys to values is expected, such as 'name: my-experiment'")
    return value


def dump(value: dict[str, Any]) -> str:
    """Returns the mapping as YAML, keys in their order."""
    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=120)


def flow(value: dict[str, Any]) -> str:
    """Returns the mapping as YAML in one line, ``{key: value}``."""
    return yaml.safe_dump(value, default_flow_style=True, sort_keys=False, allow_unicode=True, width=1000).strip()


def _one_line(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or " ".join(str(error).split())
    return f"line {mark.line + 1}, column {mark.column + 1}: {problem}" if mark else problem
