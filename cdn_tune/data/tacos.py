"""TACoS as distributed with 2D-TAN: `{train,val,test}.json`, times in frames of the original video."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from cdn_tune.data.annotations import Annotation, Loaded, Skipped, Split, annotate, collect
from cdn_tune.data.files import read_text
from cdn_tune.errors import DataError

FEATURES = ("tall_c3d_features.hdf5",)
REMEDY = "check data.root, or download the TACoS annotations into it"
ENTRY = '{"timestamps": [[first, last], ...], "sentences": [...], "fps": ..., "num_frames": ...}'


def annotation_files(root: Path, split: Split) -> tuple[Path, ...]:
    """Returns the file `split` is read from."""
    return (root / f"{split}.json",)


def read_videos(path: Path) -> dict[str, Any]:
    """Returns the JSON object of a file, an entry per video.

    Raises:
        DataError: If the file is missing, empty, no JSON, or its top level is no object.
    """
    try:
        videos = json.loads(read_text(path, REMEDY))
    except json.JSONDecodeError as error:
        raise DataError(f"{path}:{error.lineno}: not valid JSON ({error.msg}); download or copy it again") from None
    if not isinstance(videos, dict):
        raise DataError(
            f"{path}: top level is a {type(videos).__name__}; expected an object with an entry per video: {ENTRY}"
        )
    return videos


def load(root: Path, split: Split) -> Loaded:
    """Returns what the file of `split` holds, in file order, times converted from frames to seconds.

    Raises:
        DataError: If the file is missing, empty or no JSON, or an entry is wrong; the message names file and video.
    """
    (path,) = annotation_files(root, split)
    items: list[Annotation | Skipped] = []
    for video, entry in read_videos(path).items():
        where = f"{path}: video {video!r}"
        if not isinstance(entry, dict) or not {"timestamps", "sentences", "fps", "num_frames"} <= entry.keys():
            raise DataError(f"{where}: keys are missing; write the entry as {ENTRY}")
        fps, frames = (_positive(entry[key], key, where) for key in ("fps", "num_frames"))
        spans, sentences = entry["timestamps"], entry["sentences"]
        if not isinstance(spans, list) or not isinstance(sentences, list) or len(spans) != len(sentences):
            raise DataError(
                f"{where}: 'timestamps' and 'sentences' are not two lists of one length; give one span a sentence"
            )
        for position, (span, query) in enumerate(zip(spans, sentences, strict=True)):
            if not (isinstance(span, list) and len(span) == 2 and all(_is_number(frame) for frame in span)):
                raise DataError(f"{where}: timestamps[{position}] is {span!r}; write [first frame, last frame]")
            if not isinstance(query, str):
                raise DataError(f"{where}: sentences[{position}] is {query!r}; write a string")
            items.append(
                annotate(path, f"{video}:{position}", video, frames / fps, span[0] / fps, span[1] / fps, query)
            )
    return collect(str(path), items)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _positive(value: Any, key: str, where: str) -> float:
    if not _is_number(value) or not value > 0:
        raise DataError(f"{where}: {key} is {value!r}; it must be a positive number")
    return float(value)
