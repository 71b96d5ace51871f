"""Strict YAML, the one reader of it: texts, numbers, true, false, null, lists and mappings, of a bounded size.

What YAML 1.1 has besides is refused or read as text: other types (dates, sets, bytes), keys that are no text, duplicate
keys. 1e-4 is a number. A few hundred bytes of aliases can stand for more values than memory holds, so that a value
counts as often as it is repeated.
"""

import re
import stat
from pathlib import Path
from typing import Any, ClassVar

import yaml
from yaml.composer import ComposerError
from yaml.constructor import ConstructorError

from cdn_tune.errors import ConfigError

LARGEST = 1 << 18  # bytes of a file
MOST = 10_000  # values in it, repeated ones counted again
DEEPEST = 50  # lists and mappings within each other
GREATEST = 2**53  # whole numbers up to which a float, as a study holds it, is exact

_TAG = "tag:yaml.org,2002:"
_KINDS = {
    f"{_TAG}null": "null", f"{_TAG}bool": "true or false", f"{_TAG}int": "a whole number", f"{_TAG}float": "a number",
    f"{_TAG}str": "a text", f"{_TAG}seq": "a list", f"{_TAG}map": "a mapping",
}  # fmt: skip
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader without what this project has no use for."""

    yaml_implicit_resolvers: ClassVar = {  # type: ignore[misc]  # PyYAML's stubs take it for one of an instance
        first: [(tag, pattern) for tag, pattern in resolvers if tag in _KINDS]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._depth = 0
        self._sizes: dict[yaml.Node, int] = {}  # values in each node, those behind aliases included

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
        if self._depth == DEEPEST:
            raise ComposerError(None, None, f"nested more than {DEEPEST} deep; write it flatter", mark)
        is_alias = self.check_event(yaml.AliasEvent)
        self._depth += 1
        node = super().compose_node(parent, index)
        self._depth -= 1
        if node is None or (is_alias and node in self._sizes):
            return node
        if is_alias:
            raise ComposerError(None, None, "an alias within what it stands for; write the value out", mark)
        inner: list[yaml.Node] = []
        if isinstance(node, yaml.SequenceNode):
            inner = node.value
        elif isinstance(node, yaml.MappingNode):
            inner = [each for pair in node.value for each in pair]
        self._sizes[node] = size = 1 + sum(self._sizes[each] for each in inner)
        if size > MOST:
            raise ComposerError(
                None, None, f"holds more than {MOST:,} values, repeated ones included; shorten it", mark
            )
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        kind = _KINDS.get(node.tag)
        if kind is None:
            raise _fault(node, f"the tag {node.tag!r} is not understood; write plain values")
        try:
            value = super().construct_object(node, deep)
        except (ValueError, LookupError, ArithmeticError):
            raise _fault(node, f"{shown(node.value)} is not {kind}") from None
        if type(value) is int and abs(value) > GREATEST:
            raise _fault(node, f"{shown(node.value)} is too large; whole numbers go up to {GREATEST}")
        if isinstance(value, str) and _CONTROL.search(value):
            raise _fault(node, f"{shown(value)} holds a control character; remove it")
        return value

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        if not isinstance(node, yaml.MappingNode):
            raise _fault(node, "expected a mapping")
        mapping: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise _fault(key_node, f"key {shown(key)} is no text; put it in quotes, or write key: value")
            if not key.isprintable():
                raise _fault(key_node, f"key {shown(key)} holds a line break or the like; write it in one line")
            if key in mapping:
                raise _fault(key_node, f"key {shown(key)} appears twice")
            mapping[key] = self.construct_object(value_node, deep=deep)
        return mapping


_Loader.add_implicit_resolver(
    f"{_TAG}float",
    re.compile(r"^[-+]?(?:[0-9][0-9_]*(?:\.[0-9_]*)?|\.[0-9_]+)[eE][-+]?[0-9]+$"),
    list("-+0123456789."),
)


def shown(value: Any, most: int = 120) -> str:
    """Returns a value as an error shows it: in one line, and not longer than a few words."""
    text = repr(value)
    return text if len(text) <= most else f"{text[:most]}..."


def beginning(text: str, most: int) -> str:
    """Returns a text in one line; of a longer one the beginning, cut between words if it has several."""
    line = " ".join(text.split())
    return line if len(line) <= most else f"{line[:most].rpartition(' ')[0] or line[:most]} …"


def _fault(node: yaml.Node, problem: str) -> ConstructorError:
    return ConstructorError(None, None, problem, node.start_mark)


def parse(text: str) -> Any:
    """Returns one YAML value; raises a `yaml.YAMLError` if the text is none of those above."""
    return yaml.load(text, Loader=_Loader)  # noqa: S506 - a SafeLoader


def read_mapping(path: Path) -> dict[str, Any]:
    """Returns the mapping that a YAML file holds.

    Raises:
        ConfigError: If the file is missing, unreadable, too large, empty, no YAML, or no mapping.
    """
    try:
        text = _read(path)
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file; check the path") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as UTF-8 text ({error}); save it as UTF-8") from None
    try:
        value = parse(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {fault_in(error)}") from None
    if not isinstance(value, dict):
        kind = "is empty" if value is None else f"holds a {type(value).__name__}"
        raise ConfigError(f"{path}: {kind}; a mapping of keys to values is expected, such as 'name: my-experiment'")
    return value


def _read(path: Path) -> str:
    mode = path.stat().st_mode
    if stat.S_ISDIR(mode):
        raise ConfigError(f"{path}: is a folder; name the YAML file in it")
    if not stat.S_ISREG(mode):
        raise ConfigError(f"{path}: is no regular file; name a YAML file")
    with path.open("rb") as file:
        content = file.read(LARGEST + 1)
    if len(content) > LARGEST:
        raise ConfigError(f"{path}: is larger than {LARGEST >> 10} KiB, so no file of settings; name another")
    return content.decode("utf-8-sig")


def dump(value: dict[str, Any]) -> str:
    """Returns the mapping as YAML, keys in their order."""
    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=120)


def flow(value: dict[str, Any]) -> str:
    """Returns the mapping as YAML in one line, ``{key: value}``."""
    return yaml.safe_dump(value, default_flow_style=True, sort_keys=False, allow_unicode=True, width=1000).strip()


def fault_in(error: yaml.YAMLError) -> str:
    """Returns what is wrong with a text that is not valid YAML, and where, in one line."""
    mark = getattr(error, "problem_mark", None)
    problem = " ".join(str(getattr(error, "problem", None) or error).split())
    return f"line {mark.line + 1}, column {mark.column + 1}: {problem}" if mark else problem
