"""What a retriever is asked about: a video's features from a file or from the run's data, or made from the video."""

from dataclasses import dataclass
from pathlib import Path

from cdn_tune.data.features import Frames
from cdn_tune.data.files import is_remote
from cdn_tune.data.fingerprint import mark_beside
from cdn_tune.data.frames import check_frames, read_frames
from cdn_tune.data.hdf5 import open_features
from cdn_tune.data.layouts import features_path, layout_of
from cdn_tune.data.mark import Mark
from cdn_tune.data.videos.decode import VideoFile, find_videos
from cdn_tune.data.videos.making import Making
from cdn_tune.errors import DataError
from cdn_tune.evaluation.export import WEIGHTS, exported_making
from cdn_tune.evaluation.making import trained_making
from cdn_tune.evaluation.retriever import Retriever

_ASK = "give --video FILE, a video; --video ID, one of the run's data; or --features FILE"


@dataclass(frozen=True, eq=False)
class Source:
    """One video's features, and where they are from.

    Attributes:
        name: The video's name: in the feature file, else the stem of its own.
        frames: Features [N, D].
        origin: The feature file, or what made the features, in words.
        planted: Whether the features are planted, or of drawn videos.
        extracted: Whether they were made just now.
        file: The video itself, where it was given.
        duration: Its length in seconds, where it was given.
    """

    name: str
    frames: Frames
    origin: str
    planted: Mark = False
    extracted: bool = False
    file: Path | None = None
    duration: float | None = None


def find_source(retriever: Retriever, features: Path | None, video: str | None, weights: Path | None = None) -> Source:
    """Returns the features of a video.

    Args:
        retriever: Asked about it.
        features: A file with them; if None, they are made from the video, or are those of the run's data.
        video: A video file, or a video's name in the feature file. A text is a file if there is one, if it is a URL,
            or if it has a slash.
        weights: File with the backbone's weights, if the run's features were made with such.

    Raises:
        DataError: If features or video cannot be used, it is not clear which are meant, or nothing says how the run's
            features were made.
        ConfigError: If what decodes or computes is not installed.
    """
    data = retriever.experiment.data
    file = None if video is None else _video_file(video)
    if features is None and video is None:
        raise DataError(f"no video: {_ASK}")
    if features is None and file is not None:
        return _extracted(retriever, file, video or "", weights)
    if weights is not None:
        raise DataError(f"--weights {weights}: has no meaning for features that are made already; leave it out")
    if features is None:
        try:
            features = _run_features(retriever)
        except DataError as error:
            why = f"no such file, nor are the run's features here ({error})"
            raise DataError(f"--video {video}: {why}; {_ASK}") from None
        if not _is_of_run(retriever, video or ""):
            raise DataError(f"--video {video}: no such file, nor has {features} a video of this name; {_ASK}")
    name, duration = video, None
    if file is not None:
        with VideoFile(file) as opened:
            duration = opened.duration
        name = None if features.suffix == ".npy" else _name_of(file, features)
    found = read_frames(features, name, layout_of(data.dataset).member, feature_size=data.feature_size)
    trained = None if found.making is None else _trained_making(retriever)
    if found.making and trained and (differs := trained.differences(found.making)):
        raise DataError(
            f"{features}: was made otherwise than the features that this model was trained on ({differs} here); give "
            "the video itself with --video FILE, or features that were made as those"
        )
    frames = check_frames(found.frames, data.feature_size, f"{features}: video {found.video!r}")
    return Source(found.video, frames, str(features), planted=found.planted, file=file, duration=duration)


def _video_file(video: str) -> Path | None:
    """Returns the video file that is named; None if it is the name of a video in a feature file.

    Raises:
        DataError: If it is a URL of no object store, or there is no such file.
    """
    if not (is_remote(video) or "/" in video or Path(video).expanduser().is_file()):
        return None
    found = find_videos([video])
    if len(found) != 1:
        raise DataError(f"--video {video}: names {len(found)} videos; name one")
    return found[0]


def _is_exported(retriever: Retriever) -> bool:
    return retriever.source.name == WEIGHTS


def _run_features(retriever: Retriever) -> Path:
    if _is_exported(retriever):
        raise DataError("an exported folder is without them")
    return features_path(retriever.experiment.data)


def _name_of(file: Path, features: Path) -> str:
    """Returns the name of a video file in a feature file: with its suffix, if it is there so, else without."""
    with open_features(features) as opened:
        return file.name if file.name in list(opened) else file.stem


def _extracted(retriever: Retriever, file: Path, video: str, weights: Path | None) -> Source:
    """Returns features that are made from a video as those of the run were."""
    from cdn_tune.data.videos.extract import extract_features

    if "/" not in video and _is_of_run(retriever, video):
        raise DataError(
            f"--video {video}: is a file here, and a video of the run's features; write ./{video} for the file, or "
            "give --features FILE as well"
        )
    making = _making(retriever)
    with VideoFile(file) as opened:
        duration = opened.duration
    frames = check_frames(
        extract_features(file, making, weights, retriever.device), retriever.experiment.data.feature_size, str(file)
    )
    planted = False if is_remote(file) else mark_beside(file)
    return Source(file.stem, frames, f"extracted by {making}", planted, extracted=True, file=file, duration=duration)


def _is_of_run(retriever: Retriever, video: str) -> bool:
    try:
        with open_features(_run_features(retriever)) as opened:
            return video in list(opened)  # no link is followed
    except DataError:
        return False


def _trained_making(retriever: Retriever) -> Making | None:
    """Returns how the features were made that the model was trained on, None if nothing says it."""
    if _is_exported(retriever):
        return exported_making(retriever.source.parent)
    return trained_making(retriever.source, retriever.experiment.data)


def _making(retriever: Retriever) -> Making:
    """Returns how the run's features were made.

    Raises:
        DataError: If nothing says it.
    """
    making = _trained_making(retriever)
    if making is None:
        raise DataError(
            f"{retriever.source}: nothing says how the features were made that this model was trained on; give the "
            "video's as --features FILE, or train on features of: cdn-tune data extract"
        )
    return making
