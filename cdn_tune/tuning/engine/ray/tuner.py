"""Ray Tune over the study: it places and runs trials, and tells the driver what happens."""

from __future__ import annotations

import contextlib
import logging
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from cdn_tune.distributed.nodes import off_nodes, this_node, was_started_here
from cdn_tune.distributed.ray import tune
from cdn_tune.training.object_store.working_copy import portable
from cdn_tune.training.runs.run_folder import read_manifest
from cdn_tune.tuning.driver import Driver
from cdn_tune.tuning.engine.ray.trial import GroupTrial, run_trial
from cdn_tune.tuning.engine.ray.tune_adapters import AVOID, NUMBER, StudyScheduler, StudySearcher
from cdn_tune.tuning.layout import RAY_LOG


class _Watch(tune.Callback):  # type: ignore[misc]  # Ray ships no types
    """Tells the driver what happens in Ray Tune."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver

    def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:  # noqa: ARG002
        self._driver.poll()

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:  # noqa: ARG002
        self._driver.changed()

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: Any, **info: Any) -> None:  # noqa: ARG002
        self._driver.changed()

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:  # noqa: ARG002
        self._driver.ended()

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:  # noqa: ARG002
        self._driver.ended()

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Ray snapshots its callbacks; this one has no state of its own


def run_tuner(driver: Driver, train: Callable[..., object]) -> None:
    """Runs Ray Tune over the study until no trial is left, a budget is spent, or somebody asks to stop."""
    space, resources = driver.space, driver.space.resources
    home, data = this_node(), read_manifest(driver.run)["data"]
    settings = {
        "base": driver.experiment.plain(),
        "run": portable(driver.run),
        "resources": resources.plain(),
        "data": data,
        "home": home,
    }
    grouped = resources.workers > 1
    if grouped:  # the driver of a group only waits: it takes a byte of memory, and no CPU from the workers
        waiting = 0 if was_started_here() else 1  # see places.Demand
        group = tune.with_parameters(GroupTrial, **settings, max_failures=space.max_failures, waiting=waiting)
        trainable = tune.with_resources(group, partial(_request, {"memory": 1.0}))
    else:
        needs = {"CPU": float(resources.cpus_per_worker), "GPU": resources.gpus_per_worker}
        trainable = tune.with_resources(
            tune.with_parameters(run_trial, **settings, train=train), partial(_request, needs)
        )
    admission = driver.start(home, data)
    scratch = tempfile.mkdtemp(prefix="cdn-tune-")
    try:
        tuner = tune.Tuner(
            trainable,
            tune_config=tune.TuneConfig(
                search_alg=StudySearcher(driver.study, admission),
                scheduler=StudyScheduler(driver.study, admission),
                num_samples=-1,
                reuse_actors=True,
                trial_name_creator=_trial_name,
                trial_dirname_creator=_dirname,
            ),
            run_config=tune.RunConfig(
                name="tune",
                storage_path=scratch,  # nothing in it is read again: the study is the record
                callbacks=[_Watch(driver)],
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),  # trials keep their own
                failure_config=tune.FailureConfig(max_failures=0),  # the study hands lost trials out again
                verbose=0,
            ),
        )
        with _quiet(driver.run / RAY_LOG), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tuner.fit()
    finally:
        driver.stop()
        shutil.rmtree(scratch, ignore_errors=True)


def _request(bundle: dict[str, float], config: dict[str, Any]) -> Any:
    """Returns what Ray is asked to place a trial on: so much of one node, not of those to keep clear of."""
    selector = off_nodes(tuple(config[AVOID]))
    return tune.PlacementGroupFactory([bundle], **({"bundle_label_selector": [selector]} if selector else {}))


def _trial_name(trial: Any) -> str:
    return f"trial-{trial.config[NUMBER]:04d}"


def _dirname(trial: Any) -> str:
    return f"{_trial_name(trial)}-{trial.trial_id}"  # one that lost its node is several trials to Ray


@contextlib.contextmanager
def _quiet(path: Path) -> Iterator[None]:
    """Sends Ray's own lines to a file; what went wrong is in the study and in the trials' folders."""
    handler = logging.FileHandler(path, delay=True, encoding="utf-8")
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
