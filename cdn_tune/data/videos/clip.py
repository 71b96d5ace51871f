"""Clips: a moment of a video as an mp4 of its own, which begins and ends just where the moment does."""

import heapq
from collections.abc import Iterator
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cdn_tune.data.videos.decode import VideoFile, open_container
from cdn_tune.data.videos.encode import encode_frames, written_mp4
from cdn_tune.errors import DataError

if TYPE_CHECKING:
    import av

_CUT = "cut by cdn-tune"  # begins the comment in the files that are ours
_LONGEST_NAME = 150  # bytes of a video's name in that of a clip; file systems allow 255 for the whole
_RATES = (1, 60)  # frames a second of a clip, at least and at most
_AUDIO_RATE = 48_000  # samples a second
_BEFORE = 1.0  # seconds that the audio is read from before a moment: its packets are not cut where the moment begins


def clip_name(video: str, start: float, end: float, rank: int, query: int | None = None) -> str:
    """Returns a clip's file name, such as ``VIDEO-1-12.3s-18.9s.mp4``; with the query's number, ``VIDEO-q2-1-...``.

    What no file name may hold is replaced, and a name of any length cut.
    """
    plain = "".join(letter if letter.isprintable() and letter not in '/\\:*?"<>|' else "_" for letter in video)
    short = plain.encode(errors="replace")[:_LONGEST_NAME].decode(errors="ignore").lstrip(".") or "video"
    of_query = "" if query is None else f"q{query}-"
    return f"{short}-{of_query}{rank}-{start:.1f}s-{end:.1f}s.mp4"


def clip_folder(folder: Path) -> Path:
    """Returns the folder of clips, which is created.

    Raises:
        DataError: If it is a file, or cannot be created.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise DataError(f"--cut {folder}: is a file; name a folder for the clips") from None
    except OSError as error:
        raise DataError(f"--cut {folder}: cannot be created ({error.strerror}); choose another folder") from None
    return folder


def cut_clip(video: VideoFile, start: float, end: float, path: Path, title: str) -> None:
    """Writes a moment of a video as an mp4, encoded anew: upright, at a constant frame rate, with its sound.

    Sound that cannot be decoded is left out. The clip has one frame at least.

    Args:
        video: Open.
        start: Where the moment begins, in seconds.
        end: Where it ends; cut at the end of the video.
        path: Where to; a clip of this function is replaced.
        title: Written into the file: the query.

    Raises:
        DataError: If another file has this name, or the video cannot be decoded, or the clip not be encoded or written.
    """
    start, end = min(max(start, 0.0), video.duration), min(end, video.duration)
    if (path.exists() or path.is_symlink()) and not _is_clip(path):
        raise DataError(f"{path}: exists and was not cut by cdn-tune; move it, or choose another --cut folder")
    with (
        written_mp4(path, "choose another --cut folder") as target,
        video.path.open("rb") as file,
        open_container(file) as source,
    ):
        about = {"title": title, "comment": f"{_CUT} from {video.path.name}"}
        target.metadata.update({key: text.encode(errors="replace").decode() for key, text in about.items()})
        rate = _rate(video)
        times = [start + float(at / rate) for at in range(max(round((end - start) * rate), 1))]  # of the clip's frames
        streams = [encode_frames(target, video.frames(times), rate, video.width, video.height)]
        if source.streams.audio and source.streams.audio[0].codec_context is not None:
            streams.append(_audio(source, start, end, target))
        for packet in heapq.merge(*streams, key=lambda each: (each.dts or 0) * each.time_base):
            target.mux(packet)


def _is_clip(path: Path) -> bool:
    """Returns whether a file was written by `cut_clip`."""
    import av

    try:
        with path.open("rb") as file, open_container(file) as container:
            return container.metadata.get("comment", "").startswith(_CUT)
    except (av.FFmpegError, OSError, ValueError):
        return False


def _rate(video: VideoFile) -> Fraction:
    """Returns the frame rate of a clip: the video's own on average, where that is one that players play."""
    least, most = _RATES
    rate = Fraction(video.rate).limit_denominator(1001)
    return min(max(rate, Fraction(least)), Fraction(most))


def _audio(
    source: "av.container.InputContainer", start: float, end: float, target: "av.container.OutputContainer"
) -> "Iterator[av.Packet[Any]]":
    """Yields the packets of a clip's sound, as far as it can be decoded."""
    import av

    stream = target.add_stream("aac", rate=_AUDIO_RATE, layout="stereo")
    with suppress(av.FFmpegError):
        for frame in _sound(source, start, end):
            yield from stream.encode(frame)
    yield from stream.encode(None)


def _sound(source: "av.container.InputContainer", start: float, end: float) -> "Iterator[av.AudioFrame]":
    """Yields a video's sound from `start` to `end`; times count from there."""
    import av

    resampler = av.AudioResampler(format="fltp", layout="stereo", rate=_AUDIO_RATE)
    zero = (source.start_time or 0) / av.time_base  # where a player begins
    source.seek(round((zero + max(start - _BEFORE, 0.0)) * av.time_base))
    for given in source.decode(source.streams.audio[0]):
        for frame in resampler.resample(given):
            if frame.time is None:
                continue
            first, last = (round((zero + time - frame.time) * _AUDIO_RATE) for time in (start, end))
            if last <= 0:
                return
            if first < frame.samples:
                samples = np.ascontiguousarray(
                    frame.to_ndarray()[:, max(first, 0) : last], np.float32
                )  # [channels, samples]
                part = av.AudioFrame.from_ndarray(samples, format="fltp", layout="stereo")
                part.sample_rate, part.time_base, part.pts = _AUDIO_RATE, Fraction(1, _AUDIO_RATE), max(-first, 0)
                yield part
