"""Ray Tune over the engine's door: a searcher that asks, a scheduler that reports, a callback that polls."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cdn_tune.distributed.ray import FIFOScheduler, Searcher, TrialScheduler, ray, tune
from cdn_tune.tuning.engine.door import Answer, Assignment, Decision, Ending, EngineDriver, Loss, Room, TrialReport
from cdn_tune.tuning.engine.ray.results import (
    AVOID,
    DECISIONS,
    FAILURE,
    FAILURE_KIND,
    HALT,
    LOST,
    NUMBER,
    PARAMETERS,
    REPORT,
    SECONDS,
    STOPPED,
)
from cdn_tune.tuning.study.failures import DETERMINISTIC

_PENDING_SECONDS = 10.0  # without a place, after which a trial that keeps clear of a node in vain is recalled


class Adapters:
    """Searcher, scheduler and callback of one search; they share which trial of Ray's has which number.

    Args:
        driver: Decides.
        room: Returns what the cluster can take now.
        loss: Returns the loss that an error of Ray's, or a group's report, stands for.
        stopped: Receives the number of each trial that is stopped early or paused, or whose process is gone.
    """

    def __init__(
        self,
        driver: EngineDriver,
        room: Callable[[], Room],
        loss: Callable[[BaseException | Loss | None], Loss],
        stopped: Callable[[int], None],
    ) -> None:
        self.driver, self.room, self.loss, self.stopped = driver, room, loss, stopped
        self.numbers: dict[str, int] = {}  # by Ray's id, of trials that are with Ray
        self.searcher, self.scheduler, self.callback = _Searcher(self), _Scheduler(self), _Poll(self)

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Ray pickles its searcher, scheduler and callbacks into snapshots that are never read

    def decide(self, number: int, result: dict[str, Any]) -> str:
        """Passes a result on to the driver; returns what Ray Tune does with the trial."""
        stop: str = TrialScheduler.STOP
        if result.get(STOPPED):
            self.driver.ended(number, Ending("paused"))
        elif result.get(HALT):
            self.driver.ended(number, Ending("halted", result[HALT]))
        elif result.get(FAILURE):
            self.driver.ended(number, Ending("failed", result[FAILURE], result.get(FAILURE_KIND, DETERMINISTIC)))
        elif result.get(LOST):
            self.driver.lost(number, self.loss(result[LOST]))
        elif REPORT in result:
            end = float(result.get("timestamp", 0.0))
            began = end - float(result.get("time_since_restore", 0.0))
            report = TrialReport(result[REPORT], result[SECONDS], result.get("hostname", ""), began, end)
            decision = self.driver.reported(number, report)
            if decision is Decision.GO_ON:
                return str(TrialScheduler.CONTINUE)
            self.stopped(number)  # what is needed of it is on disk
            if decision is Decision.PAUSE:
                self.driver.ended(number, Ending("paused"))
        else:
            return str(TrialScheduler.CONTINUE)
        return stop


class _Searcher(Searcher):  # type: ignore[misc]  # Ray ships no types
    """Hands the driver's assignments to Ray Tune."""

    def __init__(self, adapters: Adapters) -> None:
        super().__init__()
        self._all = adapters

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """Returns the next trial's number and parameters, FINISHED, or None when it has to wait."""
        answer = self._all.driver.next(self._all.room())
        if isinstance(answer, Assignment):
            self._all.numbers[trial_id] = answer.number
            return {
                NUMBER: answer.number,
                PARAMETERS: dict(answer.parameters),
                AVOID: list(answer.avoid),
                DECISIONS: answer.decisions,
            }
        finished: str = Searcher.FINISHED
        return finished if answer is Answer.FINISHED else None

    def on_trial_complete(self, trial_id: str, result: object = None, error: bool = False) -> None:  # noqa: ARG002
        """Reports a trial that ran to its end; the driver ignores one that has left already."""
        number = self._all.numbers.pop(trial_id, None)
        if number is not None and not error:
            self._all.driver.ended(number, Ending("complete"))

    def save(self, checkpoint_path: str) -> None:
        """Saves nothing: the study is the record."""

    def restore(self, checkpoint_path: str) -> None:
        """Restores nothing: a search goes on from its study."""

    def __getstate__(self) -> dict[str, Any]:
        return {}


class _Scheduler(FIFOScheduler):  # type: ignore[misc]  # Ray ships no types
    """Reports results to the driver, and recalls trials that wait for a place in vain.

    Ray's own retries are off: they know neither which nodes to keep clear of nor what costs nothing.
    """

    def __init__(self, adapters: Adapters) -> None:
        super().__init__()
        self._all = adapters
        self._waiting: dict[Any, float] = {}  # since when trials wait for a place

    def on_trial_add(self, tune_controller: object, trial: Any) -> None:  # noqa: ARG002
        """Records that a trial waits for a place."""
        self._waiting[trial] = time.monotonic()

    def choose_trial_to_run(self, tune_controller: Any) -> None:
        """Leaves the order to Ray Tune; recalls what waits when the search is over, or off nodes that are fit by now.

        A process that is free goes to the newest trial by Tune's own rule.
        """
        for trial, since in list(self._waiting.items()):
            if trial.status != "PENDING":
                del self._waiting[trial]
                continue
            late = time.monotonic() - since > _PENDING_SECONDS
            in_vain = late and not set(trial.config[AVOID]) <= set(self._all.room().avoid)
            if self._all.driver.is_over or in_vain:
                del self._waiting[trial]
                self._all.driver.lost(trial.config[NUMBER], Loss("recalled"))
                trial.init_local_path()  # Ray lists the folders of all trials in the end, placed or not
                trial.update_last_result({"recalled": True})  # without a result Ray prints that it has completed
                tune_controller.stop_trial(trial)

    def on_trial_result(self, tune_controller: object, trial: Any, result: dict[str, Any]) -> str:  # noqa: ARG002
        """Returns whether a trial goes on."""
        decision = self._all.decide(trial.config[NUMBER], result)
        if decision == TrialScheduler.STOP:  # its number may be assigned again before Ray reports the end
            self._all.numbers.pop(trial.trial_id, None)
        return decision

    def on_trial_error(self, tune_controller: object, trial: Any) -> None:  # noqa: ARG002
        """Reports a trial whose process failed."""
        self._all.stopped(trial.config[NUMBER])
        self._all.driver.lost(trial.config[NUMBER], self._all.loss(_error_of(trial)))

    def __getstate__(self) -> dict[str, Any]:
        return {}


class _Poll(tune.Callback):  # type: ignore[misc]  # Ray ships no types
    """Polls the driver while Ray Tune waits."""

    def __init__(self, adapters: Adapters) -> None:
        self._all = adapters

    def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:  # noqa: ARG002
        self._all.driver.poll(self._all.room())

    def __getstate__(self) -> dict[str, Any]:
        return {}


def _error_of(trial: Any) -> BaseException | None:
    """Returns what ended a trial, as Ray raised it; None if Ray has not written it down."""
    file = trial.pickled_error_file  # `get_pickled_error` reads a copy that is made later
    if file is None or not Path(file).exists():
        return None
    error = ray.cloudpickle.loads(Path(file).read_bytes())  # written by this process
    return error if isinstance(error, BaseException) else None
