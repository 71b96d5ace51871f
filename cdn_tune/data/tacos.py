"""TACoS as distributed with 2D-TAN: `{train,val,test}.json`, times in frames of the original video."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from cdn_tune.data.annotations import Loaded, Scanned, Split, collect
from cdn_tune.data.videos_json import annotation_files, moments_of, positive, read_videos, scan_video
from cdn_tune.errors import DataError

FEATURES = ("tall_c3d_features.hdf5",)
REMEDY = "check data.root, or download the TACoS annotations into it"
ENTRY = '{"timestamps": [[first, last], ...], "sentences": [...], "fps": ..., "num_frames": ...}'


def scan(root: Path, split: Split) -> Iterator[Scanned]:
    """Yields what the file of `split` holds, times converted from frames to seconds, wrong entries as errors.

    Raises:
        DataError: If the file is missing, empty or no JSON object.
    """
    (path,) = annotation_files(root, split)
    for video, entry in read_videos(path, ENTRY, REMEDY).items():
        where = f"{path}: video {video!r}"
        try:
            moments = moments_of(entry, ("fps", "num_frames"), "frame", where, ENTRY)
            fps, frames = (positive(entry[key], key, where) for key in ("fps", "num_frames"))
        except DataError as error:
            yield error
            continue
        yield from scan_video(path, video, frames / fps, moments, fps)


def load(root: Path, split: Split) -> Loaded:
    """Returns what the file of `split` holds, in file order, times converted from frames to seconds.

    Raises:
        DataError: If the file is missing, empty or no JSON, or an entry is wrong; the message names file and video.
    """
    return collect(str(annotation_files(root, split)[0]), scan(root, split))
