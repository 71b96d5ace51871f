"""The loop of each worker of a group: one trial after the other, trained as by one worker alone."""

import gc
import pickle
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from typing import Any, Protocol

import torch

from cdn_tune.config import Experiment
from cdn_tune.distributed.group_coordinator import FINISHED, IDLE, OVER, REPORT, STEP, STOPPED
from cdn_tune.distributed.nodes import this_node
from cdn_tune.distributed.ray import RayError, ray
from cdn_tune.errors import CdnTuneError, DataError, MemoryShortage, TrainingError
from cdn_tune.training.loop import never
from cdn_tune.training.memory.device import release_memory
from cdn_tune.training.object_store.trial_sync import Superseded
from cdn_tune.training.object_store.working_copy import working_copy
from cdn_tune.training.reports import EpochReport, StepReport, Stop, ignore
from cdn_tune.training.step.process_group import World, this_world
from cdn_tune.training.step.threads import threads_for
from cdn_tune.training.train_trial import train_in

_STEP_SECONDS = 0.25
_POLL_SECONDS = 5.0  # far below the time-outs of collectives, in which the other workers wait meanwhile


class Check(Protocol):
    """Checks whether a worker's node can train."""

    def __call__(self, *, again: bool = False) -> None:
        """Raises if it cannot; with `again`, without regard to earlier checks."""


def work(config: dict[str, Any]) -> None:
    """Trains trials until there are no more, in the process group that Ray Train has joined.

    Rank 0 takes each trial from the coordinator, and all train it. A worker that fails alone raises, and Ray Train
    starts the group anew; after a failure on all of them, the group goes on with the next trial.

    Args:
        config: The `coordinator`; the `run`'s number; the run `folder`, as `portable` names it; `cpus` of a
            worker; a `check` of its node; whether `steps` are reported.
    """
    coordinator, run, world = config["coordinator"], config["run"], this_world()
    place = ray.util.get_current_placement_group().id.hex()
    ray.get(coordinator.hello.remote(run, place, world.rank, this_node()))
    while True:
        trial: Any = ray.get(coordinator.take.remote(run, place, _POLL_SECONDS)) if world.is_main else None
        trial = world.gather(trial)[0]
        if trial == OVER:
            return
        if trial != IDLE:
            coordinator.begin.remote(trial["ticket"], world.rank)
            _train(trial, config, world)


def _train(trial: dict[str, Any], config: dict[str, Any], world: World) -> None:
    """Trains one trial, reports how it ended, and leaves nothing of it in this process."""
    coordinator, ticket = config["coordinator"], trial["ticket"]
    experiment = Experiment.model_validate(trial["experiment"], strict=False)
    stop = _stop_request(coordinator, ticket) if world.is_main else never
    reported = 0.0

    def report(done: EpochReport) -> None:
        ray.get(coordinator.report.remote(ticket, REPORT, done.plain()))

    def on_step(step: StepReport) -> None:
        nonlocal reported
        if time.monotonic() - reported >= _STEP_SECONDS:
            reported = time.monotonic()
            coordinator.report.remote(ticket, STEP, asdict(step))

    try:
        unfit = world.gather(_unfit(config["check"]))
        if any(unfit):
            raise next(filter(None, unfit))
        folder = working_copy(config["folder"]) / trial["folder"]
        threads = trial.get("threads") or threads_for(experiment, config["cpus"])
        steps, decisions = on_step if config["steps"] else ignore, trial.get("decisions")
        train_in(experiment, folder, report, steps, threads, stop, decisions)
        how = FINISHED
    except KeyboardInterrupt:  # stopped, and saved if that was wanted
        how = STOPPED
    except Superseded:  # the group that has taken over reports the trial
        raise
    except Exception as error:  # would come again: reported before Ray Train starts the group anew
        if _lacks_a_peer(error):
            raise
        cause = _unfit(config["check"], again=True) if isinstance(error, DataError) else None
        if not _all_fail(coordinator, ticket, world.rank, cause or error):
            raise
        how = ""
    finally:
        gc.collect()
        release_memory()
        if experiment.train.compile:
            torch.compiler.reset()
    if how and world.is_main:
        ray.get(coordinator.end.remote(ticket, how))


def _stop_request(coordinator: Any, ticket: int) -> Callable[[], Stop]:
    """Returns a function for what a trial's workers have to do; a thread waits for news, so that no step does."""
    wanted = Stop.NO

    def wait() -> None:
        nonlocal wanted
        with suppress(RayError):  # the next report raises as well
            while (now := ray.get(coordinator.stop_wanted.remote(ticket, wanted, _POLL_SECONDS))) is not None:
                wanted = now

    threading.Thread(target=wait, daemon=True, name="cdn-tune-stop").start()
    return lambda: wanted


def _unfit(check: Check | None, again: bool = False) -> CdnTuneError | None:
    """Returns why this node cannot train, also if that came after the first check; None if it can."""
    try:
        if check is not None:
            check(again=again)
    except CdnTuneError as reason:
        return reason
    return None


def _all_fail(coordinator: Any, ticket: int, rank: int, error: Exception) -> bool:
    """Reports an error; returns whether all workers have failed at a point from which they can go on together.

    Where memory did not suffice, gradients may have been on their way between them.
    """
    readable = _readable(error)
    together = ray.get(coordinator.fail.remote(ticket, rank, pickle.dumps(readable)))
    return together and not isinstance(readable, MemoryShortage)


def _lacks_a_peer(error: Exception) -> bool:
    """Returns whether a worker failed because another one is gone, whose end has the cause."""
    text = str(error).lower()
    signs = ("gloo", "nccl", "connection closed by peer", "connection reset by peer")
    return isinstance(error, torch.distributed.DistError | RayError) or (
        isinstance(error, RuntimeError) and any(sign in text for sign in signs)
    )


def _readable(error: Exception) -> Exception:
    """Returns an error that can be sent to another process and read by a user."""
    if isinstance(error, CdnTuneError | OSError):
        return error
    if isinstance(error, MemoryError):
        return MemoryShortage(f"out of memory: {error}")
    return TrainingError(f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"[:300])
