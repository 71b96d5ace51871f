"""HDF5 files of features: opened, and every dataset checked before any of it is read.

Such a file may come from anyone. What it declares is held against the bytes that it stores, so that none asks for more
memory than its data need; and what makes HDF5 read other files (external links, external storage, virtual datasets) is
refused, unless the environment says CDN_TUNE_HDF5_EXTERNAL=1.
"""

import math
import os
from pathlib import Path
from typing import Any

import h5py

from cdn_tune.data.files import brief, is_remote
from cdn_tune.errors import DataError

EXTERNAL = "CDN_TUNE_HDF5_EXTERNAL"
UNREADABLE = (OSError, RuntimeError, KeyError, TypeError, ValueError)  # what h5py raises on damaged files

_CHUNK_BYTES = 512 << 20  # of a chunk, which is decompressed whole
_SMALL_BYTES = 256 << 20  # a dataset up to this size may be compressed as well as it can
_RATIO = 100  # of declared to stored bytes of a larger one; features compress ten times at best
_SOFT_LINKS = 16  # followed in a row, as HDF5 does


def open_features(path: Path) -> Any:
    """Returns the open HDF5 file, for reading.

    Raises:
        DataError: If it is missing, empty, truncated, being written, or no HDF5 file.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such feature file; put it there or set data.features to its path")
    if path.stat().st_size == 0:
        raise DataError(f"{path}: the feature file is empty (0 bytes); copy or convert it again")
    try:
        if is_remote(path):
            return h5py.File(path.open("rb"), "r")
        return h5py.File(path, "r", locking="best-effort")
    except (OSError, ValueError) as error:
        if "unable to lock file" in str(error) or "already open for write" in str(error):
            raise DataError(
                f"{path}: is open for writing in another process; wait until that has closed it, or end it "
                f"(if it was killed: h5clear -s {path})"
            ) from None
        raise DataError(f"{path}: cannot be opened as HDF5 ({brief(error)}); copy or convert it again") from None


def find(group: Any, name: str, where: str) -> Any:
    """Returns the object of a name in a group, or None if there is none; every link is checked before it is followed.

    Args:
        group: An open file or group.
        name: May be a path of names.
        where: Start of error messages.

    Raises:
        DataError: If a link leads to another file, or soft links lead nowhere or in a circle.
    """
    here, parts, followed = group, name.split("/"), 0
    while parts:
        part = parts.pop(0)
        if part in ("", "."):
            continue
        link = here.get(part, getlink=True) if isinstance(here, h5py.Group) and "\0" not in part else None
        if link is None:
            if followed:
                raise DataError(f"{where} is a soft link that leads nowhere; copy or convert the features again")
            return None
        if isinstance(link, h5py.SoftLink):
            followed += 1
            if followed > _SOFT_LINKS:
                raise DataError(f"{where} is a soft link that leads to itself; copy or convert the features again")
            here = here.file if link.path.startswith("/") else here
            parts = [*link.path.split("/"), *parts]
            continue
        if isinstance(link, h5py.ExternalLink):
            _refuse_other_files(where, f"an external link to {link.filename!r}")
        here = here[part]
    return here


def check_dataset(entry: Any, where: str) -> None:
    """Checks that an object is a dataset of numbers, all of which are stored in its file.

    Raises:
        DataError: If not; `where` starts the message.
    """
    if not isinstance(entry, h5py.Dataset):
        raise DataError(f"{where} is an HDF5 {type(entry).__name__.lower()}; expected a dataset [frames, size]")
    if entry.shape is None:
        raise DataError(f"{where} is an empty HDF5 dataset without a shape; extract its features again")
    if entry.dtype.kind not in "fiu":
        raise DataError(f"{where} holds {entry.dtype} values; expected floats, convert the features again")
    if entry.is_virtual:
        _refuse_other_files(where, "a virtual dataset")
    elif entry.external:
        _refuse_other_files(where, f"external storage in {entry.external[0][0]!r}")
    else:
        _check_storage(entry, where)


def _check_storage(entry: Any, where: str) -> None:
    """Checks that the file stores what a dataset declares, and that a chunk of it fits into memory."""
    declared = math.prod(entry.shape) * entry.dtype.itemsize
    what = f"{where} declares the shape {list(entry.shape)}, {_size(declared)},"
    stored = min(entry.id.get_storage_size(), entry.file.id.get_filesize())
    if entry.chunks is None:
        if stored < declared:
            raise DataError(f"{what} but {_size(stored)} are stored; extract its features again")
        return
    chunk = math.prod(entry.chunks) * entry.dtype.itemsize
    if chunk > _CHUNK_BYTES:
        raise DataError(f"{what} in chunks of {_size(chunk)}; write it in chunks of up to {_size(_CHUNK_BYTES)}")
    chunks = math.prod(-(-length // step) for length, step in zip(entry.shape, entry.chunks, strict=True))
    written = entry.id.get_num_chunks()
    if written < chunks:
        raise DataError(f"{what} but {written} of its {chunks} chunks are stored; extract its features again")
    if declared > max(_SMALL_BYTES, _RATIO * stored):
        raise DataError(f"{what} but {_size(stored)} are stored; features do not compress so well, extract them again")


def _refuse_other_files(where: str, what: str) -> None:
    if os.environ.get(EXTERNAL) != "1":
        raise DataError(
            f"{where} is {what}, so other files would be read; copy it into this file, or set {EXTERNAL}=1 on every "
            "machine if you trust it"
        )


def _size(size: int) -> str:
    for unit, scale in (("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20)):
        if size >= scale:
            return f"{size / scale:.1f} {unit}"
    return f"{size} bytes"
