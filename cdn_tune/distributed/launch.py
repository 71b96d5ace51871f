"""One trial on several workers, outside a search."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from cdn_tune.config import Experiment, ResourcesConfig
from cdn_tune.distributed.cluster import connected, node_resources, slots
from cdn_tune.distributed.group import WorkerGroup
from cdn_tune.distributed.shared_folder_check import check_reach
from cdn_tune.training.loop import never
from cdn_tune.training.reports import EpochReport, OnStep, Report, ignore


def train_on_workers(
    experiment: Experiment,
    folder: Path,
    workers: int,
    report: Report,
    address: str | None = None,
    on_step: OnStep = ignore,
    stop: Callable[[], bool] = never,
) -> None:
    """Trains an experiment on a Ray Train group; a GPU for each worker if the cluster has as many.

    Without GPUs the cluster's CPUs are shared out among the workers.

    Args:
        experiment: What to train.
        folder: The trial's folder, reachable from every worker's node.
        workers: Number of workers.
        report: Called here after every epoch.
        address: Ray cluster to join; None starts Ray on this machine.
        on_step: Called here with worker 0's steps, a few times a second at most.
        stop: Asked now and then; once it says yes the workers save their state and end.

    Raises:
        CdnTuneError: If the cluster is too small, or training fails.
        KeyboardInterrupt: If `stop` said so before the last epoch.
    """
    with connected(address) as available:
        gpus = 1.0 if available.get("GPU", 0) >= workers else 0.0
        cpus = 1 if gpus else max(1, int(available.get("CPU", 1) // workers))
        resources = ResourcesConfig(workers=workers, cpus_per_worker=cpus, gpus_per_worker=gpus)
        slots(resources, node_resources())
        check_reach(folder)
        group = WorkerGroup(experiment, folder, resources, max_failures=2, on_step=on_step, stop=stop)
        try:
            last = None
            while (done := group.next_report()) is not None:
                last = EpochReport(**done)
                report(last)
            if stop() and not (last and last.is_last):
                raise KeyboardInterrupt
        finally:
            group.stop()
