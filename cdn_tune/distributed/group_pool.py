"""Groups of workers that stay up from trial to trial: one run of Ray Train each, in a thread of this process."""

import logging
import os
import secrets
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cdn_tune.config import ResourcesConfig
from cdn_tune.distributed.group_coordinator import DIED, NODE, WORKER, Coordinator, RunStatus
from cdn_tune.distributed.nodes import alive_nodes, node_was_lost, off_nodes, pinned, reason_of, this_node
from cdn_tune.distributed.ray import (
    FailureConfig,
    PlacementGroup,
    RayActorError,
    RayError,
    RunConfig,
    ScalingConfig,
    UserCallback,
    placement_group_table,
    ray,
    remove_placement_group,
)
from cdn_tune.training.object_store.working_copy import delete_remote, place_of, portable

_POLL_SECONDS = 0.3
_ANSWER_SECONDS = 30.0
_IDLE_SECONDS = 20.0  # after which a group without a trial makes room: what waits cannot always be seen
_WAITED_FOR_SECONDS = 3.0  # and if something is seen to wait
_LOST_SECONDS = 3.0  # after which it is known whether a lost worker's node is alive
_HUNG_SECONDS = 30.0
_RESTARTS = 9  # of a group's workers within one run of Ray Train
_FAILURES = 3  # runs in a row that ended by themselves before a trial had begun in any
_LEAVE_SECONDS, _CLOSE_SECONDS = 10.0, 90.0  # for groups to leave at the end by themselves, and in any way
_MARKS = 1 << 22  # from which a pool draws the first number of its runs
_UNMARKED = 4096  # bytes of memory; a run's number comes on top
_START_SECONDS = 60.0  # that a run waits for its place, after which another one does
_SETTLE_SECONDS = 3.0  # in which Ray Train may not notice that a placement group it has just made is removed
DEMAND = "cdn-tune-demand-"  # begins the names of placement groups that only show an autoscaler what is wanted
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class GroupView:
    """A group, as the pool decides about it."""

    status: RunStatus  # the coordinator's
    avoid: tuple[str, ...] = ()  # nodes, by id, that it was started to keep clear of
    is_placed: bool = True  # its workers have a place
    is_evictable: bool = True  # it has a placement group, and none was removed just now


@dataclass(frozen=True)
class Decision:
    """What is done with the groups."""

    end: tuple[int, ...] = ()  # runs that end
    evict: tuple[int, ...] = ()  # runs whose placement groups are removed: their workers end at once
    start: int = 0  # how many are started
    asleep: int = 0  # how many have ended because they had no trial; they are started when there is one for them


def decide(
    groups: Mapping[int, GroupView], wanted: int, avoid: tuple[str, ...], queued: int, asleep: int, others_wait: bool
) -> Decision:
    """Returns what is to be done with the groups.

    Args:
        groups: The present ones, by run.
        wanted: How many there should be.
        avoid: Nodes, by id, that take no trials now.
        queued: Trials that wait for a group.
        asleep: How many of the wanted have ended because they had no trial.
        others_wait: Whether something else waits for a place.
    """
    open_ = {run: group for run, group in groups.items() if not group.status.is_closing}
    free = {run: group for run, group in open_.items() if not group.status.is_busy}
    end = {
        run
        for run, group in free.items()
        if (set(group.status.nodes) & set(avoid) if group.is_placed else group.avoid != avoid)
    }
    newest = sorted(free.keys() - end, key=lambda run: (free[run].is_placed, -run))  # those without a place first
    end.update(newest[: max(0, len(open_) - len(end) - wanted)])
    allowed = _WAITED_FOR_SECONDS if others_wait else _IDLE_SECONDS
    tired = {run for run, group in free.items() if group.status.idle > allowed and not queued} - end
    end |= tired
    count = len(open_) - len(end)
    asleep = max(0, min(asleep + len(tired), wanted - count) - max(0, queued - len(free.keys() - end)))
    evict = {
        run
        for run, group in groups.items()
        if group.is_evictable
        and (
            group.status.hung > _HUNG_SECONDS
            or (not group.is_placed and (run in end or (group.status.is_closing and not group.status.is_busy)))
        )
    }
    return Decision(tuple(sorted(end)), tuple(sorted(evict)), max(0, wanted - count - asleep), asleep)


@dataclass
class _Run:
    """One run of Ray Train."""

    number: int
    avoid: tuple[str, ...]
    thread: threading.Thread = field(init=False)
    error: BaseException | None = None
    is_ending: bool = False  # it has to, or is at fault
    began: float = field(default_factory=time.monotonic)
    seen: float | None = None  # since when a placement group stands for it
    was_placed: bool = False
    evicted: float = -_HUNG_SECONDS  # when its placement group was removed last


class GroupPool:
    """Keeps groups of workers up, which train the trials that are submitted to its coordinator.

    The groups start at once. What they reserve is marked, by a few bytes of memory in each bundle, so that it is found
    and removed whatever has died meanwhile.

    Args:
        resources: Number of workers of a group, and what each occupies.
        folder: Reachable from every node; trials' folders are in it. Ray Train writes some files there, in ``.ray``.
        groups: How many there should be.
        check: Called by each worker before a trial: what it raises ends the trial. See `group_worker.Check`.
        steps: Whether workers report steps.
    """

    def __init__(
        self,
        resources: ResourcesConfig,
        folder: Path,
        groups: int = 1,
        check: Callable[..., None] | None = None,
        steps: bool = False,
    ) -> None:
        self._resources, self._wanted = resources, groups
        self._avoid: tuple[str, ...] = ()
        # On this node: it is lost with the driver, not before.
        self.handle = pinned(ray.remote(num_cpus=0)(Coordinator), this_node()).remote()
        self.fault: str | None = None  # why no group can be kept up
        self._config = {
            "coordinator": self.handle,
            "folder": portable(folder),
            "cpus": resources.cpus_per_worker,
            "check": check,
            "steps": steps,
        }
        self._scratch, place = folder / ".ray", place_of(folder)
        self._clear_scratch()  # a killed run's, which Ray Train would take for its own
        self._storage: dict[str, Any] = {"storage_path": str(self._scratch)}
        if place is not None:
            files, path = place.store.file_system(place.named(".ray"))
            self._storage = {"storage_path": path, "storage_filesystem": files}
        self._next = secrets.randbelow(_MARKS)
        self._runs: dict[int, _Run] = {}
        # How many trials find a group: of those that have a place, and those that ended for want of a trial.
        self.ready = self._asleep = self._begun = self._failures = 0
        self._is_drained = self._is_saving = False
        self._lock, self._is_closed = threading.Lock(), threading.Event()
        os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = str(_START_SECONDS)
        os.environ["RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"] = str(_POLL_SECONDS)
        several = len(alive_nodes()) > 1  # one machine is not taken away in part
        os.environ["RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"] = str(int(several))
        for _ in range(groups):
            self._start()
        self._watcher = threading.Thread(target=self._watch, daemon=True, name="cdn-tune-groups")
        self._watcher.start()

    def adjust(self, groups: int, avoid: Sequence[str] = ()) -> None:
        """Changes how many groups there should be, and of which nodes they keep clear; those that train go on."""
        with self._lock:
            self._wanted, self._avoid = groups, tuple(sorted(avoid))

    @property
    def is_up(self) -> bool:
        """Whether all groups that there should be have a place, or ended for want of a trial."""
        return self.ready >= self._wanted

    def stop(self, number: int) -> None:
        """Discards a trial, whose workers leave it without saving its state; returns at once."""
        self.handle.stop.remote(number)

    def save_all(self) -> None:
        """Makes all trials save their state and end, and takes no more; returns at once."""
        if not self._is_saving:
            self._is_saving = self._is_drained = True
            self.handle.save_all.remote()

    def drain(self) -> None:
        """Ends the trials that no group has taken yet, and takes no more; returns at once."""
        if not self._is_drained:
            self._is_drained = True
            self.handle.drain.remote()

    def close(self) -> bool:
        """Ends all groups and frees what they hold; safe to call more than once.

        Returns:
            Whether nothing is left; if not, it goes with this process.
        """
        self._is_closed.set()
        self._watcher.join(_ANSWER_SECONDS)
        leaving: set[int] = set()
        try:
            self.handle.close.remote()
            status = ray.get(self.handle.status.remote(), timeout=_ANSWER_SECONDS)
            leaving = {run for run, state in status["runs"].items() if state.is_up}
        except RayError:
            _log.debug("the coordinator of the groups is gone", exc_info=True)
        gone = self._end(leaving)
        if gone:  # else it makes them end as soon as they are free
            ray.kill(self.handle)
        self._clear_scratch()
        return gone

    def _end(self, leaving: set[int]) -> bool:
        """Waits for all runs to end; those that do not leave by themselves lose their places until they give up."""
        start = time.monotonic()
        while (passed := time.monotonic() - start) < _CLOSE_SECONDS:
            places = self._places()
            settled = [run for run in places if self._is_settled(self._runs[run])]
            self._evict(run for run in settled if run not in leaving or passed > _LEAVE_SECONDS)
            if not places and not any(run.thread.is_alive() for run in self._runs.values()):
                return True
            time.sleep(_POLL_SECONDS / 3)
        return False

    def _clear_scratch(self) -> None:
        """Deletes what Ray Train has written of its runs."""
        shutil.rmtree(self._scratch, ignore_errors=True)
        delete_remote(self._scratch)

    def _start(self) -> None:
        self._next += 1
        run = _Run(self._next, self._avoid)
        run.thread = threading.Thread(target=self._fit, args=(run,), daemon=True, name=f"ray-train-{run.number}")
        self.handle.open.remote(run.number, self._resources.workers)
        self._runs[run.number] = run
        run.thread.start()

    def _fit(self, run: _Run) -> None:
        """Runs Ray Train until the group has to end, or cannot go on."""
        from ray.train.torch import TorchTrainer  # imports torch

        from cdn_tune.distributed.group_worker import work

        cpus, gpus = float(self._resources.cpus_per_worker), self._resources.gpus_per_worker
        bundle = {"CPU": cpus, **({"GPU": gpus} if gpus else {}), "memory": float(_UNMARKED + run.number)}
        try:
            TorchTrainer(
                work,
                train_loop_config={**self._config, "run": run.number},
                scaling_config=ScalingConfig(
                    num_workers=self._resources.workers,
                    use_gpu=gpus > 0,
                    resources_per_worker=bundle,
                    label_selector=off_nodes(run.avoid) or None,
                ),
                run_config=RunConfig(
                    name=f"group-{run.number}",
                    failure_config=FailureConfig(max_failures=_RESTARTS, controller_failure_limit=0),
                    callbacks=[Losses(self.handle, run.number)],
                    **self._storage,
                ),
            ).fit()
        except (Exception, SystemExit) as error:  # handed to the watcher; the second is Ray's own end
            run.error = error

    def _watch(self) -> None:
        while not self._is_closed.wait(_POLL_SECONDS):
            try:
                self._step()
            except RayActorError as error:
                self.fault = f"{DIED} ({reason_of(error)})"
                return
            except RayError:
                _log.debug("the cluster does not answer", exc_info=True)
            except Exception as error:  # a thread has no caller to raise to
                _log.warning("the groups of workers are not watched any more", exc_info=True)
                self.fault = f"groups of workers: {reason_of(error)}"
                return

    def _step(self) -> None:
        """Reads the groups' state and acts on it, once."""
        status = ray.get(self.handle.status.remote(), timeout=_ANSWER_SECONDS)
        if status["begun"] != self._begun:
            self._begun, self._failures = status["begun"], 0
        self._bury()
        places, now = self._places(), time.monotonic()
        groups = {}
        for number, run in self._runs.items():
            state = status["runs"].get(number, RunStatus())  # the newest may not have arrived
            if (
                state.loss is not None and state.lost > _LOST_SECONDS
            ):  # it shows now whether the workers' nodes are gone
                kind, reason = state.loss
                kind = kind if set(state.nodes) <= {node.id for node in alive_nodes()} else NODE
                self.handle.lose.remote(number, kind, reason)
            if state.fault and not run.is_ending:
                run.is_ending = True
                self._count_failure(state.fault)
            is_evictable = self._is_settled(run) and now - run.evicted > _HUNG_SECONDS
            groups[number] = GroupView(state, run.avoid, places.get(number, False), is_evictable)
        with self._lock:
            wanted, avoid = self._wanted if self.fault is None else 0, self._avoid
        decision = decide(groups, wanted, avoid, status["queued"], self._asleep, self._others_wait())
        self._asleep = decision.asleep
        for number in decision.end:
            self._runs[number].is_ending = True
            self.handle.close_run.remote(number)
        self._evict(decision.evict)
        for _ in range(decision.start):
            self._start()
        usable = [run for run, group in groups.items() if not group.status.is_closing and run not in decision.end]
        self.ready = min(wanted, sum(groups[run].is_placed for run in usable) + self._asleep)

    def _bury(self) -> None:
        """Frees what is left of the runs of Ray Train that have ended."""
        for run in list(self._runs.values()):
            if not run.thread.is_alive():
                reason = "it ended" if run.error is None else reason_of(run.error)
                ray.get(self.handle.remove.remote(run.number, f"its group of workers is gone ({reason})"))
                self._evict([run.number])
                del self._runs[run.number]
                if not run.is_ending and (run.was_placed or time.monotonic() - run.began < _START_SECONDS):
                    self._count_failure(reason)  # else there was no place for it

    def _count_failure(self, reason: str) -> None:
        self._failures += 1
        if self._failures >= _FAILURES:
            self.fault = f"no group of workers comes up: {reason}"

    def _places(self) -> dict[int, bool]:
        """Returns, by run, whether the placement group that stands for it has a place."""
        marked = {_run_of(group): group["state"] == "CREATED" for group in _standing_groups()}
        for number, run in self._runs.items():
            run.seen = (run.seen or time.monotonic()) if number in marked else None
            run.was_placed |= marked.get(number, False)
        return {run: marked[run] for run in self._runs.keys() & marked.keys()}

    def _is_settled(self, run: _Run) -> bool:
        return run.seen is not None and time.monotonic() - run.seen > _SETTLE_SECONDS

    def _others_wait(self) -> bool:
        """Returns whether another placement group than the pool's waits for CPUs or GPUs."""
        return any(
            group["state"] != "CREATED"
            and _run_of(group) not in self._runs
            and not group["name"].startswith(DEMAND)
            and any(bundle.get("CPU") or bundle.get("GPU") for bundle in group["bundles"].values())
            for group in _standing_groups()
        )

    def _evict(self, runs: Iterable[int]) -> None:
        """Removes the placement groups of runs; workers in them end, and Ray Train replaces them if it still runs."""
        wanted = set(runs)
        for group in _standing_groups() if wanted else ():
            if (run := _run_of(group)) in wanted:
                self._runs[run].evicted = time.monotonic()
                remove_placement_group(PlacementGroup(ray.PlacementGroupID(bytes.fromhex(group["placement_group_id"]))))


class Losses(UserCallback):  # type: ignore[misc]  # Ray ships no types
    """Reports, from Ray Train's controller, that workers of a group are gone."""

    def __init__(self, coordinator: Any, run: int) -> None:
        self._coordinator, self._run = coordinator, run

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:  # noqa: ARG002
        """Reports the death of a worker or of its node; what its peers raise follows from that."""
        errors = [getattr(error, "health_check_failure", error) for error in worker_exceptions.values()]
        errors.sort(key=lambda error: not isinstance(error, RayActorError))
        kind = NODE if any(map(node_was_lost, errors)) else WORKER
        self._coordinator.lost.remote(self._run, kind, reason_of(errors[0]))


def _run_of(group: dict[str, Any]) -> int:
    """Returns the run that a placement group is marked with, by memory; a negative number if it is not marked."""
    return int(min((bundle.get("memory", 0.0) for bundle in group["bundles"].values()), default=0.0)) - _UNMARKED


def _standing_groups() -> list[dict[str, Any]]:
    return [group for group in placement_group_table().values() if group["state"] != "REMOVED"]
