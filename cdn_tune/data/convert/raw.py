"""Raw features: which files hold a video's rows, in which order, and how they are read.

Letters: N rows of a video, D feature size.
"""

import pickle
import re
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from cdn_tune.errors import DataError

Rows = npt.NDArray[np.float32]
_WINDOW = re.compile(r"(?P<video>.+?)_(?P<first>\d+)(?:_(?P<last>\d+))?")


@dataclass(frozen=True)
class Form:
    """One way in which raw features come.

    Attributes:
        about: What it looks like.
        files: The files of each video in a folder, in the order of its rows.
    """

    about: str
    files: Callable[[Path], dict[str, list[Path]]]


def charades_files(source: Path) -> dict[str, list[Path]]:
    """Returns the text files of each video's folder, ordered by the numbers in their names."""
    folders = (folder for folder in sorted(source.iterdir()) if folder.is_dir() and not folder.name.startswith("."))
    return {folder.name: sorted(folder.glob("*.txt"), key=_natural) for folder in folders}


def window_files(source: Path) -> dict[str, list[Path]]:
    """Returns the ``VIDEO_FIRST_LAST.npy`` (or ``VIDEO_FIRST.npy``) files of each video, ordered by first frame.

    They may lie in one folder or in a folder per video.

    Raises:
        DataError: If a name has no window.
    """
    files: dict[str, list[tuple[int, Path]]] = {}
    for path in sorted(source.rglob("*.npy")):
        match = _WINDOW.fullmatch(path.stem)
        if match is None:
            raise DataError(f"{path}: no window in its name; name it VIDEO_FIRSTFRAME_LASTFRAME.npy")
        files.setdefault(match["video"], []).append((int(match["first"]), path))
    return {video: [path for _, path in sorted(some)] for video, some in sorted(files.items())}


def array_files(source: Path) -> dict[str, list[Path]]:
    """Returns the one ``.npy``, ``.npz`` or ``.pt`` file of each video, named after it.

    Raises:
        DataError: If a video has two.
    """
    files: dict[str, list[Path]] = {}
    for path in sorted(path for path in source.iterdir() if path.suffix in {".npy", ".npz", ".pt"}):
        if path.stem in files:
            raise DataError(f"{path}: video {path.stem!r} also has {files[path.stem][0].name}; remove one of them")
        files[path.stem] = [path]
    return files


FORMS: dict[str, Form] = {
    "charades_vgg": Form("a folder per video of text files, a vector each (Charades VGG)", charades_files),
    "tacos_c3d": Form("VIDEO_FIRST_LAST.npy, a vector per window (TACoS C3D)", window_files),
    "arrays": Form("VIDEO.npy, VIDEO.npz or VIDEO.pt, an array [rows, size] per video", array_files),
}


def read_rows(files: list[Path]) -> Rows:
    """Returns the rows of a video, float32 [N, D], of the files that hold them, in their order.

    Raises:
        DataError: If there is none, one cannot be read, their sizes differ, or a value is not finite.
    """
    parts: list[Rows] = []
    for path in files:
        part = _read(path)
        if part.ndim == 1:
            part = part[None]
        if part.ndim != 2 or not part.size:
            raise DataError(f"{path}: has shape {list(part.shape)}; expected [rows, size] with at least one row")
        if parts and part.shape[1] != parts[0].shape[1]:
            raise DataError(
                f"{path}: has vectors of size {part.shape[1]}, {files[0].name} of {parts[0].shape[1]}; extract it again"
            )
        with np.errstate(over="ignore"):
            part = part.astype(np.float32, copy=False)
        if not np.isfinite(part).all():
            row = int(np.argwhere(~np.isfinite(part))[0][0])
            raise DataError(f"{path}: a value in row {row} is not finite; extract it again")
        parts.append(part)
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _read(path: Path) -> npt.NDArray[np.floating]:
    try:
        values = _content(path)
    except (
        OSError,
        ValueError,
        TypeError,
        RuntimeError,
        EOFError,
        zipfile.BadZipFile,
        pickle.UnpicklingError,
    ) as error:
        raise DataError(
            f"{path}: cannot be read ({' '.join(str(error).split())[:120]}); copy or extract it again"
        ) from None
    if values.dtype.kind not in "fiu":
        raise DataError(f"{path}: holds {values.dtype} values; expected floats")
    return values


def _content(path: Path) -> npt.NDArray[np.floating]:
    values: npt.NDArray[np.floating]
    if path.suffix == ".txt":
        values = np.array(path.read_text(encoding="utf-8-sig").split(), dtype=np.float32)
    elif path.suffix == ".pt":
        values = torch.as_tensor(torch.load(path, map_location="cpu", weights_only=True)).float().numpy()
    elif path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as arrays:
            if len(arrays.files) != 1:
                raise DataError(f"{path}: holds {len(arrays.files)} arrays ({', '.join(arrays.files)}); keep one")
            values = arrays[arrays.files[0]]
    else:
        values = np.load(path, allow_pickle=False)
    return values


def _natural(path: Path) -> list[tuple[int, str]]:
    """Sorts numbers in names by value: frame 10 comes after frame 9."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", path.name)]
