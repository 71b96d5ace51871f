"""Recognising a data folder: which layout it has, and which edition of a dataset its counts tell."""

from pathlib import Path

from cdn_tune.config.tables import LAYOUTS
from cdn_tune.data.annotations import SPLITS, Split
from cdn_tune.data.layouts import Layout, layout_of


def recognise(root: Path) -> list[str]:
    """Returns the layouts whose annotation files lie in a folder, in the order of the table."""
    return [name for name in LAYOUTS if layout_of(name).recognise(root)]


def edition(layout: Layout, usable: dict[Split, int], skipped: dict[Split, int]) -> str | None:
    """Returns which published edition of a dataset has these numbers of pairs; None if there is none.

    Args:
        layout: The layout.
        usable: Usable entries of each split that has files.
        skipped: Its entries that are not used; some published counts include them.
    """
    used = [usable.get(split, 0) for split in SPLITS]
    whole = [usable.get(split, 0) + skipped.get(split, 0) for split in SPLITS]
    return layout.editions.get((used[0], used[1], used[2])) or layout.editions.get((whole[0], whole[1], whole[2]))
