"""Names of videos that differ in case or in a file suffix alone, such as ``s13-d21.avi`` and ``S13-D21``."""

from collections.abc import Iterable
from pathlib import Path

from cdn_tune.config.tables import LAYOUTS
from cdn_tune.data.annotations import SPLITS
from cdn_tune.data.layouts import layout_of, recognise
from cdn_tune.errors import DataError

_SUFFIXES = (".avi", ".mp4", ".mkv", ".webm", ".mov", ".mpg", ".mpeg", ".npy", ".npz", ".pt")


def match_names(wanted: Iterable[str], present: Iterable[str]) -> dict[str, str]:
    """Returns the present name of each wanted video that has another one, where it is the only one that fits.

    Two names fit if they are equal without case and without the suffix of a video or array file.
    """
    wanted, present = set(wanted), set(present)
    others: dict[str, list[str]] = {}
    for name in sorted(present - wanted):
        others.setdefault(_plain(name), []).append(name)
    seekers: dict[str, list[str]] = {}
    for name in sorted(wanted - present):
        seekers.setdefault(_plain(name), []).append(name)
    return {
        names[0]: others[plain][0]
        for plain, names in seekers.items()
        if len(names) == 1 and len(others.get(plain, ())) == 1
    }


def annotated_videos(root: Path) -> set[str]:
    """Returns the videos that the annotations in a data folder name.

    Raises:
        DataError: If the folder has none of a known layout, or they are wrong.
    """
    root = Path(root).expanduser()
    found = recognise(root) if root.is_dir() else []
    if not found:
        raise DataError(f"{root}: no annotation files of a known layout ({', '.join(LAYOUTS)}); name the data folder")
    layout = layout_of(found[0])
    loaded = [layout.load(root, split) for split in SPLITS if any(file.is_file() for file in layout.files(root, split))]
    return {item.video for some in loaded for item in some.queries}


def _plain(name: str) -> str:
    name = name.casefold()
    return next((name.removesuffix(suffix) for suffix in _SUFFIXES if name.endswith(suffix)), name)
