"""Real annotation files, restricted to some of their videos, in the same layout."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from pathlib import Path

from cdn_tune.data import charades
from cdn_tune.data.annotations import SPLITS, Split
from cdn_tune.data.files import read_text
from cdn_tune.data.layouts import layout_of
from cdn_tune.errors import DataError


def restrict(source: Path, dataset: str, videos: int | None, seed: int) -> dict[str, str]:
    """Returns the annotation files of `dataset` in `source`, restricted to some videos: name to text.

    The videos are chosen by a hash of seed and name, in each split in proportion to its size, at least one in each.
    Entries keep their text and order.

    Args:
        source: Folder of the real annotation files.
        dataset: Name of the layout.
        videos: How many videos to keep over all splits; all when None.
        seed: Chooses them.

    Raises:
        DataError: If the files are missing or wrong, or hold fewer videos than asked for.
    """
    layout = layout_of(dataset)
    splits = [split for split in SPLITS if layout.files(source, split)]
    if videos is None:
        return {path.name: read_text(path) for split in splits for path in layout.files(source, split)}
    names = {split: {item.video for item in layout.load(source, split).annotations} for split in splits}
    sizes = [len(names[split]) for split in splits]
    counts = apportion(sizes, videos, source)
    write = {"charades_sta": _charades, "tacos": _videos, "activitynet": _videos, "jsonl": _jsonl}[dataset]
    files: dict[str, str] = {}
    for split, count in zip(splits, counts, strict=True):
        ranked = sorted(names[split], key=lambda video: hashlib.sha256(f"{seed}|keep|{video}".encode()).hexdigest())
        files |= write(source, split, frozenset(ranked[:count]))
    return files


def apportion(sizes: list[int], total: int, source: Path | str = "source") -> list[int]:
    """Returns how many of `total` fall to each part, in proportion to `sizes`, at least one each.

    Args:
        sizes: Number of videos in each split.
        total: Number of videos wanted.
        source: Named in errors.

    Raises:
        DataError: If `total` is below the number of parts or above the sum of the sizes.
    """
    if not len(sizes) <= total <= sum(sizes):
        raise DataError(f"videos={total}: {source} has {sum(sizes)} videos; choose {len(sizes)} to {sum(sizes)}")
    exact = [total * size / sum(sizes) for size in sizes]
    counts = [max(1, int(share)) for share in exact]
    while sum(counts) != total:
        step = 1 if sum(counts) < total else -1
        gaps = [
            step * (share - count) if 1 <= count + step <= size else -float("inf")
            for share, count, size in zip(exact, counts, sizes, strict=True)
        ]
        counts[gaps.index(max(gaps))] += step
    return counts


def _charades(source: Path, split: Split, kept: frozenset[str]) -> dict[str, str]:
    sentences, table = charades.annotation_files(source, split)
    lines = [line for line in read_text(sentences).split("\n") if line.split(" ", 1)[0] in kept]
    rows = csv.reader(io.StringIO(read_text(table)))
    header = next(rows)
    column = header.index("id")
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(row for row in rows if row and row[column] in kept)
    return {sentences.name: "\n".join(lines) + "\n", table.name: text.getvalue()}


def _videos(source: Path, split: Split, kept: frozenset[str]) -> dict[str, str]:
    name = f"{split}.json"
    videos = {video: entry for video, entry in json.loads(read_text(source / name)).items() if video in kept}
    return {name: json.dumps(videos) + "\n"}


def _jsonl(source: Path, split: Split, kept: frozenset[str]) -> dict[str, str]:
    name = f"{split}.jsonl"
    lines = [line for line in read_text(source / name).split("\n") if line.strip()]
    return {name: "".join(f"{line}\n" for line in lines if json.loads(line)["video"] in kept)}
