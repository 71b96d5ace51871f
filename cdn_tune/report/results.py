"""The evaluation as tables: whatever in ``evaluation.json`` has the form of one, of this version or a later one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cdn_tune.report.wording import is_share, number

_MODEL = "CDN, chosen on val"
_TITLES = {
    "best_constant": "best constant answer",
    "best_constant_list": "best constant list",
    "query_blind": "query-blind model",
    "random": "random moments",
    "breakdowns": "by kind of query",
    "baselines": "beside what needs no model",
    "seeds": "over seeds",
    "published": "published results",
}
_COUNTS = ("queries", "videos", "seeds")
# Shown elsewhere, or no result.
_APART = {"metrics", "val", "intervals", "experiment", "data", "chosen_by", "protocol"}


@dataclass(frozen=True)
class Card:
    """A metric of the winner: its value in the page's form, its interval, what the best constant answer reaches."""

    metric: str
    value: str
    interval: str
    constant: str


@dataclass(frozen=True)
class Table:
    """A table of metrics: column heads, and per row its label and texts."""

    title: str
    heads: list[str]
    rows: list[tuple[str, list[str]]]


def cards(evaluation: Mapping[str, Any]) -> list[Card]:
    """Returns the test metrics with their intervals."""
    constant = ((evaluation.get("baselines") or {}).get("best_constant") or {}).get("metrics") or {}
    return [
        Card(
            name,
            spread(value, name),
            interval(evaluation, name),
            number(constant[name], name) if name in constant else "",
        )
        for name, value in (evaluation.get("metrics") or {}).items()
    ]


def interval(evaluation: Mapping[str, Any], metric: str) -> str:
    """Returns a metric's confidence interval as text; empty where there is none."""
    found = evaluation.get("intervals") or {}
    if isinstance(found, Mapping) and isinstance(found.get("metrics"), Mapping):
        found = found["metrics"]
    return _ends(found.get(metric), metric) if isinstance(found, Mapping) else ""


def tables(evaluation: Mapping[str, Any]) -> list[Table]:
    """Returns the model beside the baselines, then every other part that holds metrics.

    Published rows are left out beside planted data: they are results on other data.
    """
    model = [(_MODEL, evaluation.get("metrics") or {})]
    baselines = evaluation.get("baselines") or {}
    rows = model + [(_title(name), _metrics(entry) or {}) for name, entry in baselines.items()]
    found = [_table("", rows)] if any(metrics for _, metrics in rows) else []
    planted = bool(evaluation.get("planted"))
    for key, part in evaluation.items():
        if key not in _APART and key != "baselines" and not (planted and key.startswith("published")):
            found += list(_tables(_title(key), part))
    return found


def spread(value: Any, metric: str) -> str:
    """Returns a value's text; one over seeds as ``mean ± std``."""
    if isinstance(value, Mapping) and "mean" in value:
        deviation = value.get("std")
        return number(value["mean"], metric) + ("" if deviation is None else f" ± {number(deviation, metric)}")
    return number(value, metric)


def _tables(title: str, part: Any) -> Iterator[Table]:
    """Yields the tables in a part: a mapping (or list) whose entries have metrics is one; others are gone into."""
    if isinstance(part, list):
        part = {str(_label(entry, at)): entry for at, entry in enumerate(part) if isinstance(entry, Mapping)}
    if not isinstance(part, Mapping) or not part:
        return
    rows = [(_title(str(name)), {**_counts(entry), **(_metrics(entry) or {})}) for name, entry in part.items()]
    if own := _metrics(part):
        yield _table(title, [("", {**_counts(part), **own})])
    elif all(_metrics(entry) for entry in part.values()):
        yield _table(title, rows)
    else:
        for name, entry in part.items():
            yield from _tables(f"{title}: {_title(str(name))}", entry)


def _table(title: str, rows: Sequence[tuple[str, Mapping[str, Any]]]) -> Table:
    heads = list(dict.fromkeys(name for _, metrics in rows for name in metrics))
    return Table(
        title,
        heads,
        [
            (label, [spread(metrics[name], name) if name in metrics else "" for name in heads])
            for label, metrics in rows
        ],
    )


def _metrics(entry: Any) -> dict[str, Any] | None:
    """The metrics of an entry: those under ``metrics``, or the entry itself where it consists of them."""
    if not isinstance(entry, Mapping):
        return None
    if isinstance(entry.get("metrics"), Mapping):
        return dict(entry["metrics"])
    shares = {name: value for name, value in entry.items() if is_share(str(name)) and not isinstance(value, list)}
    return shares or None


def _counts(entry: Any) -> dict[str, Any]:
    return {name: entry[name] for name in _COUNTS if isinstance(entry, Mapping) and isinstance(entry.get(name), int)}


def _label(entry: Mapping[str, Any], at: int) -> Any:
    return next((entry[name] for name in ("name", "title", "label", "seed", "trial") if name in entry), at + 1)


def _title(name: str) -> str:
    return _TITLES.get(name, name.replace("_", " "))


def _ends(found: Any, metric: str) -> str:
    if isinstance(found, Mapping):
        found = [found.get("low"), found.get("high")]
    if isinstance(found, list | tuple) and len(found) >= 2 and all(isinstance(end, int | float) for end in found[:2]):
        return f"{number(found[0], metric)} \u2013 {number(found[1], metric)}"
    return ""
