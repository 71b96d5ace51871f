"""Ray Tune as the engine of a search: it places and runs trials, and reports to the driver."""

from __future__ import annotations

import contextlib
import logging
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from cdn_tune.config import Experiment, SearchSpace
from cdn_tune.data.files import scratch_folder
from cdn_tune.distributed.cluster import capacity, connected, node_resources
from cdn_tune.distributed.group_pool import GroupPool
from cdn_tune.distributed.nodes import node_was_lost, off_nodes, reason_of, this_node, was_started_here
from cdn_tune.distributed.ray import tune
from cdn_tune.distributed.shared_folder_check import check_shared_folder
from cdn_tune.errors import NodeUnfit
from cdn_tune.training.object_store.working_copy import portable
from cdn_tune.training.runs.run_folder import read_manifest
from cdn_tune.training.train_trial import train_in
from cdn_tune.tuning.engine.door import EngineDriver, Loss, Room
from cdn_tune.tuning.engine.ray.audit import Audit, audit, snapshot
from cdn_tune.tuning.engine.ray.group_trial import GroupTrial
from cdn_tune.tuning.engine.ray.node_checks import NodeChecks, check_here
from cdn_tune.tuning.engine.ray.results import AVOID, NUMBER
from cdn_tune.tuning.engine.ray.slots import Slots
from cdn_tune.tuning.engine.ray.trial import run_trial
from cdn_tune.tuning.engine.ray.tune_adapters import Adapters
from cdn_tune.tuning.layout import RAY_LOG, StopFile


class RayEngine:
    """Runs a search's trials with Ray Tune: one-worker trials in reused actors, others in kept worker groups.

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
        before = snapshot()
        with connected(self._address):
            before = snapshot() if before.in_ray or self._address is not None else before
            check_shared_folder(self._run)
            nodes = node_resources()
            with self._groups(nodes):
                yield nodes
            self.left_behind = audit(before) if before.in_ray else None
        self.left_behind = self.left_behind or audit(before)

    @contextlib.contextmanager
    def _groups(self, nodes: list[dict[str, float]]) -> Iterator[None]:
        """Keeps groups of workers for the block, if trials have several: they come up during the checks of a start."""
        if self._space.resources.workers == 1:
            yield
            return
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
        resources, node, pool = self._space.resources, this_node(), self._pool
        data = read_manifest(self._run)["data"]
        base, run, stop = self._experiment.plain(), portable(self._run), StopFile(self._run)
        if pool is not None:
            needs = {"memory": 1.0}  # a byte: the workers have the CPUs
            trainable = tune.with_parameters(GroupTrial, base=base, run=run, coordinator=pool.handle)
        else:
            needs = {"CPU": float(resources.cpus_per_worker), "GPU": resources.gpus_per_worker}
            settings = {"base": base, "run": run, "resources": resources.plain(), "data": data, "home": node}
            trainable = tune.with_parameters(run_trial, **settings, train=self._train)
        checks = NodeChecks(self._experiment.data, data, node, self._space.reads(self._experiment.model.name))
        slots = Slots(resources, checks, may_grow=not was_started_here())

        def room() -> Room:
            if pool is None:
                return slots.room(driver.wants_slots)
            if stop():
                pool.save_all()
            elif driver.is_over:
                pool.drain()
            found = slots.room(driver.wants_slots and pool.is_up)
            pool.adjust(found.slots, found.avoid)
            return replace(found, slots=min(found.slots, pool.ready), why_none=found.why_none or pool.fault)

        def loss(error: BaseException | Loss | None) -> Loss:
            found = error if isinstance(error, Loss) else loss_of(error)
            if found.node:
                slots.refuse(found.node, found.reason)
            return found

        adapters = Adapters(driver, room, loss, stopped=_ignore if pool is None else pool.stop)
        with scratch_folder() as scratch, contextlib.closing(slots):
            tuner = tune.Tuner(
                tune.with_resources(trainable, partial(_request, needs)),
                tune_config=tune.TuneConfig(
                    search_alg=adapters.searcher,
                    scheduler=adapters.scheduler,
                    num_samples=-1,
                    reuse_actors=True,
                    trial_name_creator=_trial_name,
                    trial_dirname_creator=_dirname,
                ),
                run_config=tune.RunConfig(
                    name="tune",
                    storage_path=str(scratch),  # nothing in it is read again: the study is the record
                    callbacks=[adapters.callback],
                    checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),  # trials keep their own
                    failure_config=tune.FailureConfig(max_failures=0),  # the driver decides about lost trials
                    verbose=0,
                ),
            )
            with _quiet(self._run / RAY_LOG), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                tuner.fit()


def _ignore(number: int) -> None:
    """A trial of one worker ends with Ray Tune's."""


def loss_of(error: BaseException | None) -> Loss:
    """Returns what an error of Ray's means for the trial that it ended."""
    cause = getattr(error, "cause", None) or error
    if isinstance(cause, NodeUnfit):
        return Loss("unfit", cause.reason, cause.node)
    if error is None:
        return Loss("worker")
    return Loss("node" if node_was_lost(error) else "worker", reason_of(error))


def _request(bundle: dict[str, float], config: dict[str, Any]) -> Any:
    """Returns what Ray is asked to place a trial on: so much of one node, not of those to keep clear of."""
    selector = off_nodes(tuple(config[AVOID]))
    return tune.PlacementGroupFactory([bundle], **({"bundle_label_selector": [selector]} if selector else {}))


def _trial_name(trial: Any) -> str:
    return f"trial-{trial.config[NUMBER]:04d}"


def _dirname(trial: Any) -> str:
    return f"{_trial_name(trial)}-{trial.trial_id}"  # one that was lost is several trials to Ray


class _LogFile(logging.FileHandler):
    """A log file on a disk that may be full: the search reports that, and a traceback for every line says no more."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        """Drops a line that cannot be written."""


@contextlib.contextmanager
def _quiet(path: Path) -> Iterator[None]:
    """Sends Ray's own lines to a file; what went wrong is in the study and in the trials' folders."""
    handler = _LogFile(path, delay=True, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(name)s %(levelname)s %(message)s"))
    loggers = [logging.getLogger(name) for name in ("ray", "ray.tune", "ray.train", "ray.air")]
    before = [(logger, logger.level, logger.propagate, logger.handlers) for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
        logger.propagate, logger.handlers = False, [handler]
    try:
        yield
    finally:
        for logger, level, propagate, handlers in before:
            logger.setLevel(level)
            logger.propagate, logger.handlers = propagate, handlers
        handler.close()
