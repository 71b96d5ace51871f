"""What Ray Tune sees of the study: a searcher that asks and tells, a scheduler that lets the pruner decide."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from cdn_tune.distributed.group import reason_of
from cdn_tune.distributed.ray import (
    FIFOScheduler,
    Searcher,
    TrialScheduler,
    groups_made_by,
    ray,
    remove_placement_group,
    waits_for_place,
)
from cdn_tune.tuning.study.failures import DETERMINISTIC, LOST
from cdn_tune.tuning.study.retries import Losses, error_of, unfit_node
from cdn_tune.tuning.study.stopping_rules import QUERY_IOUS
from cdn_tune.tuning.study.study import Study

NUMBER = "number"
PARAMETERS = "parameters"
EPOCH = "epoch"
FAILURE, FAILURE_KIND = "failure", "failure_kind"
HALT = "halt"
STOPPED = "stopped"
AVOID = "avoid"
_PENDING, _RUNNING = "PENDING", "RUNNING"  # Ray Tune's
_STALE_SECONDS = 2.0  # how long a trial waits before its placement is looked into


@dataclass(frozen=True)
class Admission:
    """When Ray Tune may start another trial.

    Attributes:
        limit: Trials in all.
        is_over: Whether none should start any more.
        slots: How many may be with Ray at once, as the cluster is now.
        has_room: Whether the disk budget has room for another one.
        admitted: Told the number of each that starts.
        given_up: Told the number of each that is stopped early.
        avoid: Nodes, by id, that take no trials now.
        refuse: Told of a node that a trial found unfit, and why.
    """

    limit: int
    is_over: Callable[[], bool]
    slots: Callable[[], int]
    has_room: Callable[[], bool]
    admitted: Callable[[int], None]
    given_up: Callable[[int], None] = lambda number: None  # noqa: ARG005
    avoid: Callable[[], tuple[str, ...]] = tuple
    refuse: Callable[[str, str], None] = lambda node, reason: None  # noqa: ARG005


class StudySearcher(Searcher):  # type: ignore[misc]  # Ray ships no types
    """Hands the study's trials to Ray Tune and tells the study how they ended.

    Args:
        study: The record.
        admission: When another trial may start.
    """

    def __init__(self, study: Study, admission: Admission) -> None:
        super().__init__()
        self._study, self._admission = study, admission
        self._numbers: dict[str, int] = {}

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """Returns the next trial's number and parameters, FINISHED, or None when it has to wait for a place."""
        finished: str = Searcher.FINISHED
        if self._admission.is_over() or self._study.halted:
            return finished
        if len(self._numbers) >= self._admission.slots() or not self._admission.has_room():
            return None
        number = self._study.next(self._admission.limit)
        if number is None:  # FINISHED is for good, and one that runs may lose its node and come back
            return None if self._numbers and not self._study.halted else finished
        self._numbers[trial_id] = number
        self._admission.admitted(number)
        return {NUMBER: number, PARAMETERS: self._study.parameters(number), AVOID: list(self._admission.avoid())}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Tells the study; a trial that the scheduler has pruned, failed or put back is on record already."""
        number = self._numbers.pop(trial_id, None)
        if number is None or self._study.is_put_back(number):
            return
        if result and (result.get(HALT) or result.get(STOPPED)):
            self._study.interrupt(number)  # stays on record as running: the next start takes it up
        elif error:
            self._study.fail(number, "its worker process died", LOST)
        else:
            self._study.complete(number)

    def save(self, checkpoint_path: str) -> None:
        """Saves nothing: the study is the record."""

    def restore(self, checkpoint_path: str) -> None:
        """Restores nothing: a search is resumed from its study."""

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Ray pickles it beside its snapshots, which are never read


class StudyScheduler(FIFOScheduler):  # type: ignore[misc]  # Ray ships no types
    """Runs trials in the order they are asked and stops those that the study's pruner gives up.

    A trial whose worker or node is gone goes back to the study, which hands it out again as a new trial of Ray's.
    Ray's own retries know neither which nodes are to be kept clear of nor what costs nothing.

    Args:
        study: The record.
        admission: When another trial may start, and where.
    """

    def __init__(self, study: Study, admission: Admission) -> None:
        super().__init__()
        self._study, self._admission = study, admission
        self._losses = Losses(study.space.max_failures)
        self._waiting: dict[Any, float] = {}  # since when trials wait for a place
        self._recalled: set[int] = set()  # whose process was ended, for its group to be placed anew
        self._grouped = study.space.resources.workers > 1
        self._in_steps = study.space.early_stopping.unit == "step"
        self._by_query = study.space.early_stopping.name == "wilcoxon"
        self._seen: dict[int, dict[str, Any]] = {}  # of running trials: fastest evaluation, where they ran

    def on_trial_add(self, tune_controller: object, trial: Any) -> None:  # noqa: ARG002
        """Takes note that a trial waits for a place."""
        self._waiting[trial] = time.monotonic()

    def choose_trial_to_run(self, tune_controller: Any) -> None:
        """Leaves it to Tune to start trials as they come; those that wait in vain go back to the study.

        A process that is free then goes to the newest trial. The oldest may be one that waits for the cluster to grow:
        were it chosen, what it has asked Ray for would be withdrawn, and asked for again for the next to wait, and Ray
        starts a process for each.
        """
        over = self._admission.is_over() or self._study.halted is not None
        for trial, since in list(self._waiting.items()):
            late = time.monotonic() - since > _STALE_SECONDS and self._keeps_clear_in_vain(trial)
            if trial.status == _PENDING:
                if over or (late and _has_no_place(tune_controller, trial)):
                    del self._waiting[trial]
                    self._study.put_back(trial.config[NUMBER])
                    _withdraw(tune_controller, trial)
            elif not self._grouped or trial.status != _RUNNING:
                del self._waiting[trial]
            elif over or late:  # its process has a place, and what it waits with are its workers
                self._recall(trial)

    def _recall(self, trial: Any) -> None:
        """Ends the process of a trial whose workers wait for a place; then the trial goes back to the study."""
        actor = trial.temporary_state.ray_actor
        if actor is None or not waits_for_place(actor._actor_id.hex()):  # not yet, or they have found one
            return
        del self._waiting[trial]
        self._recalled.add(trial.config[NUMBER])
        ray.kill(actor)
        for group in groups_made_by(actor._actor_id.hex()):
            remove_placement_group(group)

    def on_trial_error(self, tune_controller: object, trial: Any) -> None:  # noqa: ARG002
        """Puts a trial back whose process failed, or records its failure if that has happened too often."""
        number = trial.config[NUMBER]
        self._waiting.pop(trial, None)
        if number in self._recalled:
            self._recalled.remove(number)
            self._study.put_back(number)
            return
        error = error_of(trial)
        unfit = unfit_node(error)
        if unfit is not None:
            self._admission.refuse(unfit.node, unfit.reason)
        if self._losses.may_go_on(number, error):
            self._study.put_back(number)
        else:
            self._study.fail(number, reason_of(error) if error else "its worker process died", LOST)

    def _keeps_clear_in_vain(self, trial: Any) -> bool:
        """Whether a trial still keeps clear of a node that takes trials by now, or is gone."""
        return not set(trial.config.get(AVOID, ())) <= set(self._admission.avoid())

    def on_trial_result(self, tune_controller: object, trial: Any, result: dict[str, Any]) -> str:  # noqa: ARG002
        """Records a report and decides whether the trial goes on."""
        number = trial.config[NUMBER]
        self._waiting.pop(trial, None)
        go_on: str = TrialScheduler.CONTINUE
        stop: str = TrialScheduler.STOP
        if result.get(STOPPED):
            return stop
        if result.get(HALT):
            self._study.halted = self._study.halted or result[HALT]
            return stop
        if result.get(FAILURE):
            self._study.fail(number, result[FAILURE], result.get(FAILURE_KIND, DETERMINISTIC))
            return stop
        if EPOCH not in result or result.get("done"):
            return go_on
        step = result["steps"] if self._in_steps else result[EPOCH]
        self._losses.reported(number, result[EPOCH])
        lags = self._study.report(number, step, result["best_value"], self._note(number, step, result))
        if lags and result[EPOCH] < result["epochs"]:  # after its last epoch a trial is complete
            self._study.prune(number, f"stopped early after epoch {result[EPOCH]}")
            self._admission.given_up(number)
            return stop
        return go_on

    def _note(self, number: int, step: int, result: dict[str, Any]) -> dict[str, Any]:
        """Returns the user attributes that a report brings."""
        seen = self._seen.setdefault(number, {"latency_ms": float("inf"), "segments": []})
        if result["val_queries"]:
            seen["latency_ms"] = min(seen["latency_ms"], 1000 * result["val_seconds"] / result["val_queries"])
        _extend(seen["segments"], result)
        note = {
            "best_epoch": result["best_epoch"],
            "epoch": result[EPOCH],
            "epochs": result["epochs"],
            "steps": result["steps"],
            "loss": result["loss"],
            "seconds": result["trial_seconds"],
            "samples_per_second": result["samples_per_second"],
            "segments": [list(segment) for segment in seen["segments"]],
        }
        if seen["latency_ms"] < float("inf"):
            note["latency_ms"] = seen["latency_ms"]
        if result["best_epoch"] == result[EPOCH]:
            note["val"] = {key.removeprefix("val/"): value for key, value in result.items() if key.startswith("val/")}
        if self._by_query and result["query_ious"]:
            note[f"{QUERY_IOUS}:{step}"] = result["query_ious"]
        return note

    def __getstate__(self) -> dict[str, Any]:
        return {}  # as the searcher


def _withdraw(tune_controller: Any, trial: Any) -> None:
    """Takes a trial that waits for a place from Ray Tune, and what it has noted of it."""
    controller = tune_controller._tune_controller  # the wrapper logs a warning at every such look
    if trial in controller._staged_trials:  # else an idle actor would be kept for it
        controller._unstage_trial_with_resources(trial)
    trial.init_local_path()  # Ray lists the folders of all trials in the end, also of those it never placed
    trial.update_last_result({"withdrawn": True})  # without a result Ray prints that the trial has completed
    controller.stop_trial(trial)


def _has_no_place(tune_controller: Any, trial: Any) -> bool:
    """Whether Ray has found no place for a trial yet; else its process is starting."""
    controller = tune_controller._tune_controller
    actor = controller._trial_to_actor.get(trial)
    return actor is None or actor in controller._actor_manager.pending_actors


def _extend(segments: list[list[Any]], result: dict[str, Any]) -> None:
    """Adds a report's time to where a trial ran: node, start and end in seconds since 1970."""
    node, end = result.get("hostname", ""), float(result.get("timestamp", 0))
    start = end - float(result.get("time_since_restore", 0.0))
    if segments and segments[-1][0] == node and start < segments[-1][2]:  # else a later process
        segments[-1][2] = end
    else:
        segments.append([node, round(start, 1), end])
