"""A trial of one worker, as Ray Tune runs it in a reused process; how its failures are reported."""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cdn_tune.config import override
from cdn_tune.distributed.ray import tune
from cdn_tune.errors import CdnTuneError, DataError, FolderHeld, NodeUnfit, RunError
from cdn_tune.training.memory.device import release_memory
from cdn_tune.training.object_store.working_copy import place_of, working_copy
from cdn_tune.training.reports import EpochReport
from cdn_tune.training.runs.files import write_text
from cdn_tune.training.step.threads import threads_for
from cdn_tune.training.train_trial import train_in
from cdn_tune.tuning.engine.ray.node_checks import check_here
from cdn_tune.tuning.engine.ray.results import (
    DECISIONS,
    FAILURE,
    FAILURE_KIND,
    HALT,
    NUMBER,
    PARAMETERS,
    REPORT,
    SECONDS,
    STOPPED,
)
from cdn_tune.tuning.layout import StopFile, trial_folder
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
    trial. What another node or a later moment may mend is raised: the actor ends, and the trial is assigned again.

    Args:
        config: The trial's number and parameters, and with which reports it may be stopped.
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
        nonlocal seconds  # epochs that an earlier process has trained are reported again: they count
        seconds += done.train_seconds + done.val_seconds
        tune.report({REPORT: done, SECONDS: seconds})

    try:
        check_here(base["data"], data, home)
        experiment = override(base, config[PARAMETERS], f"trial {number}")
        threads = threads_for(experiment, resources["cpus_per_worker"])
        train(experiment, folder, report, threads=threads, stop=StopFile(here), decisions=config[DECISIONS])
    except KeyboardInterrupt:  # asked to stop, and saved
        tune.report({STOPPED: True})
    except (NodeUnfit, FolderHeld):
        raise
    except Exception as error:  # reported as the trial's failure, with the traceback beside it
        if isinstance(error, DataError):  # the data may have gone since they were checked
            check_here(base["data"], data, home, again=True)
        tune.report(failed(error, folder))
    finally:
        release_memory()


def failed(error: Exception, folder: Path) -> dict[str, str]:
    """Returns the result that reports an error.

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
        with contextlib.suppress(RunError):  # the reason is reported all the same
            place.store.upload(folder / ERROR, place.named(ERROR))
    lines = str(error).splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}"[:300]
