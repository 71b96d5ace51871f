"""The options of a planting: what determines planted data, byte for byte."""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cdn_tune.data.annotations import SPLITS
from cdn_tune.data.files import sha256
from cdn_tune.data.layouts import layout_of
from cdn_tune.data.planted.difficulty import Difficulty
from cdn_tune.errors import DataError

VERSION = 2
GENERATED_VIDEOS = 300
PRESETS: dict[str, dict[str, Any]] = {
    "planted-medium": {"snr": 0.7, "distractors": 2, "paraphrases": 0.15, "jitter": 0.05}
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
    """Returns the planting that some options ask for (see `plant`).

    Raises:
        DataError: If an option is wrong or the source lacks an annotation file.
    """
    for name, value, least in (
        ("videos", videos, 2),
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
    if annotations == "generated":
        if source is not None:
            raise DataError(f"source={source}: generated annotations have no source; leave it out or name a dataset")
        videos = GENERATED_VIDEOS if videos is None else videos
    else:
        layout = layout_of(annotations)
        if source is None:
            raise DataError(f"annotations={annotations} needs source, the folder of the real annotation files")
        for path in (path for split in SPLITS for path in layout.files(Path(source), split)):
            if not path.is_file():
                raise DataError(
                    f"{path}: no such file; source must be the folder of the {annotations} annotation files"
                )
            digests[path.name] = sha256(path)
    return Planting(
        VERSION,
        annotations,
        digests,
        videos,
        feature_size,
        float(frame_rate),
        difficulty.snr,
        seed,
        word_size,
        difficulty.distractors,
        difficulty.paraphrases,
        difficulty.jitter,
    )
