"""What a run folder records of a search's trials beside the study: leaderboard.json, each trial's metrics, best/.

It shows whether the study knows all trials, and from it a lost study is made anew.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import accumulate
from pathlib import Path
from typing import Any, get_args

from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial

from cdn_tune.config import Experiment, SearchSpace
from cdn_tune.config.keys import get_keys
from cdn_tune.config.yaml import read_mapping
from cdn_tune.data.files import read_json
from cdn_tune.errors import CdnTuneError, RunError
from cdn_tune.training.object_store.working_copy import place_of
from cdn_tune.training.runs.kept import CHECKPOINT, KEPT, kept_folder, recorded_value
from cdn_tune.training.runs.records import METRICS, read_metrics
from cdn_tune.training.runs.run_folder import EXPERIMENT
from cdn_tune.tuning.layout import TRIALS, trial_folder
from cdn_tune.tuning.results.leaderboard import ENDED, LEADERBOARD_JSON, PAUSED, STATES, Row
from cdn_tune.tuning.study.candidates import Candidates
from cdn_tune.tuning.study.filtered_study import altered
from cdn_tune.tuning.study.ranking import (
    CONFIRMATION,
    CONFIRMS,
    COPY,
    LEARNED,
    REFUSED,
    ROLE,
    SEED,
    Objectives,
    Role,
    own,
)
from cdn_tune.tuning.study.samplers import to_distribution
from cdn_tune.tuning.study.soundness import check_study
from cdn_tune.tuning.study.stopping_rules import QUERY_IOUS

STATES_FOLDER = "checkpoints"  # of a trial
_STATES = {text: state for state, text in STATES.items()} | {PAUSED: TrialState.RUNNING}
_ROLES = frozenset(get_args(Role))
_SPARSE = 10  # so many numbers for each trial that is shown are believed
_COPIED = ("best_epoch", "parameters", "memory_gb", "latency_ms", "samples_per_second", "loss", "seconds")
_NOTED = ("reason", "failure", "retry_of", "copy_of", "learned_from", CONFIRMS, SEED)
_MEND = f"restore {LEADERBOARD_JSON} and {TRIALS}, or delete what is damaged"
LOST = "lost with the study"


def to_directions(space: SearchSpace, base: Experiment) -> list[StudyDirection]:
    """Returns whether each objective of a search is maximised or minimised."""
    return [StudyDirection[name.upper()] for name in Objectives(space, base).directions]


@dataclass(frozen=True)
class FolderTrials:
    """The trials that a run folder shows."""

    run: Path
    rows: Mapping[int, Row]  # of leaderboard.json, by number
    folders: frozenset[int]  # with a folder under trials/
    kept: frozenset[int]  # with a checkpoint in best/
    fault: str | None = None  # why leaderboard.json cannot be read, if so

    @classmethod
    def read(cls, run: Path) -> "FolderTrials":
        """Reads them; while a search runs, before its study, which is never behind."""
        kept = (path.parent.name.removeprefix("trial-") for path in (run / KEPT).glob(f"trial-*/{CHECKPOINT}"))
        folders = (path.name for path in (run / TRIALS).iterdir()) if (run / TRIALS).is_dir() else ()
        fault, rows = None, {}
        try:
            rows = _rows(run / LEADERBOARD_JSON)
        except RunError as error:
            fault = str(error)
        return cls(run, rows, _numbers(folders), _numbers(kept), fault)

    def numbers(self) -> list[int]:
        """Returns the numbers of all that is shown: rows, kept checkpoints, and trials that have finished an epoch."""
        return sorted({*self.rows, *self.kept, *filter(self._has_epochs, self.folders - self.rows.keys())})

    def unknown(self, entries: Iterable[FrozenTrial]) -> list[int]:
        """Returns the numbers of the trials that a study does not know, or not their end.

        Args:
            entries: The study's.
        """
        known = {trial.number: trial.state for trial in entries if trial.state != TrialState.WAITING}
        shown = self.rows.keys() | self.kept
        absent = {*(shown - known.keys()), *filter(self._has_epochs, self.folders - known.keys())}
        ended = {number for number, row in self.rows.items() if row["state"] in ENDED}
        return sorted(absent | {number for number in ended if known.get(number) == TrialState.RUNNING})

    def entries(self, space: SearchSpace, base: Experiment, held: Sequence[FrozenTrial] = ()) -> list[FrozenTrial]:
        """Returns the entries of a study that knows all trials, by number.

        What is shown of no trial, and one whose parameters are on no record, is there as refused, without parameters.

        Args:
            space: What is searched.
            base: The base experiment under all fixed overrides.
            held: The entries of the study, as far as it can be read; kept where the folder shows no more.

        Raises:
            RunError: If the folder holds values that no search writes.
        """
        unknown = set(self.unknown(held))
        entries = {trial.number: trial for trial in held if trial.number not in unknown}
        shown = self.numbers()
        last = max([*shown, *entries], default=-1)
        if last >= _SPARSE * (len(shown) + len(entries) + 100):
            raise RunError(f"{self.run}: shows a trial {last} among {len(shown)}; no search numbers its trials so")
        candidates = Candidates(space, base)
        for number in range(last + 1):
            if number not in entries:
                entries[number] = self._entry(number, candidates, entries)
        found = [entries[number] for number in range(last + 1)]
        try:
            check_study(space, base, found, to_directions(space, base), {})
        except ValueError as error:
            raise RunError(f"{self.run}: what its folder records cannot be used ({error}); {_MEND}") from None
        return found

    def _has_epochs(self, number: int) -> bool:
        path = trial_folder(self.run, number) / METRICS
        return path.is_file() and path.stat().st_size > 0

    def _goes_on(self, number: int) -> bool:
        """Whether a trial can be taken up again: what it is resumed from goes when it ends."""
        return place_of(self.run) is not None or any((trial_folder(self.run, number) / STATES_FOLDER).glob("*.pt"))

    def _entry(self, number: int, candidates: Candidates, earlier: Mapping[int, FrozenTrial]) -> FrozenTrial:
        row = self.rows.get(number, {})
        try:
            trial = self._shown(number, row, candidates, earlier)
        except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
            raise RunError(
                f"{self.run}: what its folder records of trial {number} cannot be used ({str(error)[:100]}); {_MEND}"
            ) from None
        return altered(trial, number=number)

    def _shown(self, number: int, row: Row, candidates: Candidates, earlier: Mapping[int, FrozenTrial]) -> FrozenTrial:
        space, state = candidates.space, row.get("state", "running")
        state = "running" if state == PAUSED else state  # taken up again, it comes to its rung once more
        params = self._params(number, row, candidates)
        if not params and state in (*_STATES, LEARNED):
            return create_trial(state=TrialState.FAIL, user_attrs={ROLE: REFUSED, "reason": LOST})
        epochs = _epochs(self.run, number, row)
        if state == "running" and epochs:  # as it was last recorded; it may have ended since
            is_last = epochs[-1]["epoch"] >= epochs[-1]["epochs"]
            state = "complete" if is_last else state if self._goes_on(number) else "pruned"
        steps = _steps(epochs, space.early_stopping.unit)
        reached = {step: float(each["best_value"]) for step, each in zip(steps, epochs, strict=True)}
        if not reached and (value := self._value(number, row)) is not None:
            reached = {int(row.get("epochs") or 1): value}
        note = self._note(number, row, epochs, candidates.base)
        for step, each in zip(steps, epochs, strict=True):
            if each.get("query_ious"):
                note[f"{QUERY_IOUS}:{step}"] = each["query_ious"]
        ended = _STATES.get(state, TrialState.PRUNED)
        if not row:
            note |= self._confirms(number, params, candidates, earlier)
        if state in _ROLES:
            note[ROLE] = state
        elif CONFIRMS in note:
            note[ROLE] = CONFIRMATION
        if state == COPY:
            ended = earlier[int(row["copy_of"])].state
            ended = ended if ended.is_finished() else TrialState.FAIL
        elif state == LEARNED and row.get("epochs") == row.get("of_epochs"):
            ended = TrialState.COMPLETE
        trial = create_trial(
            state=TrialState.RUNNING,
            params=params,
            distributions={name: to_distribution(space.parameters[name.partition("[")[0]]) for name in params},
            user_attrs=note,
            intermediate_values=reached,
        )
        values = earlier[int(row["copy_of"])].values if state == COPY and ended == TrialState.COMPLETE else None
        if ended == TrialState.COMPLETE and values is None:
            best = max(reached.values(), default=None)
            found = [] if best is None else [*Objectives(space, candidates.base).values(trial, best).values()]
            values = [value for value in found if value is not None]
            ended, values = (ended, values) if found and len(values) == len(found) else (TrialState.PRUNED, None)
        end = self._end(number)
        began = end - timedelta(seconds=max(float(note.get("seconds", 0.0)), 0.0))
        times = {"datetime_start": began, "datetime_complete": end if ended.is_finished() else None}
        return altered(trial, state=ended, values=values, **times)

    def _params(self, number: int, row: Row, candidates: Candidates) -> dict[str, Any]:
        """Returns a trial's sampled values by Optuna's names; none if they are on no record."""
        parameters = candidates.space.parameters
        if row:
            sampled = {key: row[key] for key in parameters if key in row}
            layers = {key for key in sampled if parameters[key].per_layer and isinstance(sampled[key], list)}
            params = {key: value for key, value in sampled.items() if key not in layers}
            for key in layers:
                params |= {f"{key}[{layer}]": value for layer, value in enumerate(sampled[key])}
            wrong = [name for name, value in params.items() if not parameters[name.partition("[")[0]].has(value)]
            if wrong:
                raise ValueError(f"{wrong[0]}={params[wrong[0]]} is outside of the search space")
            return params
        point = candidates.spread(get_keys(self._experiment(number), parameters))
        return point if candidates.is_complete(point) else {}

    def _confirms(
        self, number: int, params: Mapping[str, Any], candidates: Candidates, earlier: Mapping[int, FrozenTrial]
    ) -> dict[str, int]:
        """Returns which trial an entry without a row confirms, and under which seed; nothing if it is a trial."""
        seed = self._experiment(number).get("seed")
        if seed is None or seed == candidates.experiment(params).seed:
            return {}
        equal = (each.number for each in own(earlier.values()) if each.number < number and each.params == params)
        return {CONFIRMS: first, SEED: seed} if (first := next(equal, None)) is not None else {}

    def _experiment(self, number: int) -> Mapping[str, Any]:
        """Returns a trial's experiment as its checkpoints hold it; nothing if none can be read."""
        try:
            return read_mapping(kept_folder(self.run, number) / EXPERIMENT)
        except CdnTuneError:
            from cdn_tune.training.runs.checkpoint import BEST, LAST, read_checkpoint

            for name in (LAST, BEST):
                try:
                    found = read_checkpoint(trial_folder(self.run, number) / name)["experiment"]
                except CdnTuneError:
                    continue
                return found if isinstance(found, dict) else {}
        return {}

    def _value(self, number: int, row: Row) -> float | None:
        """Returns the best val metric of a trial without metrics: of its kept checkpoint, else of the leaderboard."""
        kept = recorded_value(kept_folder(self.run, number))
        return _number(row.get("value")) if kept is None else kept

    def _note(self, number: int, row: Row, epochs: list[dict[str, Any]], base: Experiment) -> dict[str, Any]:
        """Returns a trial's attributes."""
        note: dict[str, Any] = {key: found for key in _COPIED if (found := _number(row.get(key))) is not None}
        note |= {key: row[key] for key in _NOTED if key in row}
        columns = {name: _number(row.get(f"val {name}")) for name in base.eval.metrics}
        val = {name: value for name, value in columns.items() if value is not None}
        if "epochs" in row:
            note["epoch"] = row["epochs"]
        if "of_epochs" in row:
            note["epochs"] = row["of_epochs"]
        if epochs:
            last = epochs[-1]
            note |= {key: last[key] for key in ("best_epoch", "epoch", "epochs", "steps", "loss") if key in last}
            note.setdefault("seconds", sum(each["train_seconds"] + each["val_seconds"] for each in epochs))
            val = next((each["val"] for each in epochs if each["epoch"] == last["best_epoch"]), val)
        if val:
            note["val"] = val
        if "node" in row:
            at = self._end(number).timestamp()
            note["segments"] = [[str(row["node"]).rpartition(" ")[2], at - float(note.get("seconds", 0.0)), at]]
        return note

    def _end(self, number: int) -> datetime:
        """Returns when a trial was last recorded."""
        path = trial_folder(self.run, number) / METRICS
        return datetime.fromtimestamp((path if path.is_file() else self.run).stat().st_mtime)


def _rows(path: Path) -> dict[int, Row]:
    """Reads leaderboard.json; there are no rows without it.

    Raises:
        RunError: If it is damaged.
    """
    try:
        rows = [row for row in read_json(path) if row["state"] != "waiting"]
        found = {row["trial"]: row for row in rows}
        good = all(type(number) is int and number >= 0 for number in found) and len(found) == len(rows)
        if not good or not all(row["state"] in {*_STATES, *_ROLES} for row in rows):
            raise ValueError("it is no leaderboard")
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise RunError(f"{path}: cannot be read ({str(error)[:100]}); restore it, or delete it") from None
    return found


def _epochs(run: Path, number: int, row: Row) -> list[dict[str, Any]]:
    """Returns a trial's epochs; of one that has ended, those that were reported before it did."""
    if row.get("state", "running") not in _STATES:
        return []
    epochs = read_metrics(trial_folder(run, number))
    return [each for each in epochs if row.get("state") not in ENDED or each["epoch"] <= row.get("epochs", 0)]


def _steps(epochs: Sequence[dict[str, Any]], unit: str) -> list[int]:
    """Returns what each epoch was reported at, as the driver counts in a unit of early stopping."""
    if unit == "seconds":
        return [
            round(1000 * each) for each in accumulate(each["train_seconds"] + each["val_seconds"] for each in epochs)
        ]
    return [int(each["steps" if unit == "step" else "epoch"]) for each in epochs]


def _numbers(names: Iterable[str]) -> frozenset[int]:
    return frozenset(int(name) for name in names if name.isdecimal() and name.isascii() and len(name) < 9)


def _number(value: Any) -> float | int | None:
    """Returns a number of leaderboard.json, where those that are not finite are texts."""
    if value in ("nan", "inf", "-inf"):
        value = float(value)
    return value if type(value) in (int, float) and not (type(value) is float and math.isnan(value)) else None
