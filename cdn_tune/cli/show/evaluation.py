"""Tables of an evaluation: metrics with intervals, baselines, published rows, groups, comparisons."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich import box
from rich.markup import escape
from rich.table import Table

from cdn_tune.cli.show.output import out, print_line
from cdn_tune.cli.show.tables import Stacked
from cdn_tune.config.tables import table_of
from cdn_tune.data.mark import marked
from cdn_tune.evaluation.summary import BASELINES
from cdn_tune.model.families import label_in
from cdn_tune.training.runs.kept import CHECKPOINT

_SURE = 0.05  # a corrected p-value below it is shown in colour
_KINDS = {
    "length_share": "length of the moment, share of the video",
    "length_seconds": "length of the moment",
    "position": "position of the moment",
    "query_words": "length of the query",
}


def print_evaluation_tables(result: Mapping[str, Any]) -> None:
    """Prints the result beside what needs no model, with intervals, what matters most last: groups, mAP, recalls."""
    tables: dict[str, list[str]] = {}
    for name in result["metrics"]:
        tables.setdefault(table_of(name), []).append(name)
    out.print(_groups(result))
    for title, names in reversed(tables.items()):
        out.print(_evaluation(result, names, f"{title}, in %, with 95 % intervals" if title else _title(result)))
    for query in result["without_moment"]:
        print_line(f"{query['id']} counts as a miss: {query['reason']}")


def headline(result: Mapping[str, Any]) -> str:
    """Returns R@1 and mIoU of the whole split with their intervals, in one line."""
    names = [name for name in result["metrics"] if name.startswith("R1@") or name == "mIoU"]
    numbers = [f"{name} {_percent(result, name)}" for name in names]
    return f"{_label(result)}, on {result['dataset']}, {result['split']} split: {', '.join(numbers)}".replace(
        "\n ", ","
    )


def rejection_lines(result: Mapping[str, Any]) -> list[str]:
    """Returns how sentences that are not in the video are rejected, if that was measured."""
    found = result.get("rejection")
    if found is None:
        return []
    shares = {name: _percent(found, name) for name in found["metrics"]}
    return [
        f"sentences that are not in the video ({found['absent_queries']} {found['absent']}): "
        f"AUROC {shares['auroc']}, {shares['balanced_accuracy']} % right of either kind",
        f"below a score of {found['threshold']:.4g}, chosen on val, {shares['rejected']} % of them are rejected, and "
        f"{shares['wrongly_rejected']} % of those that are in the video",
    ]


def _gap_label(gap: Mapping[str, Any]) -> str:
    return f"{gap['of']} - {gap['minus']}"


def _percent(entry: Mapping[str, Any], name: str) -> str:
    return f"{100 * entry['metrics'][name]:.1f} {_ends(entry['intervals'][name], 1)}".strip()


def _evaluation(result: Mapping[str, Any], names: list[str], title: str) -> Stacked:
    table = _table(title, names)
    _add(table, _label(result), result["metrics"], names, "bold green")
    _add_intervals(table, result["intervals"], names)
    if result.get("std"):
        cells = (f"±{100 * result['std'][name]:.2f}" for name in names)
        table.add_row("  std over seeds", *cells, style="green")
    _add_parts(table, result, names)
    models = result.get("models", [])
    for model in models if result.get("seeds") else models[1:]:
        _add(table, _model_label(model), model["metrics"], names, "")
    for name, label in BASELINES.items():
        _add(table, label, result["baselines"][name]["metrics"], names, "dim" if name == "random" else "")
    gain = result["advantage"]
    _add(table, f"above {BASELINES[gain['over']]}", gain["difference"], names, "cyan", sign=True)
    _add_intervals(table, gain["intervals"], names)
    for row in result.get("published", []):
        if any(name in names for name in row["metrics"]):
            _add(table, f"{row['method']} ({row['features']}, {row['note']})", row["metrics"], names, "magenta")
    return Stacked(table)


def _add_parts(table: Table, result: Mapping[str, Any], names: list[str]) -> None:
    """Adds the parts of the split, each with what the query-blind list reaches there, and the gaps between them."""
    blind = result["advantage"]["over"]
    for part in result.get("parts", []):
        _add(table, f"  {part['label']}, {part['queries']} queries", part["metrics"], names, "bold")
        _add_intervals(table, part["intervals"], names)
        _add(table, f"    {BASELINES[blind]}", part[blind]["metrics"], names, "dim")
    for gap in result.get("gaps", []):
        _add(table, f"  {_gap_label(gap)}", gap["difference"], names, "cyan", sign=True)
        _add_intervals(table, gap["intervals"], names)


def _model_label(model: Mapping[str, Any]) -> str:
    path = Path(model["checkpoint"])
    name = str(path.parent) if path.name == CHECKPOINT else str(path)
    return f"{name}\n  {model['parameters']:,} parameters"


def _label(result: Mapping[str, Any]) -> str:
    if "reported" not in result:
        return Path(result["predictions"]["file"]).name
    family = label_in(result["experiment"])
    if result["protocol"] == "published":
        return f"{family}, best on test ({result['reported']})"
    label = f"{family}, best on val" if result["reported"] == "checkpoint" else f"{family}, {result['reported']}"
    several = len(result["models"]) > 1 and not result.get("seeds")
    return f"{label}\n  {result['models'][0]['parameters']:,} parameters" if several else label


def _groups(result: Mapping[str, Any]) -> Stacked:
    """Returns the metrics of groups of queries, R@1 and mIoU, with intervals."""
    names = [name for name in result["metrics"] if name.startswith("R1@") or name == "mIoU"]
    table = _table("by groups of queries, in %, with 95 % intervals", ["queries", "videos", *names])
    for kind, groups in result["groups"].items():
        table.add_row(_KINDS.get(kind, kind), style="bold")
        for group in groups:
            cells = (_percent(group, name) for name in names)
            table.add_row(f"  {group['label']}", str(group["queries"]), str(group["videos"]), *cells)
    return Stacked(table)


def comparison_table(result: Mapping[str, Any]) -> Stacked:
    """Returns the comparison of two runs, a metric per row."""
    table = _table(_title(result), ["A", "B", "A - B", "p"], narrowest=8)
    for row in result["metrics"]:
        sides = [f"{100 * row[side]['value']:.2f} {_ends(row[side]['interval'])}" for side in ("first", "second")]
        low, high = row["interval"]
        style = "green" if low > 0 else "red" if high < 0 else ""
        difference = f"{100 * row['difference']:+.2f} {_ends(row['interval'], sign=True)}"
        table.add_row(row["name"], *sides, difference, f"{row['p_value']:.4f}", style=style)
    return Stacked(table)


def runs_metrics_table(result: Mapping[str, Any], labels: str) -> Stacked:
    """Returns the metrics of several runs, a run per row, under the letters that `pairs_table` has for them."""
    names = [each["name"] for each in result["runs"][0]["metrics"]]
    table = _table(_title(result), names, narrowest=8)
    for label, run in zip(labels, result["runs"], strict=False):
        _add(table, label, {each["name"]: each["value"] for each in run["metrics"]}, names, "")
        _add_intervals(table, {each["name"]: each["interval"] for each in run["metrics"]}, names)
    return Stacked(table)


def pairs_table(result: Mapping[str, Any], labels: str) -> Stacked:
    """Returns the comparison of each of several runs with each other, by metric."""
    table = _table("differences in pairs, in %, with 95 % intervals", ["difference", "p", "p (Holm)"], narrowest=8)
    for at, name in enumerate(each["name"] for each in result["pairs"][0]["metrics"]):
        table.add_row(name, style="bold")
        for pair in result["pairs"]:
            row = pair["metrics"][at]
            label = f"  {labels[pair['first']]} - {labels[pair['second']]}"
            difference = f"{100 * row['difference']:+.2f} {_ends(row['interval'], sign=True)}"
            style = "" if row["p_holm"] >= _SURE else "green" if row["difference"] > 0 else "red"
            table.add_row(label, difference, f"{row['p_value']:.4f}", f"{row['p_holm']:.4f}", style=style)
    return Stacked(table)


def print_planted(result: Mapping[str, Any]) -> None:
    """Prints that the data are planted, if they are."""
    if result["planted"]:
        print_line(
            f"{marked(result['planted'])}: these numbers say that the tool works, nothing about real videos", "yellow"
        )


def _title(result: Mapping[str, Any]) -> str:
    about = f" ({marked(result['planted'])})" if "planted" in result else ""
    title = f"{result['dataset']}{about}, {result['split']} split, {result['queries']} queries of {result['videos']} "
    title += "videos, in %, with 95 % intervals"
    return f"{title}\n{result['label']}" if result.get("label") else title


def _table(title: str, heads: list[str], narrowest: int = 22) -> Table:
    """Returns an empty table; its first column, of labels, is at least so wide where there is room."""
    table = Table(title=escape(title), box=box.SIMPLE_HEAD, pad_edge=False, title_justify="left")
    table.add_column("", overflow="fold", min_width=narrowest)
    for head in heads:
        table.add_column(head, justify="right")
    return table


def _add(
    table: Table, title: str, metrics: Mapping[str, float], names: list[str], style: str, sign: bool = False
) -> None:
    form = "{:+.2f}" if sign else "{:.2f}"
    cells = (form.format(100 * metrics[name]) if name in metrics else "" for name in names)
    table.add_row(escape(title), *cells, style=style)


def _add_intervals(table: Table, intervals: Mapping[str, Any], names: list[str]) -> None:
    sign = any(ends is not None and ends[0] < 0 for ends in intervals.values())
    table.add_row("", *(_ends(intervals[name], 1, sign) for name in names), style="dim")


def _ends(interval: Any, digits: int = 2, sign: bool = False) -> str:
    if interval is None:
        return ""
    form = f"{{:{'+' if sign else ''}.{digits}f}}"
    low, high = (form.format(100 * end) for end in interval)
    return f"({low}, {high})" if sign else f"({low}-{high})"
