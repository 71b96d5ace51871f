"""What a search shows and writes while it runs: its state for the terminal, its leaderboard in the run folder."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cdn_tune.config import Experiment
from cdn_tune.training.object_store.sync import push_run
from cdn_tune.tuning.driver import Driver
from cdn_tune.tuning.results.leaderboard import leaderboard, write_leaderboard
from cdn_tune.tuning.results.status import gpu_hours

_SHOW_SECONDS = 0.2
_SHARE = 50.0  # showing takes at most one part in so many of the driver's time, and writing as much
_WRITE_SECONDS = 5.0


@dataclass(frozen=True)
class SearchState:
    """A search as it stands."""

    rows: list[dict[str, Any]]  # the leaderboard
    limit: int  # trials in all
    slots: int  # trials that run at once
    finished: bool  # whether no trial is left to run
    elapsed: float = 0.0  # seconds of searching, over all starts
    gpu_hours: float = 0.0  # of all trials
    halted: str | None = None  # why no further trial starts, if so
    lines: tuple[str, ...] = ()  # notes on the cluster for the user


OnChange = Callable[[SearchState], None]


class Progress:
    """Shows a search a few times a second at most, and writes its leaderboard every few seconds; a long one less often.

    Args:
        driver: The search.
        run: The run folder.
        experiment: The base experiment, which names the metrics.
        on_change: Receives the state when it has changed.
        clock: Seconds since any moment, never falling.
    """

    def __init__(
        self, driver: Driver, run: Path, experiment: Experiment, on_change: OnChange, clock: Callable[[], float]
    ) -> None:
        self._driver, self._run, self._experiment = driver, run, experiment
        self._on_change, self._clock = on_change, clock
        self._gpus = driver.space.resources.workers * driver.space.resources.gpus_per_worker
        self._shown = self._written = float("-inf")
        self._has_changed = True
        self._show_pause, self._write_pause = _SHOW_SECONDS, _WRITE_SECONDS

    def changed(self, trial_ended: bool) -> None:
        """Records that there is something new; writes the leaderboard after a trial's end."""
        self._has_changed = True
        if trial_ended and self._clock() - self._written >= self._write_pause:
            self.write()

    def poll(self) -> None:
        """Shows what is new."""
        if self._has_changed and self._clock() - self._shown >= self._show_pause:
            self.show()

    def show(self) -> None:
        """Shows the search as it stands."""
        began, self._has_changed = self._clock(), False
        driver, rows = self._driver, self.rows()
        room, halted = driver.room, driver.study.halted
        state = SearchState(
            rows, driver.limit, room.slots, driver.is_finished, driver.seconds, gpu_hours(rows), halted, room.lines
        )
        self._show_pause = max(_SHOW_SECONDS, _SHARE * (self._clock() - began))
        self._on_change(state)  # may wait for a function of the user's, which is no reason to show less
        self._shown = self._clock()

    def rows(self) -> list[dict[str, Any]]:
        """Returns the leaderboard."""
        study = self._driver.study
        keys, metrics = list(study.space.parameters), list(self._experiment.eval.metrics)
        return leaderboard(study.entries(), keys, metrics, directions=study.directions, gpus=self._gpus)

    def write(self) -> None:
        """Writes the leaderboard, and uploads it where the run has an object store."""
        began = self._clock()
        write_leaderboard(self._run, self.rows())
        push_run(self._run)
        self._written = self._clock()
        self._write_pause = max(_WRITE_SECONDS, _SHARE * (self._written - began))
