"""Videos written: mp4 files that every player knows, whole or not at all, encoded by PyAV (extra ``video``)."""

import importlib.util
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from cdn_tune.data.files import brief, written_whole
from cdn_tune.data.videos.decode import Pixels
from cdn_tune.errors import ConfigError, DataError

if TYPE_CHECKING:
    import av

_CODECS = ("libx264", "mpeg4")  # the second is in every FFmpeg
_OPTIONS = {"libx264": {"crf": "20", "preset": "veryfast"}}


@contextmanager
def written_mp4(path: Path, remedy: str) -> "Iterator[av.container.OutputContainer]":
    """Yields the open container of an mp4, which takes its place at `path` when it is whole.

    Args:
        path: Where to; a file there is replaced.
        remedy: Ends the message if it cannot be written.

    Raises:
        ConfigError: If PyAV is not installed.
        DataError: If what is in the block cannot be encoded or written.
    """
    if importlib.util.find_spec("av") is None:
        raise ConfigError("writing videos needs PyAV; install with: pip install 'cdn-tune[video]'")
    import av

    try:
        with (
            written_whole(path) as partial,
            # Absolute: what is before a colon would be a protocol.
            av.open(str(partial.absolute()), "w", format="mp4", options={"movflags": "+faststart"}) as container,
        ):
            yield container
    except (av.FFmpegError, OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or brief(error)
        raise DataError(f"{path}: cannot be written ({reason}); {remedy}") from None


def encode_frames(
    container: "av.container.OutputContainer",
    frames: Iterable[Pixels],
    rate: Fraction,
    width: int,
    height: int,
    threads: int | None = None,
) -> "Iterator[av.Packet[Any]]":
    """Adds a video stream to an open container and returns an iterator over its packets, which are yet to be muxed.

    Args:
        container: That nothing was muxed into yet.
        frames: Each uint8 [height, width, 3], RGB; encoded as the packets are asked for. Of odd sides a line is lost.
        rate: Frames a second.
        width: Pixels.
        height: The same.
        threads: That encode; with one, the same frames give the same bytes. As FFmpeg chooses if None.
    """
    import av

    codec = next(name for name in _CODECS if name in av.codecs_available)
    options = _OPTIONS.get(codec, {}) | ({} if threads is None else {"threads": str(threads)})
    stream = cast("av.VideoStream", container.add_stream(codec, rate=rate, options=options))
    stream.width, stream.height = (max(side // 2 * 2, 2) for side in (width, height))  # halved for colours
    stream.pix_fmt = "yuv420p"  # which every player knows
    return _packets(stream, frames, rate)


def _packets(stream: "av.VideoStream", frames: Iterable[Pixels], rate: Fraction) -> "Iterator[av.Packet[Any]]":
    import av

    for at, pixels in enumerate(frames):
        even: Any = np.ascontiguousarray(pixels[: stream.height, : stream.width])
        frame = av.VideoFrame.from_ndarray(even, format="rgb24")
        frame.pts, frame.time_base = at, 1 / rate
        yield from stream.encode(frame)
    yield from stream.encode(None)
