"""TACoS as distributed with 2D-TAN: `{train,val,test}.json`, times in frames of the original video."""

from collections.abc import Iterator
from pathlib import Path

from cdn_tune.data.annotations import Scanned, Split
from cdn_tune.data.layouts import Layout
from cdn_tune.data.videos_json import (
    annotation_files,
    first_entry,
    moments_of,
    positive,
    read_videos,
    restrict,
    scan_video,
)
from cdn_tune.errors import DataError

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


def recognise(root: Path) -> bool:
    """Returns whether a folder has files with an entry per video whose keys are not ActivityNet Captions'."""
    entry = first_entry(root)
    return entry is not None and ("duration" not in entry or "fps" in entry)


LAYOUT = Layout(
    features=("tall_c3d_features.hdf5",),
    files=annotation_files,
    scan=scan,
    recognise=recognise,
    restrict=restrict,
    raw="tacos_c3d",
    ious=(0.1, 0.3, 0.5),
    editions={
        (9790, 4436, 4001): "the JSON files that 2D-TAN distributes (9 790/4 436/4 001 pairs)",
        (10146, 4589, 4083): "the original TALL split (10 146/4 589/4 083 pairs)",
    },
)
