"""One trial of a search, as Ray Tune runs it: in a reused actor, or as a group of Ray Train workers."""

from __future__ import annotations

import contextlib
import gc
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from cdn_tune.config import ResourcesConfig, override
from cdn_tune.distributed.group import WorkerGroup, make_queue
from cdn_tune.distributed.ray import Queue, RayError, tune
from cdn_tune.distributed.warm_workers import Spares
from cdn_tune.errors import CdnTuneError, DataError, FolderHeld, NodeUnfit, ProcessSpent, RunError
from cdn_tune.training.memory.device import release_memory
from cdn_tune.training.object_store.working_copy import place_of, working_copy
from cdn_tune.training.reports import EpochReport
from cdn_tune.training.runs.files import write_text
from cdn_tune.training.train_trial import train_in
from cdn_tune.tuning.engine.ray.node_checks import check_here
from cdn_tune.tuning.engine.ray.tune_adapters import (
    AVOID,
    FAILURE,
    FAILURE_KIND,
    HALT,
    NUMBER,
    PARAMETERS,
    REPORT,
    SECONDS,
    STOPPED,
)
from cdn_tune.tuning.layout import trial_folder
from cdn_tune.tuning.stop_file import StopFile
from cdn_tune.tuning.study.failures import kind_of

ERROR = "error.txt"  # a failed trial's traceback


def run_trial(
    config: dict[str, Any],
    base: dict[str, Any],
    run: str,
    resources: dict[str, Any],
    data: dict[str, Any],
    home: str,
    train: Callable[..., object] = train_in,
) -> None:
    """Runs a one-worker trial in this process and reports to Ray Tune; module-level, so that it pickles.

    A failure that would repeat itself is reported as a result rather than raised: the actor stays usable for the next
    trial. What another node or a later moment may mend is raised: the actor ends, and the trial is handed out again.

    Args:
        config: The trial's number and parameters.
        base: The search's base experiment.
        run: The run folder, as `portable` names it.
        resources: What the trial occupies.
        data: Fingerprint of the driver's data.
        home: The driver's node.
        train: Trains it; takes what `train_in` takes.

    Raises:
        NodeUnfit: If the data are not on this node.
        FolderHeld: If a process that was given up still trains the trial.
    """
    number, here = config[NUMBER], working_copy(run)
    folder = trial_folder(here, number)
    seconds = 0.0

    def report(done: EpochReport) -> None:
        nonlocal seconds  # epochs that an earlier process has trained are told again: they count
        seconds += done.train_seconds + done.val_seconds
        tune.report({REPORT: done, SECONDS: seconds})

    try:
        check_here(base["data"], data, home)
        experiment = override(base, config[PARAMETERS], f"trial {number}")
        train(experiment, folder, report, threads=resources["cpus_per_worker"], stop=StopFile(here))
    except KeyboardInterrupt:  # asked to stop, and saved
        tune.report({STOPPED: True})
    except (NodeUnfit, FolderHeld):
        raise
    except Exception as error:  # told as the trial's failure, with the traceback beside it
        if isinstance(error, DataError):  # the data may have gone since they were checked
            check_here(base["data"], data, home, again=True)
        tune.report(failed(error, folder))
    finally:
        release_memory()


class GroupTrial(tune.Trainable):  # type: ignore[misc]  # Ray ships no types
    """A trial of several workers: a Ray Train group whose reports become this trial's results.

    Its process goes from trial to trial. A group that ends by itself is freed with its last result; its workers go on
    to the next trial's group, or end if none follows soon. One that is stopped early is freed when Ray Tune has the
    process start the next trial or end; until then the driver's word ends its workers (`WorkerGroup.give_up`). It
    starts with the first step, for Ray Tune may set up two processes for a trial and use the one that comes first.
    """

    def setup(
        self,
        config: dict[str, Any],
        base: dict[str, Any],
        run: str,
        resources: dict[str, Any],
        data: dict[str, Any],
        home: str,
        max_failures: int,
        waiting: int,
    ) -> None:
        """Takes note of the first trial."""
        self._base, self._resources, self._max_failures = base, ResourcesConfig(**resources), max_failures
        self._run, self._check = run, partial(check_here, base["data"], data, home)
        self._group: WorkerGroup | None = None
        self._queue: Queue | None = None
        self._spares = Spares(waiting)
        self._note(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Takes note of another trial, and frees the former one's group.

        Raises:
            ProcessSpent: If that does not end; this process then does, and the trial is handed out again.
        """
        if not self._free():  # False, as Ray has it, would not be told to the searcher, which would wait for ever
            raise ProcessSpent(f"the workers of {self._folder} do not end")
        gc.collect()
        self._note(new_config)
        return True

    def _note(self, config: dict[str, Any]) -> None:
        here = working_copy(self._run)
        self._parameters, self._avoid = config[PARAMETERS], tuple(config.get(AVOID, ()))
        self._number, self._folder = config[NUMBER], trial_folder(here, config[NUMBER])
        self._stop = StopFile(here)
        self._failure: dict[str, str] | None = None
        self._seconds, self._is_last, self._has_begun = 0.0, False, False

    def _begin(self) -> None:
        self._has_begun = True
        try:
            experiment = override(self._base, self._parameters, f"trial {self._number}")
            self._folder.mkdir(parents=True, exist_ok=True)
            self._group = WorkerGroup(
                experiment,
                self._folder,
                self._resources,
                self._max_failures,
                stop=self._stop,
                avoid=self._avoid,
                check=self._check,
                queue=self._live_queue(),
                spares=self._spares,
            )
        except Exception as error:  # told by this step
            self._failure = failed(error, self._folder)

    def step(self) -> dict[str, Any]:
        """Waits for the group's next report."""
        if not self._has_begun:
            self._begin()
        report: dict[str, Any] | None = None
        if self._group is not None:
            try:
                report = self._group.next_report()
            except (NodeUnfit, FolderHeld):
                raise
            except Exception as error:  # told as the trial's failure
                self._failure = failed(error, self._folder)
        if self._failure is not None:
            self._free()
            return self._failure
        if report is None:
            self._free()
            return {"done": True} if self._is_last or not self._stop() else {STOPPED: True}
        self._is_last = report["epoch"] >= report["epochs"]
        self._seconds += report["train_seconds"] + report["val_seconds"]
        return flat_report(report, self._seconds)

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Saves nothing: the trial's folder holds its own checkpoint."""

    def load_checkpoint(self, checkpoint: dict[str, Any] | None) -> None:
        """Loads nothing: a trial taken up again goes on from its folder."""

    def cleanup(self) -> None:
        """Frees the group and its workers; Ray calls this when the process is to end, and the queue ends with it."""
        self._free()
        self._spares.free()

    def _live_queue(self) -> Queue:
        """Returns the queue of this process's groups: the one it has, unless that one is dead."""
        if self._queue is not None:
            with contextlib.suppress(RayError):
                self._queue.qsize()
                return self._queue
        self._queue = make_queue()
        return self._queue

    def _free(self) -> bool:
        """Frees the group, if there is one; returns whether it is gone for certain."""
        group, self._group = self._group, None
        return group is None or group.stop()


def flat_report(report: dict[str, Any], seconds: float) -> dict[str, Any]:
    """Returns an epoch's report as the flat dict that Ray Tune passes on."""
    flat = {key: value for key, value in report.items() if key != "val"}
    return {**flat, **{f"val/{name}": value for name, value in report["val"].items()}, "trial_seconds": seconds}


def failed(error: Exception, folder: Path) -> dict[str, str]:
    """Returns the result that tells of an error.

    A machine at fault (disk full, folder gone) halts the search and leaves the trial for the next start; any other
    error is the trial's own.
    """
    if isinstance(error, RunError | OSError):
        return {HALT: str(error)}
    return {FAILURE: describe_failure(error, folder), FAILURE_KIND: kind_of(error)}


def describe_failure(error: Exception, folder: Path) -> str:
    """Returns a failure's reason in one line, and leaves the traceback in the trial's folder."""
    if isinstance(error, CdnTuneError):
        return " ".join(str(error).split())
    write_text(folder / ERROR, "".join(traceback.format_exception(error)))
    place = place_of(folder)
    if place is not None:
        with contextlib.suppress(RunError):  # the reason counts, and is told all the same
            place.home.upload(folder / ERROR, place.named(ERROR))
    lines = str(error).splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}"[:300]
