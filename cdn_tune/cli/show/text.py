"""Sizes and durations as text."""

from __future__ import annotations

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
