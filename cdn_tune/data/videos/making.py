"""How features were made: by which backbone, with which weights, from which frames; an attribute of feature files.

A file as a whole has the attribute, and each video in it, so that a video that is copied elsewhere keeps it. Features
that others distribute have none, and nothing is said about them.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import h5py

from cdn_tune.data.files import brief, is_remote, parse_json
from cdn_tune.data.hdf5 import UNREADABLE, find, open_features
from cdn_tune.errors import DataError

ATTRIBUTE = "cdn_tune_making"
MOST_FPS = 120.0
_LONGEST = 8192  # characters of the attribute
_LONGEST_TEXT = 200  # characters of a text in it
_BOUNDS = {"fps": (1e-6, MOST_FPS), "window": (1, 1024), "stride": (0, 60), "size": (1, 8192)}


@dataclass(frozen=True)
class Making:
    """How features were made. Makings are equal, and their features belong together, whatever the `versions`.

    Attributes:
        backbone: Name, such as ``efficientnet_lite0``.
        weights: Digest of its weights.
        fps: Rows a second.
        window: Frames that a row is computed from: 1 of a backbone of images.
        stride: Seconds from one of these frames to the next; 0 where there is one.
        size: Pixels of the square that the backbone sees.
        versions: Of this package and of the libraries that decoded and computed.
    """

    backbone: str
    weights: str
    fps: float
    window: int
    stride: float
    size: int
    versions: Mapping[str, str] = field(compare=False)

    def __str__(self) -> str:
        window = f" of {self.window} frames, {self.stride:g} s apart," if self.window > 1 else ""
        return f"{self.backbone} (weights {self.weights[:8]}), {self.fps:g} rows a second{window} at {self.size} pixels"

    def plain(self) -> dict[str, Any]:
        """Returns it as a dict, ready for JSON."""
        return asdict(self)

    def differences(self, other: "Making") -> str:
        """Returns in what another one differs, such as ``fps 2 is 1``; empty if features of both belong together."""
        names = [each.name for each in fields(self) if each.compare]
        pairs = ((name, getattr(self, name), getattr(other, name)) for name in names)
        return ", ".join(f"{name} {mine} is {theirs}" for name, mine, theirs in pairs if mine != theirs)


def from_plain(values: Any) -> Making:
    """Returns what `Making.plain` gave.

    Raises:
        ValueError: If it is anything else.
    """
    kinds: dict[str, Any] = {
        "backbone": str,
        "weights": str,
        "fps": (int, float),
        "window": int,
        "stride": (int, float),
        "size": int,
    }
    if not isinstance(values, dict) or set(values) != {*kinds, "versions"}:
        raise ValueError(f"it does not name {', '.join(kinds)} and versions")
    for name, kind in kinds.items():
        if not isinstance(values[name], kind) or isinstance(values[name], bool):
            raise ValueError(f"{name} is {brief(ValueError(values[name]), 40)}")
    versions = values["versions"]
    if not isinstance(versions, dict) or not all(isinstance(version, str) for version in versions.values()):
        raise ValueError("versions are no texts by name")
    texts = (values["backbone"], values["weights"], *versions, *versions.values())
    if not all(len(text) <= _LONGEST_TEXT and text.isprintable() for text in texts):
        raise ValueError(f"texts are longer than {_LONGEST_TEXT} characters, or not printable")
    for name, (least, most) in _BOUNDS.items():
        if not least <= values[name] <= most:
            raise ValueError(f"{name} is not within {least:g} and {most:g}")
    return Making(**{**values, "fps": float(values["fps"]), "stride": float(values["stride"])})


def write_making(entry: Any, making: Making) -> None:
    """Gives an open HDF5 file or dataset the attribute."""
    entry.attrs[ATTRIBUTE] = json.dumps(making.plain(), ensure_ascii=True)


def making_of(entry: Any, where: str) -> Making | None:
    """Returns how an open HDF5 file or dataset says that its features were made, None if it does not say.

    Raises:
        DataError: If the attribute is no making; `where` starts the message.
    """
    try:
        if ATTRIBUTE not in entry.attrs:
            return None
        kept = entry.attrs[ATTRIBUTE]
        if not isinstance(kept, str) or len(kept) > _LONGEST:
            raise ValueError("it is no short text")
        return from_plain(parse_json(kept))
    except (*UNREADABLE, RecursionError) as error:
        raise DataError(
            f"{where}: attribute {ATTRIBUTE} does not tell how the features were made ({brief(error, 100)}); "
            "copy the file again, or extract them anew"
        ) from None


def read_making(path: Path) -> Making | None:
    """Returns how the features of a file were made; None if it does not say.

    Of a local file, every video is asked, too; those that do not say are taken to be made as the others.

    Raises:
        DataError: If it cannot be read, or holds features of different making.
    """
    with open_features(path) as file:
        makings = {making_of(file, str(path)): [], **({} if is_remote(path) else _makings(file, path))}
    said = [making for making in makings if making is not None]
    if len(said) > 1:
        raise DataError(
            f"{path}: video {makings[said[1]][0]!r} has features of another making ({said[0].differences(said[1])}), "
            "and no model can learn from a mixture; extract them all alike"
        )
    return said[0] if said else None


def makings_in(path: Path) -> dict[Making | None, list[str]]:
    """Returns how the videos of a file were made, each making with its videos; what a video says goes before the file.

    Raises:
        DataError: If it cannot be read.
    """
    with open_features(path) as file:
        return _makings(file, path)


def _makings(file: Any, path: Path) -> dict[Making | None, list[str]]:
    """Returns what `makings_in` does."""
    whole = making_of(file, str(path))
    try:
        videos = list(file)
    except UNREADABLE as error:
        raise DataError(f"{path}: cannot be listed ({brief(error)}); copy or convert it again") from None
    found: dict[Making | None, list[str]] = {}
    for video in videos:
        where = f"{path}: video {video!r}"
        try:
            entry = find(file, video, where)
        except (*UNREADABLE, DataError):
            continue  # what is wrong with it is told where it is read
        said = making_of(entry, where) if isinstance(entry, h5py.Dataset) else None
        found.setdefault(said or whole, []).append(video)
    return found
