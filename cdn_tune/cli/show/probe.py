"""The table of a probe: what remains of a model's score with its inputs changed."""

from collections.abc import Mapping
from typing import Any

from rich import box
from rich.markup import escape
from rich.table import Table

from cdn_tune.cli.show.tables import Stacked
from cdn_tune.data.mark import marked
from cdn_tune.evaluation.probe_file import TITLES, VERDICTS, ProbeFile, share
from cdn_tune.evaluation.summary import BASELINES, BLIND


def probe_table(result: Mapping[str, Any]) -> Stacked:
    """Returns the content of ``probe.json`` as a table: by probe each metric, and the share of the advantage kept."""
    names, metric = list(result["metrics"]), result["metric"]
    of = f" of {result['of']}" if result["of"] > result["queries"] else ""
    about = f" ({marked(result['planted'])})" if result["planted"] else ""
    title = f"{result['dataset']}{about}, val split, {result['queries']}{of} "
    title += f"queries of {result['videos']} videos, in %, with 95 % intervals"
    table = Table(title=escape(title), box=box.SIMPLE_HEAD, pad_edge=False, title_justify="left")
    table.add_column("", overflow="fold", min_width=26)
    for head in (*names, f"{metric} kept", "verdict"):
        table.add_column(escape(head), justify="right")
    _add(table, "the model", result, names, "bold green")
    for name, title in TITLES.items():
        found = result["probes"][name]
        queries = f", {found['queries']} queries" if found["queries"] < result["queries"] else ""
        kept = _share(found["kept"][metric]), _ends(found["kept_intervals"][metric])
        _add(table, f"{title}{queries}", found, names, "", kept, VERDICTS[found["verdict"]])
    _add(table, BASELINES[BLIND], result["baselines"][BLIND], names, "dim")
    return Stacked(table)


def _add(
    table: Table,
    label: str,
    entry: Mapping[str, Any],
    names: list[str],
    style: str,
    kept: tuple[str, str] = ("", ""),
    verdict: str = "",
) -> None:
    values, ends = ([entry[part].get(name) for name in names] for part in ("metrics", "intervals"))
    cells = ("" if value is None else f"{100 * value:.2f}" for value in values)
    table.add_row(escape(label), *cells, kept[0], verdict, style=style)
    table.add_row("", *map(_ends, ends), kept[1], "", style="dim")


def _share(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.0f}"


def _ends(ends: list[float] | None) -> str:
    return "" if ends is None else f"({100 * ends[0]:.1f} to {100 * ends[1]:.1f})"


def probe_headline(found: ProbeFile) -> str:
    """Returns what is left with the frames shuffled, in one line."""
    return f"{TITLES['frames_shuffled']}, the model {share(found.probes['frames_shuffled'], found.metric)}"
