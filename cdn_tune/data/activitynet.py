"""ActivityNet Captions as 2D-TAN splits it: `{train,val,test}.json`, times in seconds.

Its val and test are two annotators' sentences about the same videos, so these two splits share videos. Features are
`sub_activitynet_v1-3.c3d.hdf5`, a group per video with the dataset `c3d_features`, [frames, 500].
"""

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

REMEDY = "check data.root, or download the ActivityNet Captions annotations into it"
ENTRY = '{"duration": ..., "timestamps": [[start, end], ...], "sentences": [...]}'

# Two moments of the published training file end before they start; the published loaders drop them.
KNOWN_FAULTS = frozenset({("v_0bosp4-pyTM", 61.29, 60.71), ("v_rhOtqArO-3Y", 173.44, 150.31)})


def scan(root: Path, split: Split) -> Iterator[Scanned]:
    """Yields what the file of `split` holds, wrong entries as errors.

    Raises:
        DataError: If the file is missing, empty or no JSON object.
    """
    (path,) = annotation_files(root, split)
    for video, entry in read_videos(path, ENTRY, REMEDY).items():
        where = f"{path}: video {video!r}"
        try:
            moments = moments_of(entry, ("duration",), "second", where, ENTRY)
            duration = positive(entry["duration"], "duration", where)
        except DataError as error:
            yield error
            continue
        yield from scan_video(path, video, duration, moments, known_faults=KNOWN_FAULTS)


def recognise(root: Path) -> bool:
    """Returns whether a folder has files with an entry per video that gives its duration in seconds."""
    entry = first_entry(root)
    return entry is not None and "duration" in entry and "fps" not in entry


LAYOUT = Layout(
    features=("sub_activitynet_v1-3.c3d.hdf5",),
    files=annotation_files,
    scan=scan,
    recognise=recognise,
    restrict=restrict,
    member="c3d_features",
    editions={(37417, 17505, 17031): "2D-TAN's split (37 417/17 505/17 031 pairs)"},
    shared={("val", "test"): "two annotators described them"},
)
