"""TACoS and ActivityNet Captions as 2D-TAN distributes them: `{train,val,test}.json` with an entry per video.

An entry lists the video's moments and sentences. TACoS gives times in frames of the original video, ActivityNet
Captions in seconds; the val and test splits of the latter are two annotators' sentences about the same videos.
"""

import json
from collections.abc import Callable, Collection, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from cdn_tune.data.annotations import Scanned, Split, annotate
from cdn_tune.data.files import brief, parse_json, read_text
from cdn_tune.data.layouts import Layout
from cdn_tune.errors import DataError

TACOS_ENTRY = '{"timestamps": [[first, last], ...], "sentences": [...], "fps": ..., "num_frames": ...}'
ACTIVITYNET_ENTRY = '{"duration": ..., "timestamps": [[start, end], ...], "sentences": [...]}'

# Two moments of ActivityNet's published training file end before they start; the published loaders drop them.
KNOWN_FAULTS = frozenset({("v_0bosp4-pyTM", 61.29, 60.71), ("v_rhOtqArO-3Y", 173.44, 150.31)})


def annotation_files(root: Path, split: Split) -> tuple[Path, ...]:
    """Returns the file `split` is read from."""
    return (root / f"{split}.json",)


def restrict(root: Path, split: Split, kept: frozenset[str]) -> dict[str, str]:
    """Returns the file of `split` with the entries of some videos only: name to text."""
    (path,) = annotation_files(root, split)
    return {path.name: restrict_file(path, kept)}


def restrict_file(path: Path, kept: frozenset[str]) -> str:
    """Returns the text of a file with the entries of some videos only."""
    videos = {video: entry for video, entry in parse_json(read_text(path)).items() if video in kept}
    return json.dumps(videos) + "\n"


def scan(root: Path, split: Split, **reading: Any) -> Iterator[Scanned]:
    """Yields the moments of `split`, wrong entries as errors; see `scan_file`."""
    (path,) = annotation_files(root, split)
    yield from scan_file(path, **reading)


def scan_file(
    path: Path,
    *,
    dataset: str,
    keys: Collection[str],
    unit: str,
    example: str,
    timing: Callable[..., tuple[float, float]],
    known_faults: Collection[tuple[str, float, float]] = (),
) -> Iterator[Scanned]:
    """Yields the moments in a file, times converted to seconds, wrong entries as errors.

    Args:
        path: The file.
        dataset: Name of the dataset, for errors.
        keys: Keys that a video's entry must have besides `timestamps` and `sentences`; positive numbers.
        unit: Unit of the times, for errors.
        example: An entry, for errors.
        timing: From the values of `keys` to the duration in seconds and the number of units in a second.
        known_faults: See `annotate`.

    Raises:
        DataError: If the file is missing, empty, no JSON, or its top level is no object.
    """
    try:
        videos = parse_json(read_text(path, f"check data.root, or download the {dataset} annotations into it"))
    except json.JSONDecodeError as error:
        raise DataError(f"{path}:{error.lineno}: not valid JSON ({error.msg}); download or copy it again") from None
    except ValueError as error:
        raise DataError(f"{path}: not usable JSON ({brief(error)}); download or copy it again") from None
    if not isinstance(videos, dict):
        raise DataError(
            f"{path}: top level is a {type(videos).__name__}; expected an object with an entry per video: {example}"
        )
    for video, entry in videos.items():
        where = f"{path}: video {video!r}"
        try:
            moments = _moments_of(entry, keys, unit, where, example)
            duration, per_second = timing(*(_positive(entry[key], key, where) for key in keys))
        except DataError as error:
            yield error
            continue
        for position, moment in enumerate(moments):
            try:
                if isinstance(moment, DataError):
                    raise moment
                start, end = moment[0] / per_second, moment[1] / per_second
                place = f"{video}:{position}"
                yield annotate(path, place, video, duration, start, end, moment[2], known_faults=known_faults)
            except DataError as error:
                yield error


def _moments_of(
    entry: Any, keys: Collection[str], unit: str, where: str, example: str
) -> list[tuple[float, float, str] | DataError]:
    """Returns (first, last, sentence) of each moment of a video's entry, wrong ones as errors.

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
    moments: list[tuple[float, float, str] | DataError] = []
    for position, (span, query) in enumerate(zip(spans, sentences, strict=True)):
        if not (isinstance(span, list) and len(span) == 2 and all(map(_is_number, span))):
            error = f"timestamps[{position}] is {span!r}; write [first {unit}, last {unit}]"
            moments.append(DataError(f"{where}: {error}"))
        elif not isinstance(query, str):
            moments.append(DataError(f"{where}: sentences[{position}] is {query!r}; write a string"))
        else:
            try:
                moments.append((float(span[0]), float(span[1]), query))
            except OverflowError:
                moments.append(DataError(f"{where}: timestamps[{position}] is too large; correct or remove it"))
    return moments


def _positive(value: Any, key: str, where: str) -> float:
    if not _is_number(value) or not value > 0:
        raise DataError(f"{where}: {key} is {value!r}; it must be a positive number")
    try:
        return float(value)
    except OverflowError:
        raise DataError(f"{where}: {key} is too large for a number; correct or remove it") from None


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_activitynet(root: Path) -> bool | None:
    """Returns whether the first video's entry gives a duration but no frame rate; None if the folder has no file."""
    path = next((path for split in ("train", "test", "val") if (path := root / f"{split}.json").is_file()), None)
    if path is None:
        return None
    try:
        content = parse_json(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError):
        return False
    entries = list(content.values()) if isinstance(content, dict) else []
    first = entries[0] if entries and isinstance(entries[0], dict) else {}
    return "duration" in first and "fps" not in first


TACOS = Layout(
    features=("tall_c3d_features.hdf5",),
    files=annotation_files,
    scan=partial(
        scan,
        dataset="TACoS",
        keys=("fps", "num_frames"),
        unit="frame",
        example=TACOS_ENTRY,
        timing=lambda fps, frames: (frames / fps, fps),
    ),
    recognise=lambda root: _is_activitynet(root) is False,
    restrict=restrict,
    raw="tacos_c3d",
    ious=(0.1, 0.3, 0.5),
    editions={
        (9790, 4436, 4001): "the JSON files that 2D-TAN distributes (9 790/4 436/4 001 pairs)",
        (10146, 4589, 4083): "the original TALL split (10 146/4 589/4 083 pairs)",
    },
)

ACTIVITYNET = Layout(
    features=("sub_activitynet_v1-3.c3d.hdf5",),
    files=annotation_files,
    scan=partial(
        scan,
        dataset="ActivityNet Captions",
        keys=("duration",),
        unit="second",
        example=ACTIVITYNET_ENTRY,
        timing=lambda duration: (duration, 1.0),
        known_faults=KNOWN_FAULTS,
    ),
    recognise=lambda root: _is_activitynet(root) is True,
    restrict=restrict,
    member="c3d_features",  # in a group per video, [frames, 500]
    editions={(37417, 17505, 17031): "2D-TAN's split (37 417/17 505/17 031 pairs)"},
    shared={("val", "test"): "two annotators described them"},
)
