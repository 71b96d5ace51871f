"""`cdn-tune data doctor`: what is in a data folder, what is wrong, and the remedy."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from rich import box
from rich.markup import escape
from rich.table import Table
from typer import Argument, Exit, Option
from typer.core import TyperCommand

from cdn_tune.cli.app import data_app
from cdn_tune.cli.options import Json
from cdn_tune.cli.show.output import out, print_json, print_line
from cdn_tune.cli.show.progress import counted
from cdn_tune.data.mark import marked
from cdn_tune.errors import ConfigError, DataError

if TYPE_CHECKING:
    from cdn_tune.data.doctor import Finding, Report

_STYLES = {"error": "bold red", "warning": "yellow", "info": "dim"}
_SHOWN = 3
KEYS = ("dataset", "features", "word_vectors", "val_fraction", "text", "tokens", "word_size")


class _JsonOrFile(TyperCommand):
    """Takes ``--json FILE.json``, the older form of ``--out FILE.json``, for that."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        joined = [part for each in args for part in (each.split("=", 1) if each.startswith("--json=") else [each])]
        older = {
            place for place, (name, file) in enumerate(pairwise(joined)) if name == "--json" and file.endswith(".json")
        }
        return super().parse_args(ctx, ["--out" if place in older else each for place, each in enumerate(joined)])


@data_app.command(cls=_JsonOrFile, epilog="Example: cdn-tune data doctor data/charades --quick")
def doctor(
    root: Annotated[Path, Argument(metavar="ROOT", help="Folder with annotations, features, word vectors.")],
    overrides: Annotated[
        list[str] | None,
        Argument(metavar="[KEY=VALUE]...", help=f"As for training: {', '.join(f'data.{key}' for key in KEYS)}."),
    ] = None,
    quick: Annotated[bool, Option("--quick", help="Read the features of a sample of the videos.")] = False,
    json: Json = False,
    file: Annotated[Path | None, Option("--out", metavar="FILE", help="Write the report as JSON there.")] = None,
    dataset: Annotated[str | None, Option(help="Layout.", metavar="NAME", show_default="as recognised")] = None,
    features: Annotated[str | None, Option(help="Feature file, if elsewhere.", metavar="FILE")] = None,
    word_vectors: Annotated[str | None, Option(help="Word vectors, if elsewhere.", metavar="FILE")] = None,
) -> None:
    """Examine a data folder: what is in it, what is wrong, and the remedy. Exit code 2 if training would fail."""
    from cdn_tune.data.doctor import examine
    from cdn_tune.training.runs.files import write_json

    given: dict[str, Any] = {"dataset": dataset, "features": features, "word_vectors": word_vectors}
    given = {key: value for key, value in given.items() if value is not None} | _data_keys(root, overrides or [])
    with counted("reading features") as progress:
        report = examine(root, quick=quick, progress=progress, **given)
    if file is not None:
        write_json(file, report.plain())
    if json:
        print_json(report.plain())
    else:
        _print_report(report)
    if report.fails:
        raise Exit(DataError.exit_code)


def _print_report(report: Report) -> None:
    for line in fact_lines(report):
        print_line(line)
    if report.findings:
        out.print(findings_table(report.findings))
    print_line(verdict(report), "bold red" if report.fails else "bold green")


def _data_keys(root: Path, overrides: list[str]) -> dict[str, Any]:
    """Returns overrides as arguments of `examine`.

    Raises:
        ConfigError: If one is no key of `KEYS`, or has a wrong value.
    """
    from cdn_tune.config import DataConfig, build, parse_overrides

    given = parse_overrides(overrides)
    for key in given:
        if key.removeprefix("data.") not in KEYS or not key.startswith("data."):
            known = ", ".join(f"data.{each}" for each in KEYS)
            raise ConfigError(f"{key}: says nothing about a data folder; the doctor reads {known}")
    values = {key.removeprefix("data."): value for key, value in given.items()}
    build(DataConfig, {"dataset": "jsonl", "root": str(root), **values}, " ".join(overrides))
    return values


def fact_lines(report: Report) -> Iterator[str]:
    """Yields what was found, a line each."""
    if report.dataset is None:
        return
    edition = f", {report.variant}" if report.variant else ""
    yield f"{report.dataset}{edition}{f' ({marked(report.planted)})' if report.planted else ''} in {report.root}"
    for split, counts in report.splits.items():
        skipped = f", {counts['skipped']} not used" if counts["skipped"] else ""
        absent = f", {counts['absent']} sentences not in their video" if counts["absent"] else ""
        parts = "".join(f", {queries} of {part}" for part, queries in counts["parts"].items())
        yield f"  {split:<5} {counts['queries']} queries of {counts['videos']} videos{parts}{skipped}{absent}"
    facts = report.features
    if "size" in facts:
        yield (
            f"  features {facts['file']}: {facts['videos']} videos, size {facts['size']}, {facts['type']}, "
            f"{facts['rows_per_second']:g} rows a second; {facts['checked']} read"
        )
    if "making" in facts:
        from cdn_tune.data.videos.making import from_plain

        yield f"  made by {from_plain(facts['making'])}"
    facts = report.words
    if "model" in facts:
        yield (
            f"  tokens {facts['file']}: size {facts['size']} (data.word_size={facts['size']}), of {facts['model']}; "
            f"{facts['with_features']} of {facts['queries']} queries have features"
        )
    elif "size" in facts:
        known = facts["words"] - len(facts["unknown"])
        yield (
            f"  words {facts['file']}: size {facts['size']}; {known} of the queries' {facts['words']} words have a "
            f"vector ({facts['coverage']:.2%} of what is said)"
        )


def findings_table(findings: tuple[Finding, ...]) -> Table:
    """Returns the findings as a table, errors first."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("level", no_wrap=True)
    table.add_column("count", justify="right", no_wrap=True)
    table.add_column("what", overflow="fold", ratio=3)
    table.add_column("remedy", overflow="fold", ratio=2)
    for finding in findings:
        what = finding.what
        if any(example not in what for example in finding.examples[:_SHOWN]):
            more = ", ..." if finding.count > _SHOWN else ""
            what += f" ({', '.join(finding.examples[:_SHOWN])}{more})"
        style = _STYLES[finding.level]
        table.add_row(f"[{style}]{finding.level}[/{style}]", str(finding.count), escape(what), escape(finding.remedy))
    return table


def verdict(report: Report) -> str:
    """Returns the last line: whether training can start."""
    levels = [finding.level for finding in report.findings]
    if report.fails:
        return f"training would fail: {levels.count('error')} to mend"
    warnings = levels.count("warning")
    rest = " (features sampled; leave --quick out to read them all)" if report.quick else ""
    return f"ready to train{f', with {warnings} warnings' if warnings else ''}{rest}"
