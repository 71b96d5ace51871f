"""The same function on many inputs, in Ray tasks: several at a time, results in the order in which they are ready."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import torch

from cdn_tune.distributed.cluster import connected
from cdn_tune.distributed.nodes import reason_of
from cdn_tune.distributed.ray import RayError, ray
from cdn_tune.errors import CdnTuneError, ClusterError, TrainingError

Result = TypeVar("Result")

_RETRIES = 2  # of a task whose worker process or node died
_POLL_SECONDS = 1.0


def run_tasks(
    function: Callable[..., Result],
    inputs: Sequence[tuple[Any, ...]],
    workers: int,
    address: str | None = None,
    threads: int | None = None,
) -> Iterator[tuple[int, Result]]:
    """Calls a function on each input in Ray tasks, at most `workers` at a time, each with a GPU if there are as many.

    A task whose process dies is started again. The first error ends all tasks.

    Args:
        function: Module-level, so that workers can import it.
        inputs: Its arguments, a tuple per call.
        workers: Tasks at a time.
        address: Ray cluster to join; None starts Ray on this machine.
        threads: CPU threads of a task; as many as torch uses here if None, so that numbers do not depend on where
            they were computed.

    Yields:
        (position in `inputs`, result), as results come.

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
        remote = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=_RETRIES, retry_exceptions=False)(_call)
        size = threads or torch.get_num_threads()
        waiting = list(enumerate(inputs))[::-1]
        running: dict[Any, int] = {}
        try:
            while waiting or running:
                while waiting and len(running) < count:
                    position, arguments = waiting.pop()
                    running[remote.remote(function, arguments, size)] = position
                ready, _ = ray.wait(list(running), num_returns=1, timeout=_POLL_SECONDS)
                for reference in ready:
                    position = running.pop(reference)
                    yield position, _result(reference)
        finally:
            for reference in running:
                ray.cancel(reference, force=True)


def _call(function: Callable[..., Result], arguments: tuple[Any, ...], threads: int) -> tuple[Any, CdnTuneError | None]:
    """What a task runs; our own errors are handed over as results, since Ray would wrap them."""
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
