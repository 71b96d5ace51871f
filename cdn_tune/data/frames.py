"""The frame features of one video: from an array, or from a file that holds one or many videos.

Letters: N frames, D feature size.
"""

from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
import numpy.typing as npt
import torch

from cdn_tune.data.features import Frames
from cdn_tune.data.files import brief
from cdn_tune.data.fingerprint import PLANTED_ATTRIBUTE
from cdn_tune.data.hdf5 import UNREADABLE, check_dataset, find, open_features
from cdn_tune.data.mark import Mark, to_mark
from cdn_tune.data.videos.making import Making, making_of
from cdn_tune.errors import DataError

_SHOWN = 3


class VideoFrames(NamedTuple):
    """A video's features as stored in a file.

    Attributes:
        video: Its name there; of a ``.npy`` file, the name of the file.
        frames: Features [N, D].
        planted: Whether the file labels them as planted, or of drawn videos.
        making: How they were made, where the file tells it.
    """

    video: str
    frames: npt.NDArray[Any]
    planted: Mark
    making: Making | None = None


def read_frames(path: Path, video: str | None = None, member: str | None = None, *, feature_size: int) -> VideoFrames:
    """Returns the features of one video; kind and shape are checked before any of it is read.

    Args:
        path: A ``.npy`` file [N, D], or HDF5 with one dataset [N, D] per video.
        video: Which one of an HDF5 file; needed where it holds several.
        member: Name of the dataset in a video's group, for files with a group per video.
        feature_size: D that the model was trained with.

    Raises:
        DataError: If the file or the video is missing, cannot be read, or is of another kind or shape; names the first
            videos of the file.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such feature file; name a .npy or HDF5 file with frame features")
    if path.suffix == ".npy":
        try:
            array = np.load(path, mmap_mode="r", allow_pickle=False)  # mapped: a header may declare any shape
        except (OSError, ValueError, EOFError, OverflowError, SyntaxError, TypeError) as error:
            raise DataError(f"{path}: cannot be read as .npy ({brief(error)}); write it with numpy.save") from None
        _check_kind(array, feature_size, str(path))
        return VideoFrames(path.stem, np.array(array), planted=False)
    try:
        with open_features(path) as file:
            name = _choose(path, list(file), video)
            where = f"{path}: video {name!r}"
            entry = find(file, name, where)
            if isinstance(entry, h5py.Group):
                inside = next(iter(entry)) if len(entry) == 1 else member
                if inside is None or inside not in entry:
                    raise DataError(f"{where} is a group of {len(entry)}; expected one dataset in it")
                entry = find(entry, inside, where)
            check_dataset(entry, where)
            _check_kind(entry, feature_size, where)
            making = making_of(entry, where) or making_of(file, str(path))
            return VideoFrames(name, entry[()], to_mark(file.attrs.get(PLANTED_ATTRIBUTE)), making)
    except UNREADABLE as error:
        raise DataError(f"{path}: cannot be read ({brief(error)}); copy or convert it again") from None


def check_frames(features: npt.ArrayLike | torch.Tensor, feature_size: int, where: str = "features") -> Frames:
    """Returns frame features as float32 [N, D], N >= 1, all finite.

    Args:
        features: Numbers [N, D]; an array, a tensor on any device, or nested lists.
        feature_size: D that the model was trained with.
        where: Start of error messages.

    Raises:
        DataError: If they are anything else; names what was expected.
    """
    try:
        array = features.detach().cpu().float().numpy() if isinstance(features, torch.Tensor) else np.asarray(features)
    except ValueError:  # lists of unequal lengths
        raise DataError(f"{where}: rows of unequal lengths; expected an array [frames, {feature_size}]") from None
    _check_kind(array, feature_size, where)
    with np.errstate(over="ignore"):
        frames: Frames = array.astype(np.float32, copy=False)
    if not (finite := np.isfinite(frames)).all():
        row, column = (int(index) for index in np.argwhere(~finite)[0])
        raise DataError(f"{where}: value {frames[row, column]} in row {row}, column {column}; extract them again")
    return frames


def _check_kind(array: Any, feature_size: int, where: str) -> None:
    """Checks type and shape of an array or HDF5 dataset."""
    if array.dtype.kind not in "fiu" or array.ndim != 2 or not len(array):
        raise DataError(f"{where}: {array.dtype} {[*array.shape]}; expected numbers [frames, {feature_size}]")
    if array.shape[1] != feature_size:
        raise DataError(
            f"{where}: features of size {array.shape[1]}, but this model was trained on size {feature_size}; "
            "extract them with the network that its training features came from"
        )


def _choose(path: Path, videos: list[str], wanted: str | None) -> str:
    """Returns the wanted video, or the only one."""
    some = ", ".join(videos[:_SHOWN]) + (f" and {len(videos) - _SHOWN} more" if len(videos) > _SHOWN else "")
    if wanted is not None:
        if wanted not in videos:
            raise DataError(f"{path}: has no video {wanted!r}; it has {some or 'none'}")
        return wanted
    if len(videos) != 1:
        raise DataError(f"{path}: holds {len(videos)} videos ({some or 'none'}); name one with --video (video=)")
    return videos[0]
