"""Processes that extract features, each with its backbone; a video that brings one down is given up, the rest go on.

A process asks for its next video when it has room, so that long and short ones share out well.
"""

import multiprocessing
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

from cdn_tune.data.features import Frames
from cdn_tune.data.files import brief
from cdn_tune.data.videos.backbones import open_backbone
from cdn_tune.data.videos.rows import compute_rows
from cdn_tune.errors import CdnTuneError, TrainingError

Keep = Callable[[Path, Frames], None]  # stores the rows of a video


@dataclass(frozen=True)
class Recipe:
    """What a process is to compute, and how.

    Attributes:
        backbone: Its name.
        weights: A file of its weights.
        window: Frames of a row.
        fps: Rows a second.
        threads: Of torch; as many as it likes if None.
        readers: Threads that decode.
        decoders: Threads of each decoder; one per core if None.
    """

    backbone: str
    weights: Path | None
    window: int
    fps: float
    threads: int | None
    readers: int
    decoders: int | None


def run_workers(
    videos: Iterable[Path],
    recipe: Recipe,
    devices: list[torch.device],
    keep: Keep,
    computed: Callable[[Path, float], None],
    failed: Callable[[Path, str], None],
) -> None:
    """Extracts the features of videos in processes of their own.

    Args:
        videos: The videos.
        recipe: What each process does.
        devices: Of each process.
        keep: Stores the rows of a video; called there, so it must be picklable.
        computed: Called here with a video and the share of it that is done.
        failed: Called here with a video and the reason why it has no features.

    Raises:
        CdnTuneError: If a process cannot go on, whatever the video.
        OSError: If `keep` raises it.
    """
    left = iter(videos)
    with _pool() as pool:
        for device in devices:
            pool.start(recipe, device, keep)
        while pool.workers:
            for link in wait(list(pool.workers)):
                assert isinstance(link, Connection)  # noqa: S101  # of the workers' links
                worker = pool.workers[link]
                try:
                    kind, path, value = link.recv()
                except (EOFError, OSError):
                    del pool.workers[link]
                    worker.process.join()
                    if worker.process.exitcode == 0:
                        continue
                    how = _ending(worker.process)
                    if not worker.videos:
                        raise TrainingError(
                            f"a process that extracts features ended by {how}; run the command again"
                        ) from None
                    for path in worker.videos:
                        failed(path, f"{path}: the process that read it ended by {how}; try it alone, or copy it again")
                    pool.start(recipe, worker.device, keep)
                    continue
                if kind == "take":
                    path = next(left, None)
                    if path is not None:
                        worker.videos.add(path)
                    with suppress(OSError):  # it has died: the link tells so next
                        link.send(path)
                elif kind == "computed":
                    computed(path, value)
                elif kind == "finished":
                    worker.videos.discard(path)
                    computed(path, 1.0) if value is None else failed(path, value)
                else:
                    raise value


@dataclass
class _Worker:
    """A process, and the videos that it has taken and not finished."""

    process: BaseProcess
    device: torch.device
    videos: set[Path]


class _Pool:
    """The processes, by the links to them."""

    def __init__(self) -> None:
        self._context = multiprocessing.get_context("spawn")
        self.workers: dict[Connection, _Worker] = {}

    def start(self, recipe: Recipe, device: torch.device, keep: Keep) -> None:
        """Starts a process."""
        here, there = self._context.Pipe()
        process = self._context.Process(target=_work, args=(there, recipe, device, keep), daemon=True)
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # inherited: none interrupts its imports
        try:
            process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        there.close()
        self.workers[here] = _Worker(process, device, set())


@contextmanager
def _pool() -> Iterator[_Pool]:
    """Yields processes, of which none is left in the end."""
    pool = _Pool()
    try:
        yield pool
    finally:
        for link, worker in pool.workers.items():
            worker.process.terminate()
            worker.process.join()
            link.close()


def _ending(process: BaseProcess) -> str:
    code = process.exitcode or 0
    return f"signal {-code} ({signal.Signals(-code).name})" if code < 0 else f"exit code {code}"


def _work(link: Connection, recipe: Recipe, device: torch.device, keep: Keep) -> None:
    """Extracts what the link hands out, in a process of its own, which ends with its parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends this process
    lock = threading.Lock()

    def send(kind: str, path: Path | None = None, value: Any = None) -> None:
        with lock:
            link.send((kind, path, value))

    def take() -> Path | None:
        try:
            with lock:
                link.send(("take", None, None))
                video: Path | None = link.recv()
                return video
        except (EOFError, OSError):  # the parent is gone
            return None

    def finished(path: Path, found: Frames | str) -> None:
        if not isinstance(found, str):
            keep(path, found)
        send("finished", path, found if isinstance(found, str) else None)

    try:
        if recipe.threads is not None:
            torch.set_num_threads(recipe.threads)
        backbone = open_backbone(recipe.backbone, recipe.weights, device, recipe.window)
        compute_rows(
            backbone,
            recipe.fps,
            take,
            lambda path, share: send("computed", path, share),
            finished,
            recipe.readers,
            recipe.decoders,
        )
    except BrokenPipeError:
        return
    except (CdnTuneError, OSError) as error:
        send("error", None, error)
    except Exception as error:
        send("error", None, TrainingError(f"features cannot be computed ({brief(error)}); try --device cpu"))
