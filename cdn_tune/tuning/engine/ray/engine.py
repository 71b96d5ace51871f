"""Ray Tune as the engine of a search: it places and runs trials, and reports to the driver."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from cdn_tune.config import Experiment, SearchSpace
from cdn_tune.distributed.cluster import capacity, connected, node_resources
from cdn_tune.distributed.nodes import this_node, was_started_here
from cdn_tune.distributed.shared_folder_check import check_shared_folder
from cdn_tune.training.runs.run_folder import read_manifest
from cdn_tune.training.train_trial import train_in
from cdn_tune.tuning.engine.door import EngineDriver
from cdn_tune.tuning.engine.ray.audit import Audit, audit, snapshot
from cdn_tune.tuning.engine.ray.node_checks import check_here

if TYPE_CHECKING:
    from cdn_tune.distributed.group_pool import GroupPool


class RayEngine:
    """Runs a search's trials with Ray Tune: one-worker trials in reused actors, others in kept worker groups.

    Ray Tune and Ray Train are imported once Ray is up (see `cluster.coming_up`).

    Args:
        space: What is searched; names what a trial occupies.
        experiment: The base experiment.
        run: The run folder.
        address: Ray cluster to join; None starts Ray on this machine.
        train: Trains a trial; takes what `train_in` takes.
    """

    def __init__(
        self,
        space: SearchSpace,
        experiment: Experiment,
        run: Path,
        address: str | None = None,
        train: Callable[..., object] = train_in,
    ) -> None:
        self.clock = time.monotonic
        self.left_behind: Audit | None = None  # what it left on the cluster, once it has run
        self._space, self._experiment, self._run = space, experiment, run
        self._address, self._train = address, train
        self._pool: GroupPool | None = None  # of trials of several workers

    @contextlib.contextmanager
    def started(self) -> Iterator[list[dict[str, float]]]:
        """Starts or joins Ray for the block, and groups of workers if trials need them; yields each node's resources.

        Raises:
            ClusterError: If the cluster does not answer.
            RunError: If a node does not see the run folder.
        """
        with connected(self._address):
            before = snapshot()  # without the processes of a Ray that was started here
            check_shared_folder(self._run)
            nodes = node_resources()
            with self._groups(nodes):
                yield nodes
            self.left_behind = None if was_started_here() else audit(before)
        self.left_behind = self.left_behind or audit(before)

    @contextlib.contextmanager
    def _groups(self, nodes: list[dict[str, float]]) -> Iterator[None]:
        """Keeps groups of workers for the block, if trials have several: they come up during the checks of a start."""
        if self._space.resources.workers == 1:
            yield
            return
        from cdn_tune.distributed.group_pool import GroupPool

        data = read_manifest(self._run)["data"]
        check = partial(check_here, self._experiment.plain()["data"], data, this_node())
        groups = max(1, capacity(self._space.resources, nodes))
        self._pool = GroupPool(self._space.resources, self._run, groups, check=check)
        try:
            yield
        finally:
            self._pool.close()
            self._pool = None

    def run(self, driver: EngineDriver) -> None:
        """Runs trials until the driver has no more, within a block of `started`."""
        from cdn_tune.tuning.engine.ray.tuner import run_trials

        run_trials(driver, self._space, self._experiment, self._run, self._train, self._pool)
