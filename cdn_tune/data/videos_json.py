"""JSON files with an entry per video that lists its moments and sentences, as TACoS and ActivityNet Captions have."""

import json
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from cdn_tune.data.annotations import Scanned, Split, annotate
from cdn_tune.data.files import read_text
from cdn_tune.errors import DataError

Moments = list[tuple[float, float, str] | DataError]


def annotation_files(root: Path, split: Split) -> tuple[Path, ...]:
    """Returns the file `split` is read from."""
    return (root / f"{split}.json",)


def first_entry(root: Path) -> dict[str, Any] | None:
    """Returns the first video's entry; an empty one if it cannot be read, None if there is no such file."""
    path = next((path for split in ("train", "test", "val") if (path := root / f"{split}.json").is_file()), None)
    if path is None:
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError):
        return {}
    entries = list(content.values()) if isinstance(content, dict) else []
    return entries[0] if entries and isinstance(entries[0], dict) else {}


def restrict(root: Path, split: Split, kept: frozenset[str]) -> dict[str, str]:
    """Returns the file of `split` with the entries of some videos only: name to text."""
    (path,) = annotation_files(root, split)
    videos = {video: entry for video, entry in json.loads(read_text(path)).items() if video in kept}
    return {path.name: json.dumps(videos) + "\n"}


def read_videos(path: Path, entry: str, remedy: str) -> dict[str, Any]:
    """Returns the JSON object of a file, an entry per video.

    Args:
        path: The file.
        entry: What an entry looks like, for errors.
        remedy: What to do when the file is missing.

    Raises:
        DataError: If the file is missing, empty, no JSON, or its top level is no object.
    """
    try:
        videos = json.loads(read_text(path, remedy))
    except json.JSONDecodeError as error:
        raise DataError(f"{path}:{error.lineno}: not valid JSON ({error.msg}); download or copy it again") from None
    if not isinstance(videos, dict):
        raise DataError(
            f"{path}: top level is a {type(videos).__name__}; expected an object with an entry per video: {entry}"
        )
    return videos


def moments_of(entry: Any, keys: Collection[str], unit: str, where: str, example: str) -> Moments:
    """Returns (first, last, sentence) of each moment of a video's entry, wrong ones as errors.

    Args:
        entry: The entry.
        keys: Keys it must have besides `timestamps` and `sentences`.
        unit: Of the times, for errors.
        where: File and video, for errors.
        example: What an entry looks like, for errors.

    Raises:
        DataError: If keys are missing, or times and sentences do not go together.
    """
    if not isinstance(entry, dict) or not {"timestamps", "sentences", *keys} <= entry.keys():
        raise DataError(f"{where}: keys are missing; write the entry as {example}")
    spans, sentences = entry["timestamps"], entry["sentences"]
    if not isinstance(spans, list) or not isinstance(sentences, list) or len(spans) != len(sentences):
        raise DataError(
            f"{where}: 'timestamps' and 'sentences' are not two lists of one length; give one span a sentence"
        )
    moments: Moments = []
    for position, (span, query) in enumerate(zip(spans, sentences, strict=True)):
        if not (isinstance(span, list) and len(span) == 2 and all(map(_is_number, span))):
            error = f"timestamps[{position}] is {span!r}; write [first {unit}, last {unit}]"
            moments.append(DataError(f"{where}: {error}"))
        elif not isinstance(query, str):
            moments.append(DataError(f"{where}: sentences[{position}] is {query!r}; write a string"))
        else:
            moments.append((float(span[0]), float(span[1]), query))
    return moments


def scan_video(
    path: Path,
    video: str,
    duration: float,
    moments: Moments,
    per_second: float = 1.0,
    known_faults: Collection[tuple[str, float, float]] = (),
) -> Iterator[Scanned]:
    """Yields the annotations of one video, wrong ones as errors.

    Args:
        path: The file.
        video: Name of the video.
        duration: Its length, in seconds.
        moments: As `moments_of` returns them.
        per_second: Units of the moments' times in a second.
        known_faults: See `annotate`.
    """
    for position, moment in enumerate(moments):
        if isinstance(moment, DataError):
            yield moment
            continue
        start, end, query = moment
        try:
            yield annotate(
                path,
                f"{video}:{position}",
                video,
                duration,
                start / per_second,
                end / per_second,
                query,
                known_faults=known_faults,
            )
        except DataError as error:
            yield error


def positive(value: Any, key: str, where: str) -> float:
    """Returns a number above 0.

    Raises:
        DataError: If it is none.
    """
    if not _is_number(value) or not value > 0:
        raise DataError(f"{where}: {key} is {value!r}; it must be a positive number")
    return float(value)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
