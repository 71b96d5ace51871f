"""One trial on several workers, outside a search."""

from __future__ import annotations

from pathlib import Path

from cdn_tune.config import Experiment, ResourcesConfig
from cdn_tune.distributed.cluster import connected, slots
from cdn_tune.distributed.group import WorkerGroup
from cdn_tune.training.report import EpochReport, Report


def train_on_workers(
    experiment: Experiment, folder: Path, workers: int, report: Report, address: str | None = None
) -> None:
    """Trains an experiment on a Ray Train group; a GPU for each worker if the cluster has as many.

    Args:
        experiment: What to train.
        folder: The trial's folder, reachable from every worker's node.
        workers: Number of workers.
        report: Called here after every epoch.
        address: Ray cluster to join; None starts Ray on this machine.

    Raises:
        CdnTuneError: If the cluster is too small, or training fails.
    """
    with connected(address) as available:
        gpus = 1.0 if available.get("GPU", 0) >= workers else 0.0
        resources = ResourcesConfig(workers=workers, gpus_per_worker=gpus)
        slots(resources, available)
        group = WorkerGroup(experiment, folder, resources, max_failures=2)
        try:
            while (done := group.next_report()) is not None:
                report(EpochReport(**done))
        finally:
            group.stop()
