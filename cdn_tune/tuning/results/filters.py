"""Which rows of a leaderboard are shown, and in which order: ``val R1@0.5 >= 0.4``, ``state == complete``."""

import difflib
import operator
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import yaml as pyyaml

from cdn_tune.config.yaml import parse
from cdn_tune.errors import ConfigError
from cdn_tune.tuning.results.leaderboard import Row

_COMPARISONS: dict[str, Callable[[Any, Any], bool]] = {
    "<=": operator.le,
    ">=": operator.ge,
    "==": operator.eq,
    "!=": operator.ne,
    "=": operator.eq,
    "<": operator.lt,
    ">": operator.gt,
}
_FORM = re.compile(r"^\s*(?P<name>[^<>=!]+?)\s*(?P<sign><=|>=|==|!=|=|<|>)\s*(?P<value>.*?)\s*$", re.DOTALL)
_EXAMPLE = "write it like 'val R1@0.5 >= 0.4' or 'state == complete'"
_BEST_FIRST = ("value", "pareto", "val", "test")  # and val metrics: the greater the better


@dataclass(frozen=True)
class Filter:
    """A comparison of a column's value with another that rows must satisfy."""

    column: str
    sign: str  # ``<= >= == != < >``; ``=`` means ``==``
    value: Any

    def __call__(self, row: Row) -> bool:
        """Returns whether a row satisfies it.

        A row without a value satisfies ``!=`` alone. A list satisfies it if it is equal as a whole, or each item does.
        """
        held = row[self.column]
        if isinstance(held, list) and not isinstance(self.value, list):
            return all(self._holds(item) for item in held)
        return self._holds(held)

    def _holds(self, held: Any) -> bool:
        compare = _COMPARISONS[self.sign]
        if compare in (operator.eq, operator.ne):
            if isinstance(held, bool) != isinstance(self.value, bool):
                return compare is operator.ne
            return compare(held, "" if self.value == "none" else self.value)
        return _is_number(held) and compare(held, self.value)


def parse_filter(text: str, columns: Sequence[str]) -> Filter:
    """Parses ``COLUMN OPERATOR VALUE``; the value is YAML, or a word.

    Raises:
        ConfigError: If it is no comparison, its column is unknown, or its value cannot be compared so.
    """
    found = _FORM.match(text)
    if found is None or not found["value"]:
        raise ConfigError(f"--filter {text!r}: is no comparison; {_EXAMPLE}")
    column = find_column(found["name"], columns, f"--filter {text!r}")
    try:
        value = parse(found["value"])
    except pyyaml.YAMLError:
        value = found["value"]
    if value is None:
        value = "none"
    if isinstance(value, list) or found["sign"] in ("==", "!=", "="):
        if isinstance(value, list) and found["sign"] not in ("==", "!=", "="):
            raise ConfigError(f"--filter {text!r}: a list can only be compared with == or !=")
    elif not _is_number(value):
        raise ConfigError(f"--filter {text!r}: {found['sign']} compares numbers, and {value!r} is none; use == or !=")
    return Filter(column, found["sign"], value)


def find_column(name: str, columns: Sequence[str], source: str) -> str:
    """Returns the column that a name means: itself, a val metric, or the key whose last part it is.

    Raises:
        ConfigError: If there is none; names the nearest.
    """
    if name in columns:
        return name
    if f"val {name}" in columns:
        return f"val {name}"
    ending = [column for column in columns if column.rpartition(".")[2] == name]
    if len(ending) == 1:
        return ending[0]
    if ending:
        raise ConfigError(f"{source}: {name} may be {' or '.join(ending)}; write it in full")
    parts = {column.rpartition(".")[2]: column for column in columns} | {column: column for column in columns}
    near = difflib.get_close_matches(name, parts, n=1, cutoff=0.5)
    hint = f"did you mean {parts[near[0]]}?" if near else f"columns are {', '.join(columns)}"
    raise ConfigError(f"{source}: unknown column {name}; {hint}")


def sort_rows(rows: Sequence[Row], key: str, columns: Sequence[str]) -> list[Row]:
    """Sorts rows by a column: val metrics best first, anything else ascending; a minus in front turns that round.

    Rows without a value come last; equal ones stay in their order.

    Raises:
        ConfigError: If the column is unknown.
    """
    turned = key.startswith("-")
    column = find_column(key.removeprefix("-"), columns, f"--sort {key}")
    descending = (column in _BEST_FIRST or column.startswith("val ")) != turned
    valued = [row for row in rows if row[column] != ""]
    missing = [row for row in rows if row[column] == ""]
    return [*sorted(valued, key=lambda row: _order(row[column]), reverse=descending), *missing]


def _order(value: Any) -> tuple[int, Any]:
    """Numbers before texts before lists, so that a column of several kinds can be sorted."""
    if _is_number(value) or isinstance(value, bool):
        return 0, value
    return (2, [_order(item) for item in value]) if isinstance(value, list) else (1, str(value))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
