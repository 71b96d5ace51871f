"""The doctor's report on the screen: the facts in a few lines, then a table of findings with their remedies."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich import box
from rich.markup import escape
from rich.table import Table

from cdn_tune.data.doctor import Finding, Report

STYLES = {"error": "bold red", "warning": "yellow", "info": "dim"}
SHOWN = 3


def fact_lines(report: Report) -> Iterator[str]:
    """Yields what was found, a line each."""
    if report.dataset is None:
        return
    edition = f", {report.variant}" if report.variant else ""
    yield f"{report.dataset}{edition}{' (planted data)' if report.planted else ''} in {report.root}"
    for split, counts in report.splits.items():
        skipped = f", {counts['skipped']} not used" if counts["skipped"] else ""
        yield f"  {split:<5} {counts['queries']} queries of {counts['videos']} videos{skipped}"
    yield from _feature_lines(report.features)
    yield from _word_lines(report.words)


def findings_table(findings: tuple[Finding, ...]) -> Table:
    """Returns the findings as a table, errors first."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("level", no_wrap=True)
    table.add_column("count", justify="right", no_wrap=True)
    table.add_column("what", overflow="fold", ratio=3)
    table.add_column("remedy", overflow="fold", ratio=2)
    for finding in findings:
        what = finding.what
        if finding.count > 1 and finding.examples:
            more = ", ..." if finding.count > SHOWN else ""
            what += f" ({', '.join(finding.examples[:SHOWN])}{more})"
        style = STYLES[finding.level]
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


def _feature_lines(facts: dict[str, Any]) -> Iterator[str]:
    if "size" in facts:
        yield (
            f"  features {facts['file']}: {facts['videos']} videos, size {facts['size']}, {facts['type']}, "
            f"{facts['rows_per_second']:g} rows a second; {facts['checked']} read"
        )


def _word_lines(facts: dict[str, Any]) -> Iterator[str]:
    if "size" in facts:
        known = facts["words"] - len(facts["unknown"])
        yield (
            f"  words {facts['file']}: size {facts['size']}; {known} of the queries' {facts['words']} words have a "
            f"vector ({facts['coverage']:.2%} of what is said)"
        )
