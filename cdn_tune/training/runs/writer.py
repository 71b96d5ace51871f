"""Writing in the background, so that training waits for memory to be copied, not for a disk."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from types import TracebackType
from typing import Any

import torch


class Writer:
    """Runs jobs one after the other in a thread of its own; what a job raises is raised by the next call here."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="cdn-tune-writer")
        self._job: Future[None] | None = None

    def submit(self, job: Callable[[], None]) -> None:
        """Starts a job, once the one before has ended."""
        self.wait()
        self._job = self._pool.submit(job)

    def wait(self, seconds: float | None = None) -> bool:
        """Waits for the job, so long or to its end; returns whether nothing is left to be written."""
        if self._job is None:
            return True
        if wait([self._job], seconds).not_done:
            return False
        job, self._job = self._job, None
        job.result()
        return True

    def __enter__(self) -> Writer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(wait=True)
        if kind is None:
            self.wait()


class Snapshots:
    """Copies of a state on the CPU; each takes the memory of the one before, because fresh memory takes far longer."""

    def __init__(self) -> None:
        self._kept: dict[tuple[Any, ...], torch.Tensor] = {}

    def take(self, value: Any, where: tuple[Any, ...] = ()) -> Any:
        """Returns a copy of nested dicts, lists and tuples whose tensors are shared with nobody but the next copy.

        Args:
            value: What is copied.
            where: Its place in the whole.
        """
        if isinstance(value, torch.Tensor):
            kept = self._kept.get(where)
            if kept is None or kept.shape != value.shape or kept.dtype != value.dtype:
                kept = self._kept[where] = torch.empty(value.shape, dtype=value.dtype)
            return kept.copy_(value.detach())
        if isinstance(value, dict):
            return {key: self.take(item, (*where, key)) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return type(value)(self.take(item, (*where, place)) for place, item in enumerate(value))
        return value
