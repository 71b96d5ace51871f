"""Real annotation files, restricted to some of their videos, in the same layout."""

import hashlib
from pathlib import Path

from cdn_tune.data.annotations import SPLITS
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
    files: dict[str, str] = {}
    for split, count in zip(splits, counts, strict=True):
        ranked = sorted(names[split], key=lambda video: hashlib.sha256(f"{seed}|keep|{video}".encode()).hexdigest())
        files |= layout.restrict(source, split, frozenset(ranked[:count]))
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
