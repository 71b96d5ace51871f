"""What a search does about failures, budgets, retries, stops and other results: whole searches, virtual trials."""

import errno
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import pytest
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState
from sqlalchemy import event
from sqlalchemy.engine import Engine

from cdn_tune.config import Experiment, SearchSpace
from cdn_tune.data.videos.making import Making, write_making
from cdn_tune.errors import ConfigError, DataError, MemoryShortage, RunError, SearchError
from cdn_tune.training.runs.run_folder import LOCK
from cdn_tune.tuning.checkpoints.retention import Retention
from cdn_tune.tuning.engine.virtual.engine import Curve, CurvePoint, Fault, VirtualEngine, World
from cdn_tune.tuning.layout import STOP, trial_folder
from cdn_tune.tuning.progress import SearchState
from cdn_tune.tuning.results.record import Record, read_record
from cdn_tune.tuning.search import SearchOptions, SearchResult, search
from cdn_tune.tuning.storage.open import open_storage
from cdn_tune.tuning.study.ranking import role_of

Tiny = Callable[..., Experiment]
METRICS = ("R1@0.5", "R1@0.3", "R5@0.3", "R5@0.5", "mIoU")
EPOCHS = 3


def rising(number: int, parameters: Mapping[str, Any]) -> Sequence[CurvePoint]:
    """Epochs whose val metrics follow from the learning rate."""
    peak = min(1.0, 50 * parameters.get("optim.lr", 3e-3))
    return [CurvePoint(dict.fromkeys(METRICS, peak * epoch / EPOCHS)) for epoch in range(1, EPOCHS + 1)]


def short_of_memory(number: int, parameters: Mapping[str, Any]) -> Sequence[CurvePoint]:
    """There is no memory for wide models."""
    if parameters["model.hidden"] >= 32:
        raise MemoryShortage("out of memory with one query at once: about 3.00 GiB needed, 1.00 GiB available")
    return rising(number, parameters)


def broken_data(number: int, parameters: Mapping[str, Any]) -> Sequence[CurvePoint]:
    """The features are damaged."""
    raise DataError(f"features.hdf5: video v{int(1e6 * parameters['optim.lr'])} is damaged; restore the file")


class FailsOnce:
    """A curve that fails for one width until it is mended."""

    mended = False

    def __call__(self, number: int, parameters: Mapping[str, Any]) -> Sequence[CurvePoint]:
        if not self.mended and parameters["model.hidden"] == 8:
            raise ValueError("a shape that does not fit")
        return rising(number, parameters)


def make_space(**more: Any) -> SearchSpace:
    values = {
        "name": "rules",
        "experiment": "tiny",
        "parameters": {"optim.lr": {"type": "float", "low": 1e-3, "high": 1e-2}},
        "sampler": {"name": "random", "seed": 1},
        "early_stopping": {"name": "none"},
        "trials": 4,
        **more,
    }
    return SearchSpace.model_validate(values, strict=False)


def run_search(
    tiny: Tiny,
    run: Path,
    space: SearchSpace,
    curve: Curve = rising,
    faults: Iterable[Fault] = (),
    slots: int = 2,
    on_change: Callable[[SearchState], None] | None = None,
    **options: Any,
) -> SearchResult:
    engine = VirtualEngine(curve, World(nodes={0: slots}, faults=list(faults)))
    return search(space, tiny(), run, on_change or ignore, SearchOptions(engine=engine, **options))


def ignore(_: SearchState) -> None:
    pass


def record(run: Path) -> Record:
    return read_record(run)


def test_out_of_memory_is_infeasible_and_not_met_again(tiny: Tiny, tmp_path: Path) -> None:
    hidden = {"type": "int", "low": 8, "high": 64, "step": 8}
    space = make_space(parameters={"model.hidden": hidden}, start_with=[{"model.hidden": 32}], trials=4)
    run_search(tiny, tmp_path / "run", space, short_of_memory)
    trials = [trial for trial in record(tmp_path / "run").entries if role_of(trial) == "trial"]
    assert trials[0].state == TrialState.FAIL
    assert trials[0].user_attrs["failure"] == "memory"
    assert trials[0].constraints["memory"] > 0
    assert len(trials) == 4
    for failed in (trial for trial in trials if trial.state == TrialState.FAIL):
        later = [trial for trial in trials if trial.datetime_start > failed.datetime_complete]
        assert all(trial.params["model.hidden"] < failed.params["model.hidden"] for trial in later)


def test_values_that_do_not_go_together_are_told_without_training(tiny: Tiny, tmp_path: Path) -> None:
    space = make_space(
        parameters={
            "model.map.layers": {"type": "categorical", "choices": [1, 2]},
            "model.map.dynamic_layers": {"type": "categorical", "choices": [1, 2]},
        },
        start_with=[
            {"model.map.layers": 1, "model.map.dynamic_layers": 2},
            {"model.map.layers": 2, "model.map.dynamic_layers": 1},
        ],
        trials=2,
    )
    result = run_search(tiny, tmp_path / "run", space)
    states = [row["state"] for row in result.rows]
    assert states.count("complete") == 2  # the refused one does not count
    assert states.count("refused") >= 1
    assert any("dynamic_layers=2 exceeds layers=1" in row["reason"] for row in result.rows)
    assert not (trial_folder(tmp_path / "run", 0)).exists()


def test_a_broken_dataset_stops_the_search(tiny: Tiny, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"3 trials in a row failed .* video v\d+ is damaged"):
        run_search(tiny, tmp_path / "run", make_space(trials=50), broken_data)
    assert len(record(tmp_path / "run").entries) <= 4  # three, and one that had started


def test_failed_trials_are_tried_again_when_asked(tiny: Tiny, tmp_path: Path) -> None:
    hidden = {"type": "categorical", "choices": [8, 16, 24]}
    space = make_space(parameters={"model.hidden": hidden}, start_with=[{"model.hidden": 8}], trials=3)
    run, curve = tmp_path / "run", FailsOnce()
    result = run_search(tiny, run, space, curve)
    assert sorted(row["state"] for row in result.rows if row["state"] in ("complete", "failed"))[-1] == "failed"
    again = run_search(tiny, run, space, curve)
    assert again.was_finished
    curve.mended = True
    mended = run_search(tiny, run, space, curve, retry_failed=True, resume=True)
    assert not mended.was_finished
    assert not mended.interrupted
    retried = [trial for trial in record(run).entries if "retry_of" in trial.user_attrs]
    assert [trial.state for trial in retried] == [TrialState.COMPLETE]
    assert retried[0].params == {"model.hidden": 8}


def test_a_lost_worker_is_replaced_and_the_trial_goes_on(tiny: Tiny, tmp_path: Path) -> None:
    deaths = [Fault(at, "worker") for at in (0.5, 1.2, 4.5, 5.9)]  # two of each trial
    result = run_search(tiny, tmp_path / "run", make_space(trials=2, max_failures=2), faults=deaths, slots=1)
    assert [row["state"] for row in result.rows] == ["complete", "complete"]


def test_a_worker_lost_too_often_fails_its_trial(tiny: Tiny, tmp_path: Path) -> None:
    deaths = [Fault(at, "worker") for at in (0.1, 0.2, 0.3, 0.4)]
    with pytest.raises(SearchError, match="all 2 trials failed: its process was killed"):
        run_search(tiny, tmp_path / "run", make_space(trials=2, max_failures=1), faults=deaths, slots=1)
    trials = record(tmp_path / "run").entries
    assert {trial.state for trial in trials} == {TrialState.FAIL}
    assert {trial.user_attrs["failure"] for trial in trials} == {"lost"}


def test_trials_are_added(tiny: Tiny, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run_search(tiny, run, make_space(trials=2))
    assert len(run_search(tiny, run, make_space(trials=2), add_trials=2).rows) == 4
    assert run_search(tiny, run, make_space(trials=2)).was_finished  # four were asked for, and are there


def test_a_target_ends_the_search(tiny: Tiny, tmp_path: Path) -> None:
    space = make_space(trials=30, budget={"target": 0.3})
    result = run_search(tiny, tmp_path / "run", space)
    assert result.ended_by is not None
    assert "budget.target=0.3 is reached" in result.ended_by
    assert len(result.rows) < 30
    assert not result.interrupted


def test_trials_that_run_when_a_budget_ends_the_search_count_with_what_they_reached(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Retention, "has_best", lambda *_: True)  # a virtual engine writes no files

    def good_at_once(number: int, parameters: Mapping[str, Any]) -> Sequence[CurvePoint]:
        return [CurvePoint(dict.fromkeys(METRICS, 0.8)), *rising(number, parameters)[1:]]

    run, rule = tmp_path / "run", {"name": "none"}
    result = run_search(
        tiny, run, make_space(trials=30, budget={"target": 0.7}, early_stopping=rule), good_at_once, slots=1
    )
    assert result.ended_by is not None
    assert not result.interrupted
    [best] = result.rows
    assert (best["state"], best["value"], best["epochs"] < EPOCHS) == ("pruned", 0.8, True)
    assert best["reason"] == f"stopped early: after epoch {best['epochs']} before the search ended"
    raised = run_search(tiny, run, make_space(trials=30, early_stopping=rule), good_at_once, slots=1)
    assert Counter(row["state"] for row in raised.rows) == {"complete": 29, "pruned": 1}


def test_no_progress_ends_the_search(tiny: Tiny, tmp_path: Path) -> None:
    result = run_search(tiny, tmp_path / "run", make_space(trials=60, budget={"plateau": 5}))
    assert result.ended_by is not None
    assert "brought nothing better" in result.ended_by
    assert 6 <= len(result.rows) < 60


def test_a_stopped_search_keeps_its_trials_running_on_record(tiny: Tiny, tmp_path: Path) -> None:
    run = tmp_path / "run"
    reported: list[int] = []

    def look(state: SearchState) -> None:
        reported.extend(row["trial"] for row in state.rows if row["epochs"] == 1)

    result = run_search(tiny, run, make_space(), on_change=look, stop=lambda: bool(reported))
    assert result.interrupted
    assert not (run / STOP).exists()
    assert {trial.state for trial in record(run).entries} == {TrialState.RUNNING}
    before = {trial.number: trial.params for trial in record(run).entries}
    finished = run_search(tiny, run, make_space(), resume=True)
    assert [row["state"] for row in finished.rows] == ["complete"] * 4
    after = {trial.number: trial.params for trial in record(run).entries}
    assert before.items() <= after.items()


def test_results_of_another_run_are_learned_from(tiny: Tiny, tmp_path: Path) -> None:
    run_search(tiny, tmp_path / "first", make_space(trials=3))
    wider = {
        "optim.lr": {"type": "float", "low": 5e-4, "high": 2e-2},
        "model.proposals": {"type": "categorical", "choices": ["pool", "conv"]},
    }
    space = make_space(name="second", parameters=wider, trials=2, start_with=[])
    result = run_search(tiny, tmp_path / "second", space, warm_start=(tmp_path / "first",))
    assert any("learned from 3 of the 3 results" in note for note in result.notes)
    entries = record(tmp_path / "second").entries
    learned = [trial for trial in entries if role_of(trial) == "learned"]
    assert [trial.value for trial in learned] == [trial.value for trial in record(tmp_path / "first").entries]
    assert all(trial.params["model.proposals"] == "pool" for trial in learned)
    assert sum(role_of(trial) == "trial" for trial in entries) == 2
    assert {row["rank"] for row in result.rows if row["state"] == "learned"} == {""}
    other = make_space(name="other", parameters={"model.map.layers": {"type": "int", "low": 2, "high": 3}}, trials=1)
    none = run_search(tiny, tmp_path / "other", other, warm_start=(tmp_path / "first",))
    assert any("learned from" in note for note in none.notes)
    with pytest.raises(ConfigError, match="has begun already"):
        run_search(tiny, tmp_path / "second", space, warm_start=(tmp_path / "first",))


def test_one_slot_and_one_seed_repeat_exactly(tiny: Tiny, tmp_path: Path) -> None:
    parameters = {
        "optim.lr": {"type": "float", "low": 1e-3, "high": 1e-2, "log": True},
        "model.map.layers": {"type": "int", "low": 1, "high": 4},
    }
    space = make_space(
        parameters=parameters,
        sampler={"name": "tpe", "seed": 7, "startup_trials": 4},
        early_stopping={"name": "asha", "reduction_factor": 2},
        trials=10,
    )
    seen = []
    for name in ("first", "second"):
        run_search(tiny, tmp_path / name, space, slots=1)
        entries = record(tmp_path / name).entries
        seen.append([(trial.number, trial.params, trial.state, trial.value) for trial in entries])
    assert seen[0] == seen[1]
    assert TrialState.PRUNED in {state for _, _, state, _ in seen[0]}


def test_a_storage_elsewhere(tiny: Tiny, tmp_path: Path) -> None:
    url = f"journal:///{tmp_path / 'study.log'}"
    run = tmp_path / "run"
    result = run_search(tiny, run, make_space(trials=2), storage=url)
    assert len(result.rows) == 2
    assert not (run / "study.db").exists()
    assert len(record(run).entries) == 2
    assert run_search(tiny, run, make_space(trials=2)).was_finished  # the manifest knows where it lies
    with pytest.raises(RunError, match="another storage"):
        run_search(tiny, run, make_space(trials=2), storage=f"sqlite:///{tmp_path / 'x.db'}")
    with pytest.raises(RunError, match="of another run"):
        run_search(tiny, tmp_path / "another", make_space(trials=2), storage=url)


class FullDisk:
    """A curve under which the disk is full from a trial on, until there is room again."""

    def __init__(self, fill: Callable[[], object], at: int = 2) -> None:
        self._fill, self._at = fill, at

    def __call__(self, number: int, parameters: Mapping[str, Any]) -> Sequence[CurvePoint]:
        if number == self._at:
            self._fill()
        return rising(number, parameters)


@pytest.mark.parametrize("kind", ["journal", "database", "another journal"])
def test_a_full_disk_is_one_line_and_the_search_goes_on(
    tiny: Tiny, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / LOCK).touch()
    if kind == "database":
        open_storage(f"sqlite:///{run}/study.db")
    options = {"storage": f"journal:///{tmp_path}/j"} if kind == "another journal" else {}
    is_full = False

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    def torn(*_: object) -> None:
        with (tmp_path / "j").open("ab") as file:
            file.write(b'{"op_code"')
        full()

    def fill() -> None:
        nonlocal is_full
        is_full = True
        monkeypatch.setattr(os, "write", full)
        monkeypatch.setattr(JournalFileBackend, "append_logs", torn)

    def no_larger(connection: Any, *_: object) -> None:
        if is_full:
            connection.connection.execute("pragma max_page_count = 1")  # as many as it has

    def unsafe(connection: Any, _: object) -> None:
        connection.execute("pragma synchronous = off")  # takes a tenth of the time

    event.listen(Engine, "connect", unsafe)
    event.listen(Engine, "before_cursor_execute", no_larger)
    try:
        with pytest.raises(RunError, match=r"cannot be .*(No space left|disk is full).*make room") as error:
            run_search(tiny, run, make_space(), FullDisk(fill), trials=30, **options)
    finally:
        event.remove(Engine, "connect", unsafe)
        event.remove(Engine, "before_cursor_execute", no_larger)
        monkeypatch.undo()
    assert "\n" not in str(error.value)
    ended = len([trial for trial in read_record(run).entries if trial.state == TrialState.COMPLETE])
    result = run_search(tiny, run, make_space(), trials=ended + 2, **options)
    assert [row["state"] for row in result.rows] == ["complete"] * (ended + 2)


def test_a_run_folder_deleted_while_it_runs_is_one_line(tiny: Tiny, tmp_path: Path) -> None:
    run = tmp_path / "run"
    for take_away in (lambda: shutil.rmtree(run), lambda: run.rename(tmp_path / "elsewhere")):
        with pytest.raises(RunError, match="deleted or moved while the search ran"):
            run_search(tiny, run, make_space(), FullDisk(take_away, at=1), trials=3)
        assert not run.exists()  # nothing is written in its place
    (tmp_path / "elsewhere").rename(run)
    assert len(run_search(tiny, run, make_space(), trials=3).rows) == 3


def test_another_space_learns_from_the_run(tiny: Tiny, tmp_path: Path) -> None:
    run, wider = tmp_path / "a run", make_space(parameters={"optim.lr": {"type": "float", "low": 1e-3, "high": 1e-1}})
    run_search(tiny, run, make_space(trials=2))
    with pytest.raises(RunError, match=r"choose another --run folder, where --warm-start '.*a run' learns from its"):
        run_search(tiny, run, wider)
    result = run_search(tiny, tmp_path / "wider", wider, trials=1, warm_start=(run,))
    assert "learned from 2 of the 2 results" in result.notes[0]


def test_results_on_features_of_another_making_are_not_learned_from(tiny: Tiny, planted: Path, tmp_path: Path) -> None:
    first, data = tmp_path / "first", tmp_path / "data"
    shutil.copytree(planted, data)
    making = Making("efficientnet_lite0", "0123456789abcdef", 2.0, 1, 0.0, 224, {})

    def here(fps: float) -> Tiny:
        with h5py.File(data / "vgg_rgb_features.hdf5", "r+") as file:
            write_making(file, replace(making, fps=fps))
        return partial(tiny, **{"data.root": str(data)})

    run_search(here(2.0), first, make_space(trials=1))
    with pytest.raises(RunError, match=r"--warm-start .*first: searched on .* made otherwise \(fps 2.0 is 4.0 here\)"):
        run_search(here(4.0), tmp_path / "other", make_space(name="other"), warm_start=(first,))
    for name, there in (("alike", here(2.0)), ("unknown", tiny)):
        result = run_search(there, tmp_path / name, make_space(name=name, trials=1), warm_start=(first,))
        assert result.notes[0].startswith("learned from 1 of the 1 results")


def test_runs_of_other_spaces_are_learned_from_and_what_is_left_out_is_told(tiny: Tiny, tmp_path: Path) -> None:
    rate = {"type": "categorical", "choices": [1e-3, 1e-2]}
    first = {"optim.lr": rate, "model.proposals": {"type": "categorical", "choices": ["pool", "conv"]}}
    second = {"optim.lr": {"type": "categorical", "choices": [1e-2, 0.5]}}
    points = [{"optim.lr": 1e-3, "model.proposals": kind} for kind in ("pool", "conv")]
    run_search(tiny, tmp_path / "first", make_space(parameters=first, start_with=points, trials=2))
    run_search(tiny, tmp_path / "second", make_space(parameters=second, start_with=[{"optim.lr": 0.5}], trials=2))
    runs = (tmp_path / "first", tmp_path / "second")
    here = {"optim.lr": rate, "model.map.layers": {"type": "int", "low": 2, "high": 9}}  # the base has fewer than 2

    def learned(name: str, **more: Any) -> tuple[list[str], list[dict[str, Any]]]:
        space = make_space(name=name, parameters=here, trials=1, start_with=[], **more)
        notes = run_search(tiny, tmp_path / name, space, warm_start=runs).notes
        entries = record(tmp_path / name).entries
        return notes[:2], [trial.params for trial in entries if role_of(trial) == "learned"]

    base = tiny().model.map.layers
    assert base >= 2, "the base experiment's layers are within the range"
    notes, points = learned("tpe", sampler={"name": "tpe"})
    assert notes == [
        f"learned from 2 of the 2 results in {runs[0]}; model.proposals at other values than here in 1",
        f"learned from 2 of the 2 results in {runs[1]}; optim.lr unknown or out of range in 1",
    ]
    assert points == [
        {"optim.lr": 1e-3, "model.map.layers": base},
        {"optim.lr": 1e-3, "model.map.layers": base},
        {"model.map.layers": base},
        {"optim.lr": 1e-2, "model.map.layers": base},
    ]
    notes, points = learned("gp", sampler={"name": "gp"})
    assert len(points) == 3
    assert "left out 1: sampler gp needs every parameter, and optim.lr has no value here" in notes[1]
    notes, points = learned("all", sampler={"name": "brute_force"})
    assert len(points) == 2
    assert "left out 1: model.proposals differs" in notes[0]


def test_a_run_that_cannot_be_learned_from_is_one_line_and_nothing_is_learned(tiny: Tiny, tmp_path: Path) -> None:
    good, other = tmp_path / "good", tmp_path / "other"
    run_search(tiny, good, make_space(trials=1))
    other.mkdir()
    with pytest.raises(RunError, match="other: is not a run folder") as error:
        run_search(tiny, tmp_path / "new", make_space(name="new"), warm_start=(good, other))
    assert "\n" not in str(error.value)
    result = run_search(tiny, tmp_path / "new", make_space(name="new", trials=1), warm_start=(good, good))
    assert result.notes[0] == f"learned from 1 of the 1 results in {good}"
    assert result.notes[1] == f"learned from 0 of the 1 results in {good}; left out 1: known already"
    several = make_space(name="several", objectives=["R1@0.5", "latency_ms"], early_stopping={"name": "none"})
    journal = good / "study.journal"
    journal.write_text(journal.read_text().replace("latency_ms", "latency_xx"))
    with pytest.raises(
        RunError, match="none of its results has latency_ms, an objective of this search; leave the run"
    ):
        run_search(tiny, tmp_path / "several", several, warm_start=(good,))
