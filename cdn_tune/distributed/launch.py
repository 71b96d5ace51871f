"""What commands besides a search run on a cluster: one trial on several workers, a function on many inputs."""

import pickle
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch

from cdn_tune.config import Experiment, ResourcesConfig
from cdn_tune.distributed.cluster import connected, node_resources, slots
from cdn_tune.distributed.group_coordinator import FAILED, LOST, REPORT, STEP
from cdn_tune.distributed.group_pool import GroupPool
from cdn_tune.distributed.nodes import reason_of
from cdn_tune.distributed.ray import RayError, ray
from cdn_tune.distributed.shared_folder_check import check_shared_folder
from cdn_tune.errors import CdnTuneError, ClusterError, TrainingError, WorkerLost
from cdn_tune.training.loop import never
from cdn_tune.training.reports import EpochReport, OnStep, Report, StepReport, ignore

Result = TypeVar("Result")

_MAX_FAILURES = 2  # how often the training goes on from its last checkpoint after a worker died
_TASK_RETRIES = 2  # of a task whose worker process or node died
_POLL_SECONDS, _TASK_POLL_SECONDS = 0.1, 1.0


def train_on_workers(
    experiment: Experiment,
    folder: Path,
    workers: int,
    report: Report,
    address: str | None = None,
    on_step: OnStep = ignore,
    stop: Callable[[], bool] = never,
    threads: int | None = None,
) -> None:
    """Trains an experiment on a Ray Train group: a GPU for each worker if there are as many, else the CPUs shared out.

    Args:
        experiment: What to train.
        folder: The trial's folder, reachable from every worker's node.
        workers: Number of workers.
        report: Called in this process after every epoch.
        address: Ray cluster to join; None starts Ray on this machine.
        on_step: Called in this process with worker 0's steps, a few times a second at most.
        stop: Called now and then; once it returns true the workers save their state and end.
        threads: CPU threads of each worker; within its CPUs as many as `threads_for` returns if None.

    Raises:
        CdnTuneError: If the cluster is too small, or training fails.
        KeyboardInterrupt: If `stop` returned true before the last epoch.
    """
    with connected(address) as available:
        gpus = 1.0 if available.get("GPU", 0) >= workers else 0.0
        cpus = 1 if gpus else max(1, int(available.get("CPU", 1) // workers))
        resources = ResourcesConfig(workers=workers, cpus_per_worker=cpus, gpus_per_worker=gpus)
        slots(resources, node_resources())
        check_shared_folder(folder)
        pool = GroupPool(resources, folder, steps=on_step is not ignore)
        try:
            work = {"experiment": experiment.plain(), "folder": "", "threads": threads}
            for failure in range(_MAX_FAILURES + 1):
                lost = _train(pool, work, report, on_step, stop)
                if lost is None:
                    break
                if failure == _MAX_FAILURES:
                    raise WorkerLost(lost)
        except RayError as error:
            raise WorkerLost(reason_of(error)) from error
        finally:
            pool.close()


def _train(
    pool: GroupPool, work: dict[str, Any], report: Report, on_step: OnStep, stop: Callable[[], bool]
) -> str | None:
    """Trains a trial to its end; returns why its workers are lost, if they are."""
    ticket = ray.get(pool.handle.submit.remote(0, work))
    last: EpochReport | None = None
    is_stopping = False
    while True:
        if stop():
            is_stopping = True
            pool.save_all()
        if pool.fault is not None:
            raise WorkerLost(pool.fault)
        for kind, content in ray.get(pool.handle.next.remote(ticket, _POLL_SECONDS)):
            if kind == STEP:
                on_step(StepReport(**content))
            elif kind == REPORT:
                last = EpochReport.read(content)
                report(last)
            elif kind == FAILED:
                raise pickle.loads(content)  # noqa: S301 - written by a worker of ours
            elif kind == LOST:
                return str(content["reason"])
            elif is_stopping and not (last and last.is_last):
                raise KeyboardInterrupt
            else:
                return None


def run_tasks(
    function: Callable[..., Result],
    inputs: Sequence[tuple[Any, ...]],
    workers: int,
    address: str | None = None,
    threads: int | None = None,
) -> Iterator[tuple[int, Result]]:
    """Yields (position in `inputs`, result) of a function, as its calls in Ray tasks end; a GPU each if possible.

    A task whose process dies is started again. The first error ends all tasks.

    Args:
        function: Module-level, so that workers can import it.
        inputs: Its arguments, a tuple per call.
        workers: Tasks at a time.
        address: Ray cluster to join; None starts Ray on this machine.
        threads: CPU threads of a task; by default as many as torch uses in this process, so that numbers do not depend
            on where they were computed.

    Raises:
        ClusterError: If the cluster has fewer CPUs than workers, or cannot be reached.
        CdnTuneError: What the function raised.
        TrainingError: If it raised anything else, or its process kept dying.
    """
    count = min(workers, len(inputs))
    with connected(address) as available:
        if available.get("CPU", 0.0) < count:
            raise ClusterError(
                f"--workers {workers}: the cluster has {available.get('CPU', 0):g} CPUs, and each worker needs one; "
                "lower --workers"
            )
        gpus = 1 if available.get("GPU", 0) >= count else 0
        remote = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=_TASK_RETRIES, retry_exceptions=False)(_call)
        size = threads or torch.get_num_threads()
        waiting = list(enumerate(inputs))[::-1]
        running: dict[Any, int] = {}
        try:
            while waiting or running:
                while waiting and len(running) < count:
                    position, arguments = waiting.pop()
                    running[remote.remote(function, arguments, size)] = position
                ready, _ = ray.wait(list(running), num_returns=1, timeout=_TASK_POLL_SECONDS)
                for reference in ready:
                    position = running.pop(reference)
                    yield position, _result(reference)
        finally:
            for reference in running:
                ray.cancel(reference, force=True)


def _call(function: Callable[..., Result], arguments: tuple[Any, ...], threads: int) -> tuple[Any, CdnTuneError | None]:
    """Runs a task; returns its result, or our own errors, which Ray would wrap if they were raised."""
    torch.set_num_threads(threads)
    try:
        return function(*arguments), None
    except CdnTuneError as error:
        return None, error


def _result(reference: Any) -> Any:
    try:
        result, error = ray.get(reference)
    except RayError as failure:
        raise TrainingError(reason_of(failure)) from failure
    if error is not None:
        raise error
    return result
