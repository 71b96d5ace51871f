"""Recognising a data folder: which layout it has, and which edition of a dataset its counts tell."""

from __future__ import annotations

import json
from pathlib import Path

from cdn_tune.data.annotations import Split

# Pairs of train, val and test.
EDITIONS: dict[str, dict[tuple[int, int, int], str]] = {
    "tacos": {
        (9790, 4436, 4001): "the JSON files that 2D-TAN distributes (9 790/4 436/4 001 pairs)",
        (10146, 4589, 4083): "the original TALL split (10 146/4 589/4 083 pairs)",
    },
    "charades_sta": {(12408, 0, 3720): "the published files (12 408/3 720 pairs)"},
    "activitynet": {(37417, 17505, 17031): "2D-TAN's split (37 417/17 505/17 031 pairs)"},
}


def recognise(root: Path) -> list[str]:
    """Returns the layouts whose annotation files lie in a folder, best guess first."""
    found = []
    if any(root.glob("charades_sta_*.txt")):
        found.append("charades_sta")
    if any((root / f"{split}.jsonl").is_file() for split in ("train", "test")):
        found.append("jsonl")
    for split in ("train", "test", "val"):
        if (kind := _kind(root / f"{split}.json")) is not None:
            found.append(kind)
            break
    return found


def edition(dataset: str, usable: dict[Split, int], skipped: dict[Split, int]) -> str | None:
    """Returns which published edition of a dataset has these numbers of pairs; None if there is none.

    Args:
        dataset: Name of the layout.
        usable: Usable entries of each split that has files.
        skipped: Its entries that are not used; some published counts include them.
    """
    known = EDITIONS.get(dataset, {})
    splits: tuple[Split, ...] = ("train", "val", "test")
    used = [usable.get(split, 0) for split in splits]
    whole = [usable.get(split, 0) + skipped.get(split, 0) for split in splits]
    return known.get((used[0], used[1], used[2])) or known.get((whole[0], whole[1], whole[2]))


def _kind(path: Path) -> str | None:
    """Returns the layout of a JSON file with an entry per video, told by the first entry's keys."""
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError):
        return "tacos" if path.is_file() else None
    entries = list(content.values()) if isinstance(content, dict) else []
    first = entries[0] if entries and isinstance(entries[0], dict) else {}
    return "activitynet" if "duration" in first and "fps" not in first else "tacos"
