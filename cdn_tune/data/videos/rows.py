"""Rows of features: which frames each is computed from, and many videos' rows computed in batches.

Row i of N lies at (i + 0.5) / N of the video's duration, so that rows are at equal distances over all of it, as the
loaders take them to be.
"""

import queue
import threading
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cdn_tune.data.features import Frames
from cdn_tune.data.files import brief
from cdn_tune.data.videos.backbones import Backbone
from cdn_tune.data.videos.decode import Pixels, VideoFile
from cdn_tune.errors import DataError

FRAMES_AT_ONCE = 16  # that a backbone computes on a CPU, which more do not speed up, but need memory
_GPU_TIMES = 4  # as many on a GPU
MOST_ROWS = 1 << 20  # of a video
_TICK = 0.1  # seconds between two looks whether reading is to end

Window = list[Pixels]  # prepared frames


def row_count(duration: float, fps: float) -> int:
    """Returns how many rows a video has: `fps` a second, at least one."""
    return max(1, round(duration * fps))


def row_times(duration: float, fps: float, window: int = 1, stride: float = 0.0) -> npt.NDArray[np.float64]:
    """Returns the times of the frames of each row, in seconds: [N, window].

    Args:
        duration: Of the video, in seconds.
        fps: Rows a second.
        window: Frames of a row, around its middle.
        stride: Seconds from one to the next.
    """
    count = row_count(duration, fps)
    middles = (np.arange(count) + 0.5) * duration / count
    offsets = (np.arange(window) - (window - 1) / 2) * stride
    times: npt.NDArray[np.float64] = np.clip(middles[:, None] + offsets, 0.0, duration)
    return times


def windows_of(video: VideoFile, backbone: Backbone, fps: float) -> Iterator[Window]:
    """Yields the prepared frames of each row of a video, in order.

    Raises:
        DataError: If there are too many rows, or the video cannot be decoded.
    """
    count = row_count(video.duration, fps)
    if count > MOST_ROWS:
        raise DataError(f"{video.path}: lasts {video.duration:.0f} s, {count} rows; lower --fps")
    rows = row_times(video.duration, fps, backbone.window, backbone.stride)
    times, places = np.unique(rows, return_inverse=True)
    places = places.reshape(rows.shape)  # of each row's frames among the times
    held: deque[Pixels] = deque()  # the frames from `first` on
    first = 0
    frames = (backbone.prepare(pixels) for pixels in video.frames(times.tolist(), backbone.shorter))
    for wanted in places:
        while first < wanted[0]:
            if held:
                held.popleft()
            else:
                next(frames)
            first += 1
        while first + len(held) <= wanted[-1]:
            held.append(next(frames))
        yield [held[place - first] for place in wanted]


def compute_rows(
    backbone: Backbone,
    fps: float,
    take: Callable[[], Path | None],
    computed: Callable[[Path, float], None],
    finished: Callable[[Path, Frames | str], None],
    readers: int = 1,
    threads: int | None = None,
) -> None:
    """Computes the features of videos; frames of several go into a batch, and are decoded while others are computed.

    What goes wrong with one video ends that video alone.

    Args:
        backbone: Computes them.
        fps: Rows a second.
        take: Returns the next video, None after the last; called by several threads.
        computed: Called with a video and the share of its rows that are computed.
        finished: Called with a video and its rows [N, D], or the reason why there are none.
        readers: Threads that decode, a video each.
        threads: That each decoder may use of its own.
    """
    frames_at_once = FRAMES_AT_ONCE * (1 if backbone.device.type == "cpu" else _GPU_TIMES)
    windows_at_once = max(1, frames_at_once // backbone.window)
    coming: queue.Queue[tuple[Path | None, Window | str | int]] = queue.Queue(2 * windows_at_once)
    is_over = threading.Event()
    readers_left, counts = readers, dict[Path, int]()
    rows: dict[Path, list[Frames]] = {}
    batch: list[tuple[Path, Window]] = []

    def put(video: Path | None, what: Window | str | int) -> None:
        while not is_over.is_set():
            try:
                coming.put((video, what), timeout=_TICK)
                return
            except queue.Full:
                continue

    def read() -> None:
        while not is_over.is_set() and (path := take()) is not None:
            try:
                with VideoFile(path, threads) as video:
                    put(path, row_count(video.duration, fps))
                    for window in windows_of(video, backbone, fps):
                        put(path, window)
                        if is_over.is_set():
                            return
                put(path, "")
            except DataError as error:
                put(path, str(error))
            except Exception as error:  # a stranger's file may bring a decoder to almost anything
                put(path, f"{path}: cannot be decoded ({type(error).__name__}: {brief(error, 100)}); copy it again")
        put(None, "")

    def flush() -> None:
        if batch:
            values = backbone.features([window for _, window in batch])
            for (path, _), value in zip(batch, values, strict=True):
                if path in rows:
                    rows[path].append(value)
            for path in dict.fromkeys(path for path, _ in batch):
                if path in rows:
                    computed(path, len(rows[path]) / counts[path])
            batch.clear()

    threads_here = [threading.Thread(target=read, daemon=True) for _ in range(readers)]
    for thread in threads_here:
        thread.start()
    try:
        ended: dict[Path, str] = {}
        while readers_left:
            path, what = coming.get()
            if path is None:
                readers_left -= 1
            elif isinstance(what, int):
                counts[path], rows[path] = what, []
            elif isinstance(what, str):
                ended[path] = what
            else:
                batch.append((path, what))
            if len(batch) == windows_at_once or not readers_left:
                flush()
            waiting = {path for path, _ in batch}
            for path in [path for path in ended if path not in waiting]:
                reason, held = ended.pop(path), rows.pop(path, [])
                finished(path, reason or np.stack(held))
    finally:
        is_over.set()
        for thread in threads_here:
            thread.join()
