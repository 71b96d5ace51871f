"""The videos of a report's queries: where their files lie, and small frames of some of them."""

import base64
import io
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

from cdn_tune.data.video_names import match_names
from cdn_tune.errors import CdnTuneError, ConfigError, DataError

FRAMES = 8  # of a video
VIDEOS = 60  # whose frames are shown, at most
BYTES = 3_000_000  # of all frames as JPEG, at most
_HEIGHT, _WIDTHS = 72, (40, 160)  # pixels of a frame: its height; the narrowest and the widest
_QUALITY = 60  # of the JPEG
_PLAYED = (".mp4", ".m4v", ".webm")  # containers that browsers know; whether they know the codec is another matter
_NAMED = 5  # unreadable videos that are named, at most
_APART = 0.1  # of the annotated duration: a video that is longer or shorter is another one


@dataclass(frozen=True)
class Frames:
    """Frames of a video in the middles of equal parts of its annotated duration, side by side in one picture."""

    picture: str  # a JPEG, as a data URI
    count: int
    width: int  # pixels of a frame
    height: int


@dataclass(frozen=True)
class Footage:
    """The files of the queries' videos.

    Attributes:
        paths: By the name that the annotations have.
        frames: Of some of them, by the same name.
        notices: What is missing, one line each.
    """

    paths: Mapping[str, Path] = field(default_factory=dict)
    frames: Mapping[str, Frames] = field(default_factory=dict)
    notices: tuple[str, ...] = ()

    def links(self, folder: Path) -> dict[str, str]:
        """Returns relative URLs of the files for a page in a folder, by the videos' names."""
        base = folder.absolute()
        return {name: quote(os.fsencode(os.path.relpath(path.absolute(), base))) for name, path in self.paths.items()}


def collect_footage(folder: Path, durations: Mapping[str, float], wanted: Sequence[str], seconds: float) -> Footage:
    """Finds the files of videos in a folder, by their stems, and takes small frames of the first that are wanted.

    Args:
        folder: With the videos, also in folders within.
        durations: Seconds of every video of the queries, as annotated, by its name.
        wanted: Names of the videos whose frames are shown first.
        seconds: For decoding, at most; what is left out is told.

    Raises:
        DataError: If there is no such folder, or no video in it.
    """
    from cdn_tune.data.videos.decode import find_videos

    stems: dict[str, Path] = {}
    for path in sorted(find_videos([str(folder)]), key=lambda path: path.suffix.lower() not in _PLAYED):
        stems.setdefault(path.stem, path)  # of one stem the first that plays, in the order of their names
    others = match_names(durations, stems)
    files = {name: stems.get(name) or stems.get(others.get(name, "")) for name in durations}
    paths = {name: path for name, path in files.items() if path is not None}
    notices: list[str] = []
    if missing := [name for name in durations if name not in paths]:
        notices.append(
            f"{len(missing)} of {len(durations)} videos are not in {folder}, {_some(missing)}; a video's file is named "
            "as in the annotations"
        )
    frames: dict[str, Frames] = {}
    faults: list[str] = []
    apart: list[str] = []
    size, until = 0, time.monotonic() + seconds
    chosen = [name for name in dict.fromkeys(wanted) if name in paths][:VIDEOS]
    for name in chosen:
        if size >= BYTES or time.monotonic() > until:
            break
        try:
            found, lasts = _frames(paths[name], durations[name], until)
        except ConfigError as error:  # nothing to decode with
            notices.append(f"no frames are shown of the videos: {error}")
            chosen = []
            break
        except (CdnTuneError, OSError) as error:
            faults.append(str(error).splitlines()[0])
            continue
        if size + len(found.picture) > BYTES:
            break
        if abs(lasts - durations[name]) > 1 + _APART * durations[name]:
            apart.append(f"{name} ({lasts:.1f} s, annotated {durations[name]:.1f} s)")
        frames[name] = found
        size += len(found.picture)
    notices += [f"no frames are shown of a video: {fault}" for fault in dict.fromkeys(faults[:_NAMED])]
    if len(faults) > _NAMED:
        notices.append(f"no frames are shown of {len(faults) - _NAMED} further videos, for such reasons")
    if apart:
        notices.append(f"videos longer or shorter than annotated, so that moments lie elsewhere: {_some(apart)}")
    if (left := len(chosen) - len(frames) - len(faults)) > 0:
        notices.append(f"frames of {left} of {len(chosen)} videos are left out: they took too long, or too much room")
    return Footage(paths, frames, tuple(notices))


def _some(names: Sequence[str]) -> str:
    more = f", and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{', '.join(names[:3])}{more}"


def _frames(path: Path, duration: float, until: float) -> tuple[Frames, float]:
    """Returns frames of a video over its annotated duration, and its own duration in seconds.

    Raises:
        ConfigError: If there is nothing to decode with.
        DataError: If it cannot be read, or takes longer than to a time of the monotonic clock.
    """
    from PIL import Image, ImageOps

    from cdn_tune.data.videos.contact_sheet import middles
    from cdn_tune.data.videos.decode import VideoFile

    with VideoFile(path) as video:
        times = [each for each in middles(0.0, duration, FRAMES) if each < video.duration] or [0.0]
        width = min(max(round(_HEIGHT * video.width / video.height), _WIDTHS[0]), _WIDTHS[1])
        strip = Image.new("RGB", (FRAMES * width, _HEIGHT))
        for part, picture in enumerate(video.frames(times, _HEIGHT)):
            frame = ImageOps.pad(Image.fromarray(picture), (width, _HEIGHT))
            strip.paste(frame, (part * width, 0))
            if time.monotonic() > until:
                raise DataError(f"{path}: takes too long to decode")
        lasts = video.duration
    file = io.BytesIO()
    strip.save(file, "JPEG", quality=_QUALITY, optimize=True)
    picture_ = f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"
    return Frames(picture_, FRAMES, width, _HEIGHT), lasts
