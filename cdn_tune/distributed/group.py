"""A group of Ray Train workers that trains one trial and hands its reports over."""

from __future__ import annotations

import logging
import shutil
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch

from cdn_tune.config import Experiment, ResourcesConfig
from cdn_tune.distributed.controller import Trainer
from cdn_tune.distributed.nodes import off_nodes
from cdn_tune.distributed.ray import Empty, FailureConfig, Queue, RunConfig, ScalingConfig
from cdn_tune.distributed.warm_workers import Spares
from cdn_tune.errors import CdnTuneError, DataError, MemoryShortage, TrainingError, WorkerLost
from cdn_tune.training.loop import never
from cdn_tune.training.memory.device import release_memory
from cdn_tune.training.object_store.fencing import Superseded
from cdn_tune.training.object_store.working_copy import delete_at_home, place_of, portable, working_copy
from cdn_tune.training.reports import EpochReport, OnStep, StepReport, ignore
from cdn_tune.training.runs.stop_flag import Flag
from cdn_tune.training.train_trial import train_in

REPORT, STEP, ERROR = "report", "step", "error"
STOP = ".stop"  # a file in the trial's folder that asks its workers to save their state and stop
GIVEN_UP = ".given-up"  # one that tells who holds them to kill them
_STEP_SECONDS = 0.25
_POLL_SECONDS = 0.1
_END_SECONDS = 10.0
_log = logging.getLogger(__name__)


class Check(Protocol):
    """Looks whether a worker's node can train."""

    def __call__(self, *, again: bool = False) -> None:
        """Raises if it cannot; looks again at what it has looked at before if it is asked to."""


class WorkerGroup:
    """Several workers that train one trial together.

    Reports come through a queue rather than through Ray Train's own, which would forward rank 0's metrics only at
    checkpoints and only into a Tune function.

    Args:
        experiment: The trial.
        folder: The trial's folder, reachable from every worker's node.
        resources: Number of workers and what each occupies.
        max_failures: How often the group is restarted from its last checkpoint after a worker died.
        on_step: Called with worker 0's steps, a few times a second at most, while a report is waited for.
        stop: Asked while a report is waited for; once it says yes the workers save their state and end.
        avoid: Nodes, by id, to keep clear of.
        check: Called by each worker before it trains; what it raises ends the training. Called again after an error in
            the data, with `again`: what it raises then is told instead.
        queue: Takes the workers' reports, and is left as it is; None makes one, a process, for this group.
        spares: In an actor, takes the workers when they are done, for the next group; None ends them.
    """

    def __init__(
        self,
        experiment: Experiment,
        folder: Path,
        resources: ResourcesConfig,
        max_failures: int = 0,
        on_step: OnStep | None = None,
        stop: Callable[[], bool] = never,
        avoid: tuple[str, ...] = (),
        check: Check | None = None,
        queue: Queue | None = None,
        spares: Spares | None = None,
    ) -> None:
        self._on_step, self._stop = on_step, stop
        self._flag, self._raised = Flag(folder / STOP), False
        self._flag.lower()
        self._given_up = Flag(folder / GIVEN_UP)
        self._given_up.lower()
        self._scratch, self._place = folder / ".ray", place_of(folder)
        self._clear_scratch()  # a killed run's, which Ray Train would take for its own
        files, scratch = None, str(self._scratch)
        if self._place is not None:
            files, scratch = self._place.home.file_system(self._place.named(".ray"))
        self._owns_queue, self._queue = queue is None, make_queue() if queue is None else queue
        self._token = uuid.uuid4().hex  # of what its own workers report; others' may lie in the queue
        self._error: BaseException | None = None
        bundle: dict[str, float] = {"CPU": resources.cpus_per_worker}
        if resources.gpus_per_worker:
            bundle["GPU"] = resources.gpus_per_worker
        self._trainer = Trainer(
            _work,
            train_loop_config={
                "experiment": experiment.plain(),
                "folder": portable(folder),
                "threads": resources.cpus_per_worker,
                "queue": self._queue,
                "token": self._token,
                "steps": on_step is not None,
                "check": check,
            },
            scaling_config=ScalingConfig(
                num_workers=resources.workers,
                use_gpu=resources.gpus_per_worker > 0,
                resources_per_worker=bundle,
                label_selector=off_nodes(avoid) or None,
            ),
            run_config=RunConfig(
                name="train",
                storage_path=scratch,
                storage_filesystem=files,
                failure_config=FailureConfig(max_failures=max_failures),
            ),
            given_up=self._given_up,
            spares=spares,
        )
        self._thread = threading.Thread(target=self._fit, daemon=True, name="ray-train")
        self._thread.start()

    def next_report(self) -> dict[str, Any] | None:
        """Waits for the next report.

        Returns:
            An epoch's report as a plain dict, or None when training is over.

        Raises:
            WorkerLost: If workers or nodes died more often than `max_failures` bears.
            CdnTuneError: If training failed, with its reason; it would fail again.
            OSError: If a worker could not read or write.
        """
        while True:
            alive = self._thread.is_alive()
            if not self._raised and self._stop():
                self._raised = True
                self._flag.raise_it()
            try:
                token, kind, content = self._queue.get(timeout=_POLL_SECONDS)
            except Empty:
                if alive:
                    continue
                if self._error is not None:
                    raise WorkerLost(reason_of(self._error)) from self._error
                return None
            if token != self._token:
                continue
            if kind == STEP:
                if self._on_step is not None:
                    self._on_step(StepReport(**content))
            elif kind == ERROR:
                failure: Exception = content
                raise failure
            else:
                report: dict[str, Any] = content
                return report

    def stop(self) -> bool:
        """Frees everything the group holds; safe to call at any time, and more than once.

        Returns:
            Whether it is gone for certain; if not, so will it be when this process ends.
        """
        parts: tuple[Callable[[], object], ...] = (
            self._trainer.end,
            partial(self._thread.join, timeout=_END_SECONDS),
            self._flag.lower,
            self._given_up.lower,
            partial(self._queue.shutdown, force=True) if self._owns_queue else never,
            self._clear_scratch,
        )
        for part in parts:
            try:
                part()
            except Exception:  # a store or a disk that is away must not cost the trial's result, nor the other parts
                _log.warning("a part of a group of workers could not be freed", exc_info=True)
        self._error = None  # its traceback holds the actors of a start that failed
        return not self._thread.is_alive()

    @staticmethod
    def give_up(folder: Path) -> None:
        """Has the workers that train in a folder killed by the actor that holds their group, wherever it is.

        Raises:
            OSError: If the folder cannot be written.
            RunError: If the run's home does not answer.
        """
        folder.mkdir(parents=True, exist_ok=True)  # on a machine without workers there is none
        Flag(folder / GIVEN_UP).raise_it()

    def _clear_scratch(self) -> None:
        """Deletes what Ray Train has noted of the run; every machine of the group has seen it."""
        shutil.rmtree(self._scratch, ignore_errors=True)
        delete_at_home(self._scratch)

    def _fit(self) -> None:
        try:
            self._trainer.fit()
        except Exception as error:  # handed to next_report, in another thread
            self._error = error


def make_queue() -> Queue:
    """Returns a queue for the reports of groups, one after the other: a process without a CPU of its own."""
    return Queue(actor_options={"num_cpus": 0})


def reason_of(error: BaseException) -> str:
    """Returns the innermost reason of an error that Ray has wrapped, in one line."""
    failures = getattr(error, "worker_failures", None)
    if failures:
        return reason_of(next(iter(failures.values())))
    cause = getattr(error, "cause", None) or error.__cause__
    if isinstance(cause, BaseException):
        return reason_of(cause)
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _work(config: dict[str, Any]) -> None:
    """What every worker runs; its world is the process group that Ray Train has joined."""
    queue: Queue = config["queue"]

    def put(kind: str, content: object) -> None:
        queue.put((config["token"], kind, content))

    def report(done: EpochReport) -> None:
        put(REPORT, done.plain())

    told = 0.0

    def on_step(step: StepReport) -> None:
        nonlocal told
        if time.monotonic() - told >= _STEP_SECONDS:
            told = time.monotonic()
            put(STEP, asdict(step))

    experiment = Experiment.model_validate(config["experiment"], strict=False)
    try:
        if config["check"] is not None:
            config["check"]()
        steps = on_step if config["steps"] else ignore
        folder = working_copy(config["folder"])
        train_in(experiment, folder, report, steps, config["threads"], stop=Flag(folder / STOP))
    except KeyboardInterrupt:  # asked to stop, and saved: no failure
        return
    except Superseded:  # the group that has taken over speaks for the trial
        raise
    except Exception as error:  # would fail again: told before Ray counts it as a failure and starts over
        if not _lacks_a_peer(error):
            put(ERROR, _told(_unfit(error, config["check"])))
        raise
    finally:
        release_memory()


def _unfit(error: Exception, check: Check | None) -> Exception:
    """Returns why the node is at fault for an error in the data, which may have gone since they were checked."""
    if isinstance(error, DataError) and check is not None:
        try:
            check(again=True)
        except CdnTuneError as reason:
            return reason
    return error


def _lacks_a_peer(error: Exception) -> bool:
    """Whether a worker failed because another one is gone: that one's end says why."""
    text = str(error).lower()
    signs = ("gloo", "nccl", "connection closed by peer", "connection reset by peer")
    return isinstance(error, torch.distributed.DistError) or (
        isinstance(error, RuntimeError) and any(sign in text for sign in signs)
    )


def _told(error: Exception) -> Exception:
    """Returns an error that can be sent to another process and read by a user."""
    if isinstance(error, CdnTuneError | OSError):
        return error
    if isinstance(error, MemoryError):
        return MemoryShortage(f"out of memory: {error}")
    return TrainingError(f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"[:300])
