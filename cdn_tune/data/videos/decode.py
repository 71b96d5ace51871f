"""Videos: found, and decoded by PyAV (extra ``video``) as frames at given times.

A video may be a stranger's. It is read as one file of a known container: a playlist, a stream or a link in it to
another file is not followed, and frames beyond 8K are refused.

Letters: H rows, W columns of a frame.
"""

import errno
import glob
import importlib.util
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import numpy.typing as npt

from cdn_tune.data.files import brief, is_remote, read_text, remote_file
from cdn_tune.errors import ConfigError, DataError

if TYPE_CHECKING:
    from av import VideoFrame
    from av.container import InputContainer

Pixels = npt.NDArray[np.uint8]

VIDEO_SUFFIXES = (
    *(".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".mts", ".m2ts", ".wmv", ".asf", ".flv"),
    *(".3gp", ".3g2", ".ogv", ".rm", ".rmvb", ".vob", ".mxf", ".dv", ".wtv", ".gif"),
)
# FFmpeg's names. None of these opens another file; playlists (hls, dash, concat), descriptions of streams (sdp),
# devices and still images are not among them.
_CONTAINERS = "mov,matroska,avi,flv,mpegts,mpeg,asf,ogg,rm,nut,gif,ivf,dv,mxf,wtv"
_OBJECT_STORES = ("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "adl", "oci", "memory")
_MOST_PIXELS = 8192 * 8192
_LIMITS = {"max_pixels": str(_MOST_PIXELS)}  # of a decoder
_THREADED_PIXELS = 4096 * 2304  # larger frames are decoded by one thread, as each would hold some of them
_NARROWEST = 32  # width by height, or the reverse
_WIDEST = 8  # times as wide as high that a stored pixel is shown, or the reverse; else the file is wrong about it
_LONGEST = 24 * 3600.0  # seconds of a video
_GAP = 600.0  # seconds between two frames
_BACK = 0.5  # seconds that a time stamp may be behind the one before
_SEEK = 30.0  # seconds ahead from where on seeking is faster than decoding all between
_LATE = 1.0  # seconds before its end by which a whole video may have its last frame
_BAD = 0.1  # share of packets that may be undecodable
_BLOCK = 1 << 20  # bytes read at once


class VideoFile:
    """A video: its duration, and its frames at given times.

    Time 0 is where a player begins, and the frame at a time is the one that a player shows then: the last that began by
    it, or the first of all. Frames are turned as the video says (phones store them sideways), and as wide as it says
    (DVDs and DV store pixels that are not square).

    Args:
        path: A local file, or one of an object store (see `files.remote_file`).
        threads: That decode; one per core if None.

    Attributes:
        duration: Seconds, as a player shows it (sound may last longer than the frames).
        width: Of an upright frame, in pixels.
        height: The same.
        rate: Frames a second, on average, as the file says.

    Raises:
        ConfigError: If PyAV is not installed.
        DataError: If it is no video, has fewer than two frames, or ones that are too large.
    """

    def __init__(self, path: Path, threads: int | None = None) -> None:
        if importlib.util.find_spec("av") is None:
            raise ConfigError("reading videos needs PyAV; install with: pip install 'cdn-tune[video]'")
        self.path, self._threads = path, threads
        self._file: Any = None
        self._container: Any = None
        self._is_seekable = True
        try:
            self._open()
            self.rate = self._stream.average_rate or self._stream.guessed_rate or Fraction(25)
            self._step = float(1 / self.rate)
            self._start = self._zero()
            self.duration, self._ends = self._lasts()
            some = [each for _, each in zip(range(2), self._decoded(), strict=False)]
            if not some:
                raise DataError(f"{path}: has no frame that can be decoded; copy it again, or name a video")
            if len(some) == 1:
                self._check_end(some[0], self._ends)
                raise DataError(f"{path}: holds a single frame, as a still image does; name a video")
            width, height = self._shape(some[0][1])
            self.width, self.height = (height, width) if _quarters(some[0][1]) % 2 else (width, height)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> "VideoFile":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the file."""
        if self._container is not None:
            self._container.close()
        if self._file is not None:
            self._file.close()
        self._container = self._file = None

    def frames(self, times: Sequence[float], size: int | None = None) -> Iterator[Pixels]:
        """Yields the frame at each of some times: uint8 [H, W, 3], RGB, upright. Do not write to it.

        One such iterator at a time may be in use.

        Args:
            times: Seconds, rising.
            size: Of the shorter side, in pixels, to which frames are scaled; as they are if None.

        Raises:
            DataError: If the video ends before its own end (it was cut off), its time stamps jump, or too much of it
                cannot be decoded.
        """
        self._open()
        coming = self._decoded()
        here = after = next(coming, None)
        shown: Pixels | None = None
        for time in times:
            if after is not None and self._is_seekable and time - after[0] > _SEEK:
                coming, after = self._sought(time, after[0])
            while after is not None and (here is None or after[0] <= time):
                here, shown = after, None
                after = next(coming, None)
            if here is None:
                raise DataError(f"{self.path}: has no frame that can be decoded; copy it again")
            if after is None:
                self._check_end(here, time)
            if shown is None:
                shown = self._pixels(here[1], size)
            yield shown

    def _open(self) -> None:
        """Opens the container anew, at its beginning."""
        import av

        self.close()
        try:
            self._file = self.path.open("rb")
            self._container = open_container(self._file)
            found = [s for s in self._container.streams.video if not s.disposition & av.stream.Disposition.attached_pic]
            if not found:
                raise DataError(f"{self.path}: has no video stream; name a video")
            self._stream = found[0]
            coder = self._stream.codec_context
            if coder is None:
                raise DataError(
                    f"{self.path}: its video is coded in a way that FFmpeg does not know; convert it to H.264"
                )
            coder.options = _LIMITS
            if coder.width * coder.height > _MOST_PIXELS:
                raise DataError(
                    f"{self.path}: has frames of {coder.width} x {coder.height} pixels; scale it down to 8K"
                )
            if coder.width * coder.height > _THREADED_PIXELS:
                coder.thread_count = 1
            else:
                coder.thread_count = self._threads or 0  # 0: one per core
                coder.thread_type = "AUTO"
        except (av.error.FFmpegError, OSError, ValueError) as error:
            if isinstance(error, FileNotFoundError):
                raise DataError(f"{self.path}: no such video; correct the path") from None
            raise DataError(
                f"{self.path}: cannot be opened as a video ({_why(error)}); copy it again, if it is one, and no still "
                "image, playlist or the like"
            ) from None

    def _zero(self) -> float:
        """Returns the time stamp, in seconds, at which a player begins."""
        if self._container.start_time is not None:
            return float(self._container.start_time) / 1e6
        return float((self._stream.start_time or 0) * self._stream.time_base)

    def _lasts(self) -> tuple[float, float]:
        """Returns the duration, and the time at which the frames should end."""
        stream = self._stream
        whole = None if self._container.duration is None else self._container.duration / 1e6
        if stream.duration:
            ends = float(((stream.start_time or 0) + stream.duration) * stream.time_base) - self._start
        elif whole is not None:
            ends = whole
        else:  # a recording that was written as it came: its packets tell
            ends = self._last_packet()
            self._open()
        duration = ends if whole is None else whole
        if not 0 < duration <= _LONGEST:
            raise DataError(f"{self.path}: lasts {duration:g} s by its own account; repair it, or copy it again")
        return duration, min(ends, duration)

    def _last_packet(self) -> float:
        """Returns when the last frame ends, from the time stamps of all packets."""
        ends = 0.0
        for packet in self._packets():
            if packet.pts is not None:
                ends = max(ends, float((packet.pts + (packet.duration or 0)) * packet.time_base) - self._start)
        return ends

    def _packets(self) -> Iterator[Any]:
        """Yields the packets of the video stream, up to where the file breaks off."""
        import av

        try:
            yield from self._container.demux(self._stream)
        except (av.error.FFmpegError, OSError, ValueError):
            return  # what is missing shows at the end (`_check_end`)

    def _decoded(self, exact: bool = False) -> Iterator[tuple[float, "VideoFrame"]]:
        """Yields times, in seconds, and frames from here on, in the order of their times.

        Args:
            exact: End at a frame without a time stamp, whose time cannot be told after seeking.
        """
        import av

        last: float | None = None
        packets = bad = 0
        for packet in self._packets():
            packets += 1
            try:
                frames = packet.decode()
            except (av.error.FFmpegError, OSError, ValueError):
                bad += 1
                continue
            for frame in frames:
                stamp = frame.pts if frame.pts is not None else frame.dts
                if stamp is None and exact:
                    return
                if stamp is None:
                    time = 0.0 if last is None else last + self._step
                else:
                    time = float(stamp * frame.time_base) - self._start
                if last is not None and not -_BACK <= time - last <= _GAP:
                    raise DataError(
                        f"{self.path}: its time stamps jump from {last:.3f} s to {time:.3f} s; "
                        "write it anew with: ffmpeg -i VIDEO -vf setpts=N/FRAME_RATE/TB NEW.mp4"
                    )
                last = time if last is None else max(last, time)
                yield last, frame
        if bad > max(1, _BAD * packets):
            raise DataError(f"{self.path}: {bad} of its {packets} packets cannot be decoded; copy it again")

    def _sought(
        self, time: float, reached: float
    ) -> tuple[Iterator[tuple[float, "VideoFrame"]], tuple[float, "VideoFrame"] | None]:
        """Returns the frames from the last key frame before a time on, and the first of them.

        Where seeking does not get there (no index, no time stamps), or no further than decoding has reached (few key
        frames), they begin at the beginning, this once, and nothing is sought any more.
        """
        import av

        try:
            offset = int((time + self._start) / self._stream.time_base)
            self._container.seek(offset, stream=self._stream)
            coming = self._decoded(exact=True)
            first = next(coming, None)
            if first is not None and reached < first[0] <= time:
                return coming, first
        except (av.error.FFmpegError, OSError, ValueError):
            pass
        self._is_seekable = False
        self._open()
        coming = self._decoded()
        return coming, next(coming, None)

    def _check_end(self, last: tuple[float, "VideoFrame"], time: float) -> None:
        """Checks that the last frame lasts until the video ends, or until a time if that is earlier."""
        began, frame = last
        ends = began + max(float((frame.duration or 0) * (frame.time_base or 0)), self._step)
        if self._stream.duration:
            late = min(_LATE, max(self.duration / 10, 3 * self._step))
        else:  # the end is that of the longest stream, such as sound
            late = max(_LATE, self.duration / 10)
        if ends + late < min(self._ends, time + self._step):
            raise DataError(f"{self.path}: breaks off after {ends:.1f} s of {self._ends:.1f} s; copy it again")

    def _shape(self, frame: "VideoFrame") -> tuple[int, int]:
        """Returns width and height of a frame as it is shown, before it is turned.

        Raises:
            DataError: If it is too narrow or too large.
        """
        pixel = self._stream.sample_aspect_ratio or 1  # width by height of a stored one
        pixel = pixel if 1 / _WIDEST <= pixel <= _WIDEST else 1
        width, height = max(1, round(frame.width * pixel)), frame.height
        if max(width, height) > _NARROWEST * min(width, height):
            raise DataError(
                f"{self.path}: has frames of {width} x {height} pixels, too narrow for a video; name another"
            )
        if width * height > _MOST_PIXELS:
            raise DataError(f"{self.path}: has frames of {width} x {height} pixels; scale it down to 8K")
        return width, height

    def _pixels(self, frame: "VideoFrame", size: int | None) -> Pixels:
        """Returns a frame as uint8 [H, W, 3], upright, its shorter side scaled to `size`."""
        width, height = self._shape(frame)
        if size is not None:
            scale = size / min(width, height)
            width, height = max(size, round(width * scale)), max(size, round(height * scale))
        rgb = frame.reformat(width, height, "rgb24", interpolation="BICUBIC").to_ndarray()
        return np.ascontiguousarray(np.rot90(rgb, _quarters(frame)))


def open_container(file: BinaryIO) -> "InputContainer":
    """Returns the open container of a video file; what it names besides itself is not opened.

    Raises:
        av.error.FFmpegError: If it is none of those that are read.
    """
    import av

    container: InputContainer = av.open(
        file,
        mode="r",
        options=_LIMITS,
        container_options={"format_whitelist": _CONTAINERS, "protocol_whitelist": "none"},
        metadata_errors="replace",
        buffer_size=_BLOCK,
    )
    return container


def _quarters(frame: "VideoFrame") -> int:
    """Returns by how many quarters of a turn, counterclockwise, a frame is shown."""
    turns: int = round(frame.rotation / 90) % 4
    return turns


def _why(error: Exception) -> str:
    """Returns what FFmpeg or the system says of a file, without the file's name."""
    if getattr(error, "errno", None) == errno.EINVAL:  # of a container that is not among those read
        return "its content is no video's"
    return getattr(error, "strerror", None) or brief(error, 80)


def find_videos(given: Sequence[str], missing: list[str] | None = None) -> list[Path]:
    """Returns the videos that are meant, in the order of their paths, each once.

    Args:
        given: Of any mix: video files; folders, of which all videos are taken, at any depth; patterns such as
            ``raw/*.mp4``; lists, ``.txt`` files with a path a line, relative to the list; URLs of files in an object
            store.
        missing: Takes what does not exist or has no videos, a line each, as long as there are any others.

    Raises:
        DataError: If one does not exist or has no videos, or a URL is of no object store.
    """
    found: dict[str, Path] = {}
    wrong: list[DataError] = []
    for each in given:
        for path in _meant(each):
            if isinstance(path, DataError):
                wrong.append(path)
            else:
                found.setdefault(str(path), path)
    if wrong and (missing is None or not found):
        raise wrong[0]
    if missing is not None:
        missing.extend(map(str, wrong))
    return [found[name] for name in sorted(found)]


def _meant(each: str) -> Iterator[Path | DataError]:
    """Yields the videos that one argument means, or why there are none."""
    try:
        if is_remote(each):
            yield _remote(each)
            return
        path = Path(each).expanduser()
        if path.is_file() and path.suffix.lower() == ".txt":
            for name in _listed(path):
                yield from _meant(name if is_remote(name) else str(path.parent / Path(name)))
            return
        yield from _local(each, path)
    except DataError as error:
        yield error


def _remote(url: str) -> Path:
    protocol = url.partition("://")[0].rpartition("::")[2].lower()
    if protocol not in _OBJECT_STORES:
        raise DataError(f"{url}: is no file of an object store; download the video, and name the file")
    return remote_file(url)


def _listed(path: Path) -> list[str]:
    """Returns the lines of a list that name videos."""
    lines = read_text(path, "name a list of videos").splitlines()
    named = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    if lists := [name for name in named if name.lower().endswith(".txt")]:
        raise DataError(f"{path}: names another list ({lists[0]}); name videos in it")
    return named


def _local(each: str, path: Path) -> list[Path]:
    """Returns the videos of a folder, a file or a pattern."""
    if path.is_dir():
        inside = [p for p in path.rglob("*") if _is_video(p.relative_to(path)) and p.is_file()]
        if not inside:
            raise DataError(f"{path}: has no videos ({', '.join(VIDEO_SUFFIXES[:5])}, ...); name a folder with some")
        return inside
    if path.is_file():
        return [path]
    if glob.has_magic(each):
        matching = [Path(p) for p in glob.glob(str(path), recursive=True)]
        if inside := [p for p in matching if _is_video(Path(p.name)) and p.is_file()]:
            return inside
        raise DataError(f"{each}: no video fits this pattern; correct it")
    raise DataError(f"{each}: no such file or folder; correct the path")


def _is_video(path: Path) -> bool:
    """Returns whether a path's name is a video's, and no part of it is hidden."""
    return path.suffix.lower() in VIDEO_SUFFIXES and not any(part.startswith(".") for part in path.parts)
