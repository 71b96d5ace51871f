"""Workers that go from one Ray Train run to the next: what a process loads before its first step takes seconds."""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass
from typing import Any

import torch

from cdn_tune.distributed.ray import (
    PlacementGroup,
    RayError,
    WorkerGroup,
    WorkerGroupState,
    ray,
    waiting_groups,
    without_barrier,
)

_IDLE_SECONDS = 20.0  # between two trials lies less than one, but for a sampler that thinks long
_LOOK_SECONDS = 3.0
_ANSWER_SECONDS = 5.0
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Held:
    """A group that waits for its next run."""

    wanted: tuple[object, ...]
    state: Any


class Spares:
    """Keeps the workers of a run that ended well, with their place, for the next run in this process.

    It keeps one group, for some seconds only, and while no placement group waits for a place.

    Args:
        waiting: How many placement groups of this job may wait at the end of a run all the same. A search on a cluster
            that may grow has one that always does, so that an autoscaler sees it; that trial's turn then comes last.
        seconds: How long a group is kept.
    """

    def __init__(self, waiting: int = 0, seconds: float = _IDLE_SECONDS) -> None:
        self._waiting, self._seconds = waiting, seconds
        self._lock = threading.Lock()
        self._held: _Held | None = None

    def may_stay(self) -> bool:
        """Whether a group whose run is over may be left: nobody should have its place before the next run."""
        return not _somebody_waits(self._waiting)

    def leave(self, wanted: tuple[object, ...], state: Any) -> None:
        """Keeps a group; one that was kept before is freed.

        Args:
            wanted: What it was asked for to be.
            state: The group.
        """
        self.free()
        with self._lock:
            self._held = held = _Held(wanted, state)
        threading.Thread(target=self._watch, args=(held,), daemon=True, name="cdn-tune-spares").start()

    def take(self, wanted: tuple[object, ...]) -> Any | None:
        """Hands the group over if it is as wanted and its workers answer; frees it otherwise."""
        held = self._let_go()
        if held is not None and held.wanted == wanted and _answers(held.state):
            return held.state
        _end(held)
        return None

    def free(self) -> None:
        """Frees the group, if one is kept."""
        _end(self._let_go())

    @property
    def place(self) -> PlacementGroup | None:
        """The placement group that is kept."""
        with self._lock:
            return None if self._held is None else self._held.state.placement_group_handle.placement_group

    def _let_go(self, only: _Held | None = None) -> _Held | None:
        """Forgets the group, or only this one, and returns it."""
        with self._lock:
            held = self._held
            if only is not None and held is not only:
                return None
            self._held = None
            return held

    def _watch(self, held: _Held) -> None:
        """Frees a group that is not taken: once it was kept for long enough, or if somebody waits at a later look."""
        deadline = time.monotonic() + self._seconds
        while self._held is held and time.monotonic() < deadline:
            time.sleep(min(_LOOK_SECONDS, self._seconds))
            if self._held is held and _somebody_waits():
                break
        try:
            _end(self._let_go(held))
        except Exception:  # Ray is gone, and the workers with it
            _log.debug("workers that were kept could not be freed", exc_info=True)


class _Stays(WorkerGroupState):  # type: ignore[misc]  # Ray ships no types
    """A group that outlives its run."""

    def shutdown(self) -> None:
        """Leaves the workers and their place."""


class Workers(WorkerGroup):  # type: ignore[misc]  # Ray ships no types
    """Ray Train's workers, which need none of its barrier, and come from the run before where that left some."""

    _spares: Spares | None = None
    _worker_group_state: Any
    _taken: Any | None = None

    @classmethod
    def over(cls, spares: Spares | None) -> type[Workers]:
        """Returns workers that are taken from spares and left to them; without any, each run starts its own."""
        return type(cls.__name__, (cls,), {"_spares": spares})

    def shutdown(self) -> None:
        """Ends the run; its workers stay for the next one if all went well and nobody waits for their place."""
        state = self._worker_group_state
        if self._spares is None or not self._have_ended_well() or not self._spares.may_stay():
            super().shutdown()
            return
        self._worker_group_state = _Stays(**vars(state))
        try:
            super().shutdown()
        except BaseException:
            state.shutdown()
            raise
        self._spares.leave(self._wanted(), state)

    def _have_ended_well(self) -> bool:
        status = self._latest_poll_status
        return bool(status and status.finished and not status.errors and status.get_preemption_info() is None)

    def _wanted(self) -> tuple[object, ...]:
        """Returns all that tells one group from another."""
        asked = self._worker_group_context
        return asked.num_workers, asked.resources_per_worker, asked.placement_strategy, asked.label_selector

    def _start_impl(self, *arguments: Any, **options: Any) -> None:
        try:
            with without_barrier():
                super()._start_impl(*arguments, **options)
        except BaseException:
            if self.has_started():  # Ray ends a group whose start has failed only if it failed before that
                self._worker_group_state.shutdown()
            raise

    def _create_placement_group(self, *arguments: Any, **options: Any) -> Any:
        if self._spares is not None and (taken := self._spares.take(self._wanted())) is not None:
            self._taken = taken
            return taken.placement_group_handle
        return super()._create_placement_group(*arguments, **options)

    def _create_workers(self, *arguments: Any, **options: Any) -> Any:
        if self._taken is not None:
            return self._taken.workers
        return super()._create_workers(*arguments, **options)


def _somebody_waits(beyond: int = 0) -> bool:
    """Whether placement groups wait for a place: of other jobs any, of this one more than so many."""
    try:
        own, others = waiting_groups()
    except Exception:  # the head is away: nobody can tell
        _log.debug("it is not known whether anybody waits for a place", exc_info=True)
        return True
    return others > 0 or own > beyond


def _answers(state: Any) -> bool:
    """Whether the workers live, and have left the process group of their last run."""
    asked = [worker.execute_async(torch.distributed.is_initialized) for worker in state.workers]
    try:
        return not any(ray.get(asked, timeout=_ANSWER_SECONDS))
    except RayError:
        return False


def _end(held: _Held | None) -> None:
    if held is not None:
        held.state.shutdown()
