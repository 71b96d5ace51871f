"""What determines planted data, byte for byte: the options of a planting, and the real annotations that it uses."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cdn_tune.data.annotations import SPLITS
from cdn_tune.data.files import read_text, sha256
from cdn_tune.data.layouts import layout_of
from cdn_tune.data.planted import scenes, tabletop
from cdn_tune.data.planted.signal import Difficulty
from cdn_tune.errors import DataError

VERSION = 2
PRESETS: dict[str, dict[str, Any]] = {
    "planted-medium": {"snr": 0.7, "distractors": 2, "paraphrases": 0.15, "jitter": 0.05},
    "planted-hard": {"annotations": "tabletop", "frame_rate": 2.0},
}


@dataclass(frozen=True)
class Generated:
    """Annotations that are generated.

    Attributes:
        dataset: The layout in which they are written.
        generate: From the number of videos and the seed to the annotation files, name to text.
        videos: How many videos by default.
        least: How many at least, one a split.
        ordered: Whether the order of a query's words decides (see `signal.meaning`).
    """

    dataset: str
    generate: Callable[[int, int], dict[str, str]]
    videos: int
    least: int
    ordered: bool = False


GENERATED = {
    "generated": Generated("charades_sta", scenes.generate, videos=300, least=2),
    "tabletop": Generated("tacos", tabletop.generate, videos=125, least=3, ordered=True),
}


def preset(name: str) -> dict[str, Any]:
    """Returns the options of a preset, for `plant`.

    Raises:
        DataError: If the name is unknown.
    """
    if name not in PRESETS:
        raise DataError(f"preset={name}: unknown; choose one of {', '.join(PRESETS)}")
    return dict(PRESETS[name])


@dataclass(frozen=True)
class Planting:
    """What determines planted data, byte for byte. `source` is the SHA-256 of each real annotation file used."""

    version: int
    annotations: str
    source: dict[str, str]
    videos: int | None
    feature_size: int
    frame_rate: float
    snr: float
    seed: int
    word_size: int
    distractors: int
    paraphrases: float
    jitter: float

    @property
    def dataset(self) -> str:
        """Its layout."""
        return GENERATED[self.annotations].dataset if self.annotations in GENERATED else self.annotations

    @property
    def ordered(self) -> bool:
        """Whether the order of a query's words decides."""
        return self.annotations in GENERATED and GENERATED[self.annotations].ordered

    @property
    def difficulty(self) -> Difficulty:
        """How hard its moments are to find."""
        return Difficulty(self.snr, self.distractors, self.paraphrases, self.jitter)

    @property
    def key(self) -> str:
        """A digest of all of it."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()


def planting_of(
    annotations: str,
    source: Path | None,
    videos: int | None,
    feature_size: int,
    frame_rate: float,
    difficulty: Difficulty,
    seed: int,
    word_size: int,
) -> Planting:
    """Returns the planting of some options (see `plant`).

    Raises:
        DataError: If an option is wrong or the source lacks an annotation file.
    """
    generated = GENERATED.get(annotations)
    for name, value, least in (
        ("videos", videos, generated.least if generated else 2),
        ("feature_size", feature_size, 1),
        ("word_size", word_size, 3),
        ("seed", seed, 0),
        ("distractors", difficulty.distractors, 0),
    ):
        if value is not None and value < least:
            raise DataError(f"{name}={value}: must be at least {least}")
    for name, number in (("frame_rate", frame_rate), ("snr", difficulty.snr)):
        if not 0 < number < float("inf"):
            raise DataError(f"{name}={number}: must be a positive number")
    for name, number in (("paraphrases", difficulty.paraphrases), ("jitter", difficulty.jitter)):
        if not 0 <= number <= 1:
            raise DataError(f"{name}={number}: must be within 0 and 1")
    digests: dict[str, str] = {}
    if generated is not None:
        if source is not None:
            raise DataError(f"source={source}: {annotations} annotations have no source; leave it out")
        videos = generated.videos if videos is None else videos
    else:
        layout = layout_of(annotations)
        if source is None:
            raise DataError(f"annotations={annotations} needs source, the folder of the real annotation files")
        for path in (path for split in SPLITS for path in layout.files(Path(source), split)):
            if not path.is_file():
                remedy = f"source must be the folder of the {annotations} annotation files"
                raise DataError(f"{path}: no such file; {remedy}")
            digests[path.name] = sha256(path)
    return Planting(
        version=VERSION,
        annotations=annotations,
        source=digests,
        videos=videos,
        feature_size=feature_size,
        frame_rate=float(frame_rate),
        seed=seed,
        word_size=word_size,
        **asdict(difficulty),
    )


def annotation_files(planting: Planting, source: Path | None) -> dict[str, str]:
    """Returns the annotation files of a planting, generated or taken from `source`: name to text.

    Raises:
        DataError: If the files in `source` are missing or wrong, or hold too few videos.
    """
    if source is None:
        generated = GENERATED[planting.annotations]
        return generated.generate(planting.videos or generated.videos, planting.seed)
    return restrict(Path(source), planting.annotations, planting.videos, planting.seed)


def restrict(source: Path, dataset: str, videos: int | None, seed: int) -> dict[str, str]:
    """Returns the annotation files of `dataset` in `source`, restricted to some videos: name to text.

    The videos are chosen by a hash of seed and name, in each split in proportion to its size, at least one in each.
    Entries keep their text and order.

    Args:
        source: Folder of the real annotation files.
        dataset: Name of the layout.
        videos: How many videos to keep over all splits; all when None.
        seed: Determines which.

    Raises:
        DataError: If the files are missing or wrong, or hold fewer videos than `videos`.
    """
    layout = layout_of(dataset)
    splits = [split for split in SPLITS if layout.files(source, split)]
    if videos is None:
        return {path.name: read_text(path) for split in splits for path in layout.files(source, split)}
    names = {split: {item.video for item in layout.load(source, split).annotations} for split in splits}
    counts = apportion([len(names[split]) for split in splits], videos, source)
    files: dict[str, str] = {}
    for split, count in zip(splits, counts, strict=True):
        ranked = sorted(names[split], key=lambda video: hashlib.sha256(f"{seed}|keep|{video}".encode()).hexdigest())
        files |= layout.restrict(source, split, frozenset(ranked[:count]))
    return files


def apportion(sizes: list[int], total: int, source: Path | str = "source") -> list[int]:
    """Returns how many of `total` videos fall to each split, in proportion to `sizes`, at least one each.

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
