"""A search as MLflow is offered it: one run for the search, and one below it for each trial."""

from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial

from cdn_tune.config import Experiment
from cdn_tune.config.yaml import dump
from cdn_tune.data.mark import to_mark
from cdn_tune.training.runs.run_folder import EXPERIMENT, SPACE, read_manifest
from cdn_tune.training.tracking.tracked_run import STATUS, TrackedRun, experiment_tags
from cdn_tune.training.tracking.tracker import LEAVING_SECONDS, Tracker
from cdn_tune.tuning.driver import Driver
from cdn_tune.tuning.layout import trial_folder
from cdn_tune.tuning.results.leaderboard import LEADERBOARD, LEADERBOARD_JSON, UNFINISHED, state_of
from cdn_tune.tuning.study.ranking import CONFIRMS, FINISHED, models, ranking, seed_of, trained, value_of

SEARCH = "search"
_SECONDS = 2.0  # between two offers
_SHARE = 50.0  # offering takes at most one part in so many of the driver's time


class SearchTracking:
    """Offers a search's trials to a tracker whenever they have changed, a long search's less often.

    A context manager: an error that leaves the block is logged as the search's end, which it is until it goes on.

    Args:
        driver: The search.
        run: The run folder.
        base: The base experiment.
        clock: Seconds since any moment, never falling.
    """

    def __init__(self, driver: Driver, run: Path, base: Experiment, clock: Callable[[], float]) -> None:
        self._driver, self._run, self._base, self._clock = driver, run, base, clock
        manifest = read_manifest(run)
        self._tracker = Tracker(base.tracking, str(manifest.get("run_id")))
        self._planted = to_mark(manifest.get("data", {}).get("planted"))
        self._sampled: dict[int, dict[str, Any]] = {}
        self._offered, self._pause, self._has_changed = float("-inf"), _SECONDS, True

    def __enter__(self) -> None:
        """Has nothing to do."""

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        """Logs that the search has failed, if it has; waits for that no longer than a user does who has seen it."""
        if isinstance(error, Exception):
            with suppress(Exception):  # the first error is reported; it may be of the study, which is read here
                self._tracker.close(self._runs("failed"), {}, LEAVING_SECONDS)
        if error is not None:
            self._tracker.abandon()

    def changed(self, trial_ended: bool) -> None:  # noqa: ARG002 - as observers are called
        """Records that there is something new."""
        self._has_changed = True

    def poll(self) -> None:
        """Offers what is new."""
        began = self._clock()
        if self._has_changed and began - self._offered >= self._pause:
            self._has_changed = False
            self._tracker.offer(self._runs("running"))
            self._offered = self._clock()
            self._pause = max(_SECONDS, _SHARE * (self._offered - began))

    def close(self, state: str, kept: list[Path]) -> str:
        """Offers the search's end and its results; returns a line that tells whether they are logged.

        Args:
            state: ``complete``, ``failed`` or ``unfinished``.
            kept: Checkpoints that were kept.
        """
        run = self._run
        files: dict[str, Path | str] = {name: run / name for name in (LEADERBOARD, LEADERBOARD_JSON, EXPERIMENT, SPACE)}
        entries = self._driver.study.entries()
        if best := models(entries)[:1]:
            files["best/experiment.yaml"] = dump(self._driver.study.experiment(best[0].number).plain())
        if self._base.tracking.checkpoints:
            files |= {path.relative_to(run).as_posix(): path for path in kept}
        return self._tracker.close(self._runs(state), files)

    @property
    def is_complete(self) -> bool:
        """Whether everything is logged, once it is closed."""
        return self._tracker.is_complete

    def _runs(self, state: str) -> list[TrackedRun]:
        entries = self._driver.study.entries()
        trials = trained(entries)
        best = ranking(entries)[:1]
        space, metric = self._driver.space, self._base.eval.metric
        value = value_of(best[0]) if best else None
        return [
            TrackedRun(
                key=SEARCH,
                name=space.name,
                state=state,
                status=STATUS.get(state, "SCHEDULED"),
                steps=sum(trial.state in FINISHED for trial in trials),
                metric=metric,
                tags=experiment_tags(self._base, self._planted, "search")
                | ({"best_trial": str(best[0].number)} if best else {}),
                params={"sampler": space.sampler.name, "early_stopping": space.early_stopping.name, "metric": metric},
                started=min(filter(None, (_milliseconds(trial.datetime_start) for trial in trials)), default=None),
                ended=max(filter(None, (_milliseconds(trial.datetime_complete) for trial in trials)), default=None),
                values={} if value is None else {f"best/{metric}": value},
            ),
            *(self._trial(trial, state) for trial in trials),
        ]

    def _trial(self, trial: FrozenTrial, search: str) -> TrackedRun:
        number, note, state = trial.number, trial.user_attrs, state_of(trial)
        if number not in self._sampled:
            self._sampled[number] = self._driver.study.parameters(number)
        sampled = self._sampled[number]
        tags = experiment_tags(self._base, self._planted, "trial")
        tags |= {"trial": str(number), "family": str(sampled.get("model.name", tags["family"]))}
        if (seed := seed_of(trial)) is not None:
            tags |= {"seed": str(seed), "confirms": str(note[CONFIRMS])}
        if note.get("reason"):
            tags["reason"] = str(note["reason"])
        if state == "running" and search != "running":
            state = UNFINISHED
        return TrackedRun(
            key=f"trial {number}",
            name=f"trial {number}",
            state=state,
            status=STATUS.get(state, "SCHEDULED"),
            steps=int(note.get("epoch", 0)),
            metric=self._base.eval.metric,
            parent=SEARCH,
            tags=tags,
            params={key: str(value) for key, value in sampled.items()},
            started=_milliseconds(trial.datetime_start),
            ended=_milliseconds(trial.datetime_complete),
            folder=trial_folder(self._run, number),
        )


def _milliseconds(moment: datetime | None) -> int | None:
    return None if moment is None else round(1000 * moment.timestamp())
