"""The frame features of one video: from an array, or from a file that holds one or many videos.

Letters: N frames, D feature size.
"""

from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
import numpy.typing as npt
import torch

from cdn_tune.data.features import Frames, open_features
from cdn_tune.data.files import brief
from cdn_tune.data.fingerprint import PLANTED_ATTRIBUTE
from cdn_tune.errors import DataError

_SHOWN = 3


class VideoFrames(NamedTuple):
    """A video's features as stored in a file.

    Attributes:
        video: Its name there; of a ``.npy`` file, the name of the file.
        frames: Features [N, D].
        planted: Whether the file labels them as planted.
    """

    video: str
    frames: npt.NDArray[Any]
    planted: bool


def read_frames(path: Path, video: str | None = None, member: str | None = None) -> VideoFrames:
    """Returns the features of one video.

    Args:
        path: A ``.npy`` file [N, D], or HDF5 with one dataset [N, D] per video.
        video: Which one of an HDF5 file; needed where it holds several.
        member: Name of the dataset in a video's group, for files with a group per video.

    Raises:
        DataError: If the file or the video is missing or cannot be read; names the first videos of the file.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such feature file; name a .npy or HDF5 file with frame features")
    if path.suffix == ".npy":
        try:
            return VideoFrames(path.stem, np.load(path, allow_pickle=False), planted=False)
        except (OSError, ValueError, EOFError) as error:
            raise DataError(f"{path}: cannot be read as .npy ({brief(error)}); write it with numpy.save") from None
    try:
        with open_features(path) as file:
            name = _choose(path, list(file), video)
            entry = file[name]
            if isinstance(entry, h5py.Group):
                inside = next(iter(entry)) if len(entry) == 1 else member
                if inside is None or inside not in entry:
                    raise DataError(f"{path}: video {name!r} is a group of {len(entry)}; expected one dataset in it")
                entry = entry[inside]
            if not isinstance(entry, h5py.Dataset):
                raise DataError(f"{path}: video {name!r} is no dataset [frames, size]; convert the features again")
            return VideoFrames(name, entry[()], PLANTED_ATTRIBUTE in file.attrs)
    except (OSError, RuntimeError, KeyError) as error:
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
    if array.dtype.kind not in "fiu" or array.ndim != 2 or not len(array):
        raise DataError(f"{where}: {array.dtype} {[*array.shape]}; expected numbers [frames, {feature_size}]")
    if array.shape[1] != feature_size:
        raise DataError(
            f"{where}: features of size {array.shape[1]}, but this model was trained on size {feature_size}; "
            "extract them with the network that its training features came from"
        )
    with np.errstate(over="ignore"):
        frames: Frames = array.astype(np.float32, copy=False)
    if not (finite := np.isfinite(frames)).all():
        row, column = (int(index) for index in np.argwhere(~finite)[0])
        raise DataError(f"{where}: value {frames[row, column]} in row {row}, column {column}; extract them again")
    return frames


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
