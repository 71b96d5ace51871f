"""Sizes and durations as text, and the two plain kinds of table."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from rich import box
from rich.markup import escape
from rich.table import Table

UNKNOWN = "--"
_KIB = 1 << 10


def size_text(size: float) -> str:
    """Returns a number of bytes as KiB, MiB, GiB or TiB."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < _KIB:
            return f"{size:.0f} {unit}" if unit == "B" or size >= 100 else f"{size:.3g} {unit}"
        size /= _KIB
    return f"{size:.3g} TiB"


def duration_text(seconds: float) -> str:
    """Returns a duration in its two largest units: ``2 d 3 h``, ``1 h 5 min``, ``2 min 7 s``, ``12.3 s``, ``45 ms``."""
    if seconds < 1:
        return f"{1000 * seconds:.0f} ms"
    if seconds < 60:
        return f"{seconds:.3g} s"
    for size, unit, part, small in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        rounded = round(seconds / part) * part
        if rounded >= size:
            rest = rounded % size // part
            return f"{rounded // size} {unit}" + (f" {rest} {small}" if rest else "")
    return f"{seconds:.3g} s"


def head_table(*heads: str, right: Collection[str] = (), fold: Collection[str] | bool = ()) -> Table:
    """Returns an empty table with heads.

    Args:
        heads: Of the columns.
        right: Which of them are justified to the right.
        fold: Which of them, or whether all, may run over several lines.
    """
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1))
    for head in heads:
        folds = fold if isinstance(fold, bool) else head in fold
        table.add_column(head, justify="right" if head in right else "left", overflow="fold", no_wrap=not folds)
    return table


def facts_table(facts: Iterable[tuple[str, str]]) -> Table:
    """Returns (name, text) facts as a table without heads."""
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for head, text in facts:
        table.add_row(head, escape(text))
    return table
