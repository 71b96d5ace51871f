"""Charades-CD and ActivityNet-CD: the same videos and sentences, split so that test asks for other moments than train.

Of Yuan et al., A Closer Look at Temporal Sentence Grounding in Videos: Datasets and Metrics, 2021. Test has two parts:
in ``iid`` moments lie where those of train do, in ``ood`` elsewhere, so that a model that only knows where moments
usually lie does well in the first part alone. Train and val are of one distribution; choosing is done on val as ever.
"""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from cdn_tune.data.annotations import Annotation, Scanned, Skipped, Split
from cdn_tune.data.layouts import Layout
from cdn_tune.data.videos_json import KNOWN_FAULTS, restrict_file, scan_file

PARTS = ("iid", "ood")
CHARADES_ENTRY = '{"video_duration": ..., "timestamps": [[start, end], ...], "sentences": [...]}'
ACTIVITYNET_ENTRY = '{"duration": ..., "timestamps": [[start, end], ...], "sentences": [...]}'


def annotation_files(root: Path, split: Split, *, prefix: str) -> tuple[Path, ...]:
    """Returns the files `split` is read from; of test, one for each part."""
    names = [f"test_{part}" for part in PARTS] if split == "test" else [split]
    return tuple(root / f"{prefix}_{name}.json" for name in names)


def scan(root: Path, split: Split, *, prefix: str, **reading: Any) -> Iterator[Scanned]:
    """Yields the moments of `split`, those of test with their part, wrong entries as errors.

    Args:
        root: The data folder.
        split: The split.
        prefix: Of the files' names.
        reading: How a file is read: see `videos_json.scan_file`.

    Raises:
        DataError: If a file is missing, empty, no JSON, or its top level is no object.
    """
    files = annotation_files(root, split, prefix=prefix)
    for path, part in zip(files, PARTS if split == "test" else (None,), strict=True):
        for item in scan_file(path, **reading):
            if isinstance(item, Annotation):
                yield replace(item, part=part)
            elif isinstance(item, Skipped):
                yield replace(item, query=replace(item.query, part=part))
            else:
                yield item


def restrict(root: Path, split: Split, kept: frozenset[str], *, prefix: str) -> dict[str, str]:
    """Returns the files of `split` with the entries of some videos only: name to text."""
    return {path.name: restrict_file(path, kept) for path in annotation_files(root, split, prefix=prefix)}


CHARADES = Layout(
    features=("vgg_rgb_features.hdf5", "charades_vgg_rgb.hdf5"),
    files=partial(annotation_files, prefix="charades"),
    scan=partial(
        scan,
        prefix="charades",
        dataset="Charades-CD",
        keys=("video_duration",),
        unit="second",
        example=CHARADES_ENTRY,
        timing=lambda duration: (duration, 1.0),
    ),
    recognise=lambda root: any(root.glob("charades_test_*.json")),
    restrict=partial(restrict, prefix="charades"),
    raw="charades_vgg",
    editions={(11071, 859, 4198): "the published files (11 071/859/823 + 3 375 pairs)"},
)

ACTIVITYNET = Layout(
    features=("sub_activitynet_v1-3.c3d.hdf5",),
    files=partial(annotation_files, prefix="anet"),
    scan=partial(
        scan,
        prefix="anet",
        dataset="ActivityNet-CD",
        keys=("duration",),
        unit="second",
        example=ACTIVITYNET_ENTRY,
        timing=lambda duration: (duration, 1.0),
        known_faults=KNOWN_FAULTS,
    ),
    recognise=lambda root: any(root.glob("anet_test_*.json")),
    restrict=partial(restrict, prefix="anet"),
    member="c3d_features",
    editions={(51415, 3521, 17021): "the published files (51 415/3 521/3 443 + 13 578 pairs)"},
)
