"""The evaluation as tables: whatever in ``evaluation.json`` has the form of one, of any version."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from cdn_tune.config.tables import table_of
from cdn_tune.evaluation.probe_file import TITLES, VERDICTS, ProbeFile
from cdn_tune.evaluation.summary import BASELINES
from cdn_tune.model.families import label_in
from cdn_tune.report.figures import is_share, is_usual, number

_TITLES = {
    **BASELINES,
    "models": "the chosen checkpoints",
    "seeds": "over seeds",
    "groups": "by kind of query",
    "published": "published results",
    "rejection": "sentences that are not in the video",
    "length_share": "length, share of the video",
    "length_seconds": "length in seconds",
    "query_words": "words of the query",
}
_COUNTS = ("queries", "videos", "parameters", "features", "note")
_LABELS = ("label", "method", "checkpoint", "name", "title", "trial")
# Shown elsewhere, or no result.
_APART = {
    "metrics",
    "intervals",
    "std",
    "val",
    "experiment",
    "data",
    "chosen_by",
    "baselines",
    "advantage",
    "nms",
    "parts",
    "gaps",
}


class Cell(NamedTuple):
    """A metric in a table: its value and its confidence interval, either may be empty."""

    value: str
    interval: str = ""


class Card(NamedTuple):
    """A metric of the winner: its value, its interval, and what an answer blind to the query reaches."""

    metric: str
    value: str
    interval: str
    blind: str


class Table(NamedTuple):
    """A table of metrics: column heads, and per row its label and cells."""

    title: str
    heads: list[str]
    rows: list[tuple[str, list[Cell]]]


def cards(evaluation: Mapping[str, Any]) -> list[Card]:
    """Returns the test metrics of the first table with their intervals, and their deviation over seeds."""
    found = []
    for name, value in (evaluation.get("metrics") or {}).items():
        if table_of(name):
            continue
        deviation = (evaluation.get("std") or {}).get(name)
        text = number(value, name) + ("" if deviation is None else f" ± {number(deviation, name)}")
        found.append(Card(name, text, interval(evaluation, name), _aside(evaluation, name)))
    return found


def _aside(evaluation: Mapping[str, Any], name: str) -> str:
    """Returns what an answer reaches that is blind to the query: one for R1, a list of them for R5."""
    for key in ("best_constant", "query_blind"):
        reached = ((evaluation.get("baselines") or {}).get(key) or {}).get("metrics") or {}
        if name in reached:
            return f"{_title(key)} {number(reached[name], name)}"
    return ""


def interval(entry: Mapping[str, Any], metric: str) -> str:
    """Returns the confidence interval of an entry's metric as text; empty where there is none."""
    found = entry.get("intervals")
    ends = found.get(metric) if isinstance(found, Mapping) else None
    if (
        isinstance(ends, list | tuple)
        and len(ends) == 2
        and all(isinstance(end, int | float) and is_usual(end) for end in ends)
    ):
        low, high = (f"{100 * end:.1f}" if is_share(metric) else number(end) for end in ends)
        return f"{low}\u2009\u2013\u2009{high}"
    return ""


def tables(evaluation: Mapping[str, Any]) -> list[Table]:
    """Returns the model beside the baselines, its advantage over the blind list, then every part that holds metrics.

    Published rows are left out beside planted data: they are results on other data.
    """
    reported = evaluation.get("reported")
    family = label_in(evaluation.get("experiment") or {})
    model = f"{family}, chosen on val" if reported in (None, "checkpoint") else f"{family}, {reported}"
    if evaluation.get("label"):
        model = f"{family}, published protocol"
    baselines = evaluation.get("baselines") or {}
    found = [_table("", [(model, evaluation), *((_title(name), entry) for name, entry in baselines.items())])]
    found += _parts(evaluation)
    found += _advantage(evaluation.get("advantage"))
    planted = bool(evaluation.get("planted"))
    for key, part in evaluation.items():
        if key == "models" and len(part or ()) < 2:
            continue  # it is the first row above
        if key not in _APART and not (planted and key.startswith("published")):
            found += list(_tables(_title(key), part))
    return [table for table in found if table.heads]


def _parts(evaluation: Mapping[str, Any]) -> list[Table]:
    """Returns the parts of the split, each with what the query-blind list reaches there, and the gaps between them."""
    parts, gaps = (
        [each for each in evaluation[key] if isinstance(each, Mapping)] if isinstance(evaluation.get(key), list) else []
        for key in ("parts", "gaps")
    )
    entries: list[tuple[str, Mapping[str, Any]]] = []
    for part in parts:
        label = str(part.get("label", ""))
        entries.append((label, part))
        if isinstance(blind := part.get("query_blind"), Mapping):
            entries.append((f"{label}, {_title('query_blind')}", blind))
    for gap in gaps:
        label = f"{gap.get('of', '')} - {gap.get('minus', '')}"
        entries.append((label, {"metrics": gap.get("difference"), "intervals": gap.get("intervals")}))
    return [_table("by part of the test split", entries)] if entries else []


def probe_table(probe: ProbeFile) -> Table:
    """Returns what remains of the model's val metrics with its inputs changed, and the verdicts."""
    names = list(probe.metrics)
    rows = [("the model", [Cell(number(probe.metrics[name], name)) for name in names] + [Cell(""), Cell("")])]
    for name, found in probe.known.items():
        cells = [Cell(number(found.metrics[each], each)) if each in found.metrics else Cell("") for each in names]
        kept, ends = found.kept.get(probe.metric), found.kept_intervals.get(probe.metric)
        share = "" if kept is None else f"{100 * kept:.0f}"
        between = "" if ends is None else f"{100 * ends[0]:.0f}\u2009\u2013\u2009{100 * ends[1]:.0f}"
        rows.append((TITLES[name], [*cells, Cell(share, between), Cell(VERDICTS[found.verdict])]))
    return Table("Does it look at the video?", [*names, f"{probe.metric} kept", "verdict"], rows)


def _advantage(part: Any) -> list[Table]:
    """Returns the paired test against the answers that are blind to the query."""
    if not isinstance(part, Mapping) or not isinstance(part.get("difference"), Mapping):
        return []
    heads, p_values = list(part["difference"]), part.get("p_values") or {}
    rows = [
        ("difference", [Cell(number(value, name), interval(part, name)) for name, value in part["difference"].items()])
    ]
    if p_values:
        values = [p_values.get(name) for name in heads]
        texts = [f"{value:.4f}" if isinstance(value, int | float) else number(value) for value in values]
        rows.append(("p-value", [Cell(text) for text in texts]))
    return [Table(f"advantage over the {_title(str(part.get('over', 'baseline')))}, paired by query", heads, rows)]


def _tables(title: str, part: Any) -> Iterator[Table]:
    """Yields the tables in a part: a mapping or list whose entries have metrics is one; others are gone into."""
    if isinstance(part, list):
        part = {_label(entry, at): entry for at, entry in enumerate(part) if isinstance(entry, Mapping)}
    if not isinstance(part, Mapping) or not part:
        return
    if _metrics(part):
        yield _table(title, [("", part)])
    elif all(_metrics(entry) for entry in part.values()):
        yield _table(title, [(_title(str(name)), entry) for name, entry in part.items()])
    else:
        for name, entry in part.items():
            yield from _tables(title if name == "runs" else f"{title}: {_title(str(name))}", entry)


def _table(title: str, entries: Sequence[tuple[str, Mapping[str, Any]]]) -> Table:
    """Returns a table with a column per count and per metric that any entry has."""
    metrics = [_metrics(entry) for _, entry in entries]
    counts = [name for name in _COUNTS if title and any(_is_plain(entry.get(name)) for _, entry in entries)]
    heads = list(dict.fromkeys(name for found in metrics for name in found))
    rows = [
        (
            label,
            [Cell(number(entry[name]) if _is_plain(entry.get(name)) else "") for name in counts]
            + [Cell(number(found[name], name), interval(entry, name)) if name in found else Cell("") for name in heads],
        )
        for (label, entry), found in zip(entries, metrics, strict=True)
    ]
    return Table(title, counts + heads if heads else [], rows)


def _metrics(entry: Any) -> dict[str, Any]:
    """Returns the metrics of an entry: those under ``metrics``, or the entry itself where it consists of them."""
    if not isinstance(entry, Mapping):
        return {}
    own = entry.get("metrics")
    values = own if isinstance(own, Mapping) else entry
    found = {str(name): value for name, value in values.items() if isinstance(value, int | float)}
    return {name: value for name, value in found.items() if values is own or is_share(name)}


def _is_plain(value: Any) -> bool:
    return isinstance(value, int | str) and value != ""


def _label(entry: Mapping[str, Any], at: int) -> str:
    if "seed" in entry and "val" not in entry and "label" not in entry:
        return f"seed {entry['seed']}"
    return str(next((entry[name] for name in _LABELS if entry.get(name)), at + 1))


def _title(name: str) -> str:
    return _TITLES.get(name, name.replace("_", " "))
