"""What Ray Tune sees of the study: a searcher that asks and tells, a scheduler that lets the pruner decide."""

from __future__ import annotations

from typing import Any

from cdn_tune.distributed.group import reason_of
from cdn_tune.distributed.ray import FIFOScheduler, Searcher, TrialScheduler
from cdn_tune.tuning.study import Study

NUMBER = "number"
PARAMETERS = "parameters"
EPOCH = "epoch"
FAILURE = "failure"
HALT = "halt"


class StudySearcher(Searcher):  # type: ignore[misc]  # Ray ships no types
    """Hands the study's trials to Ray Tune and tells the study how they ended.

    Args:
        study: The record.
        limit: Trials in all.
    """

    def __init__(self, study: Study, limit: int) -> None:
        super().__init__()
        self._study = study
        self._limit = limit
        self._numbers: dict[str, int] = {}

    def suggest(self, trial_id: str) -> dict[str, Any] | str:
        """Returns the next trial's number and parameters, or FINISHED."""
        number = None if self._study.halted else self._study.next(self._limit)
        if number is None:
            finished: str = Searcher.FINISHED
            return finished
        self._numbers[trial_id] = number
        return {NUMBER: number, PARAMETERS: dict(self._study.parameters(number))}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Tells the study; a trial that the scheduler has pruned or failed is on record already."""
        number = self._numbers.pop(trial_id, None)
        if number is None:
            return
        if result and result.get(HALT):
            return  # stays on record as running: the next start takes it up
        if error:
            self._study.fail(number, "its worker process died")
        else:
            self._study.complete(number)

    def save(self, checkpoint_path: str) -> None:
        """Saves nothing: the study is the record."""

    def restore(self, checkpoint_path: str) -> None:
        """Restores nothing: a search is resumed from its study."""


class StudyScheduler(FIFOScheduler):  # type: ignore[misc]  # Ray ships no types
    """Runs trials in the order they are asked and stops those that the study's pruner gives up.

    Args:
        study: The record.
    """

    def __init__(self, study: Study) -> None:
        super().__init__()
        self._study = study

    def on_trial_error(self, tune_controller: object, trial: Any) -> None:  # noqa: ARG002
        """Records why a trial's process failed; Ray has given up restarting it."""
        error = trial.get_pickled_error()
        self._study.fail(trial.config[NUMBER], reason_of(error) if error else "its worker process died")

    def on_trial_result(self, tune_controller: object, trial: Any, result: dict[str, Any]) -> str:  # noqa: ARG002
        """Records a report and decides whether the trial goes on."""
        number = trial.config[NUMBER]
        go_on: str = TrialScheduler.CONTINUE
        stop: str = TrialScheduler.STOP
        if result.get(HALT):
            self._study.halted = result[HALT]
            return stop
        if result.get(FAILURE):
            self._study.fail(number, result[FAILURE])
            return stop
        if EPOCH not in result or result.get("done"):
            return go_on
        note = {
            "best_epoch": result["best_epoch"],
            "epochs": result["epochs"],
            "loss": result["loss"],
            "seconds": result["trial_seconds"],
            "samples_per_second": result["samples_per_second"],
        }
        if result["best_epoch"] == result[EPOCH]:
            note["val"] = {key.removeprefix("val/"): value for key, value in result.items() if key.startswith("val/")}
        lags = self._study.report(number, result[EPOCH], result["best_value"], note)
        if lags and result[EPOCH] < result["epochs"]:  # after its last epoch a trial is complete
            self._study.prune(number, f"stopped early after epoch {result[EPOCH]}")
            return stop
        return go_on
