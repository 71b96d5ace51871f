"""What a search does about failures, budgets, retries, stops and other runs' results; its trials are played."""

import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState

from cdn_tune.config import Experiment, SearchSpace
from cdn_tune.distributed.ray import ray
from cdn_tune.errors import ConfigError, DataError, MemoryShortage, RunError, SearchError
from cdn_tune.training.reports import EpochReport, Report
from cdn_tune.tuning.layout import RAY_LOG, STOP
from cdn_tune.tuning.progress import SearchState
from cdn_tune.tuning.results.record import Record, read_record
from cdn_tune.tuning.search import SearchOptions, SearchResult, search
from cdn_tune.tuning.study.ranking import role_of

Tiny = Callable[..., Experiment]
pytestmark = pytest.mark.usefixtures("ray_session", "by_value")
EPOCHS = 3


@pytest.fixture(scope="module")
def by_value() -> Iterator[None]:
    """Ray's workers cannot import this module: its functions travel with their code."""
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    yield
    ray.cloudpickle.unregister_pickle_by_value(sys.modules[__name__])


def played(experiment: Experiment, folder: Path, report: Report, **_: Any) -> None:
    """Reports epochs whose val metric follows from the learning rate."""
    for epoch in range(1, EPOCHS + 1):
        value = min(1.0, 50 * experiment.optim.lr * epoch / EPOCHS)
        report(epoch_report(experiment, epoch, value))


def unhurried(experiment: Experiment, folder: Path, report: Report, **options: Any) -> None:
    """Leaves Ray the time to start a process for whatever waits."""
    time.sleep(0.5)
    played(experiment, folder, report, **options)


def epoch_report(experiment: Experiment, epoch: int, value: float) -> EpochReport:
    val = dict.fromkeys(experiment.eval.metrics, value)
    return EpochReport(
        epoch=epoch, epochs=EPOCHS, loss=1.0, moment_loss=1.0, attention_loss=0.0, learning_rate=1e-3,
        gradient_norm=1.0, samples_per_second=1.0, train_seconds=1.0, val_seconds=0.1, val=val, value=value,
        best_value=value, best_epoch=epoch, steps=10 * epoch, val_queries=10,
    )  # fmt: skip


def short_of_memory(experiment: Experiment, folder: Path, report: Report, **options: Any) -> None:
    """Has no memory for wide models."""
    if experiment.model.hidden >= 32:
        raise MemoryShortage("out of memory with one query at once: about 3.00 GiB needed, 1.00 GiB available")
    played(experiment, folder, report, **options)


def broken_data(experiment: Experiment, folder: Path, report: Report, **_: Any) -> None:
    """Finds its features damaged."""
    raise DataError(f"features.hdf5: video v{int(1e6 * experiment.optim.lr)} is damaged; restore the file")


def fails_once(experiment: Experiment, folder: Path, report: Report, **options: Any) -> None:
    """Fails unless somebody has mended what is wrong."""
    if not (folder.parents[1] / "mended").exists() and experiment.model.hidden == 8:
        raise ValueError("a shape that does not fit")
    played(experiment, folder, report, **options)


def loses_its_worker(experiment: Experiment, folder: Path, report: Report, **options: Any) -> None:
    """Dies twice as a process does, then goes on."""
    import os

    folder.mkdir(parents=True, exist_ok=True)
    deaths = folder / "deaths"
    count = int(deaths.read_text()) if deaths.exists() else 0
    if count < 2:
        deaths.write_text(str(count + 1))
        os._exit(1)
    played(experiment, folder, report, **options)


def with_a_wrong_clock(experiment: Experiment, folder: Path, report: Report, **options: Any) -> None:
    """Runs where the clock is a quarter of an hour late or early, trial by trial."""
    from datetime import datetime, timedelta

    from ray.train._internal import session

    class Wrong(datetime):
        """What Ray stamps results with."""

        @classmethod
        def now(cls, tz: object = None) -> datetime:  # type: ignore[override] # noqa: ARG003
            return datetime.now() + timedelta(minutes=(-15, 15)[int(folder.name) % 2])

    session.datetime = Wrong
    played(experiment, folder, report, **options)


def endless(experiment: Experiment, folder: Path, report: Report, stop: Callable[[], bool], **_: Any) -> None:
    """Trains until it is asked to stop, as a training does: after a report, with a checkpoint."""
    import time

    report(epoch_report(experiment, 1, 0.5))
    while not stop():
        time.sleep(0.05)
    raise KeyboardInterrupt


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


def run_search(tiny: Tiny, run: Path, space: SearchSpace, train: Any = played, **options: Any) -> SearchResult:
    return search(space, tiny(), run, ignore, SearchOptions(train=train, **options))


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


def test_a_broken_dataset_stops_the_search(tiny: Tiny, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"3 trials in a row failed .* video v\d+ is damaged"):
        run_search(tiny, tmp_path / "run", make_space(trials=50), broken_data)
    assert len(record(tmp_path / "run").entries) <= 4  # three, and one that had started


def test_failed_trials_are_tried_again_when_asked(tiny: Tiny, tmp_path: Path) -> None:
    hidden = {"type": "categorical", "choices": [8, 16, 24]}
    space = make_space(parameters={"model.hidden": hidden}, start_with=[{"model.hidden": 8}], trials=3)
    run = tmp_path / "run"
    result = run_search(tiny, run, space, fails_once)
    assert sorted(row["state"] for row in result.rows if row["state"] in ("complete", "failed"))[-1] == "failed"
    again = run_search(tiny, run, space, fails_once)
    assert again.was_finished
    (run / "mended").touch()
    mended = run_search(tiny, run, space, fails_once, retry_failed=True, resume=True)
    assert not mended.was_finished
    assert not mended.interrupted
    retried = [trial for trial in record(run).entries if "retry_of" in trial.user_attrs]
    assert [trial.state for trial in retried] == [TrialState.COMPLETE]
    assert retried[0].params == {"model.hidden": 8}


def test_a_lost_worker_is_replaced_and_the_trial_goes_on(
    tiny: Tiny, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """What Ray has to say about it goes to its file, not between the lines of the table."""
    result = run_search(tiny, tmp_path / "run", make_space(trials=2, max_failures=2), loses_its_worker)
    assert [row["state"] for row in result.rows] == ["complete", "complete"]
    assert "A worker died" not in "".join(capfd.readouterr())
    assert "A worker died" in (tmp_path / "run" / RAY_LOG).read_text()


def test_a_worker_lost_too_often_fails_its_trial(tiny: Tiny, tmp_path: Path) -> None:
    space = make_space(trials=2, max_failures=1, early_stopping={"name": "none"})
    with pytest.raises(SearchError, match="all 2 trials failed"):
        run_search(tiny, tmp_path / "run", space, loses_its_worker)
    trials = record(tmp_path / "run").entries
    assert {trial.state for trial in trials} == {TrialState.FAIL}
    assert {trial.user_attrs["failure"] for trial in trials} == {"lost"}


def test_clocks_that_are_off_change_no_order(tiny: Tiny, tmp_path: Path) -> None:
    space = make_space(trials=6, budget={"hours": 0.1}, early_stopping={"name": "asha", "reduction_factor": 2})
    result = run_search(tiny, tmp_path / "run", space, with_a_wrong_clock)
    trials = record(tmp_path / "run").entries
    assert result.ended_by is None
    assert [trial.number for trial in sorted(trials, key=lambda trial: trial.datetime_start)] == list(range(6))
    assert all(list(trial.intermediate_values) == sorted(trial.intermediate_values) for trial in trials)
    ranked = [row for row in result.rows if row["rank"] != ""]
    assert [row["value"] for row in ranked] == sorted((row["value"] for row in ranked), reverse=True)
    assert {row["rank"] for row in ranked} == set(range(1, len(ranked) + 1))
    ends = [end for trial in trials for _, _, end in trial.user_attrs["segments"]]
    assert max(ends) - min(ends) > 1500  # the clocks were off
    assert all(0 <= end - start < 600 for trial in trials for _, start, end in trial.user_attrs["segments"])


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


def test_no_progress_ends_the_search(tiny: Tiny, tmp_path: Path) -> None:
    result = run_search(tiny, tmp_path / "run", make_space(trials=60, budget={"plateau": 5}))
    assert result.ended_by is not None
    assert "brought nothing better" in result.ended_by
    assert 6 <= len(result.rows) < 60


def test_a_stopped_search_keeps_its_trials_running_on_record(tiny: Tiny, tmp_path: Path) -> None:
    run = tmp_path / "run"
    seen: list[int] = []

    def stop() -> bool:
        return len(seen) > 0

    def look(state: SearchState) -> None:
        seen.extend(row["trial"] for row in state.rows if row["epochs"] == 1)

    result = search(make_space(), tiny(), run, look, SearchOptions(train=endless, stop=stop))
    assert result.interrupted
    assert not (run / STOP).exists()
    states = {trial.state for trial in record(run).entries}
    assert states == {TrialState.RUNNING}
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
        resources={"cpus_per_worker": 2},
        trials=10,
    )
    seen = []
    for name in ("first", "second"):
        run_search(tiny, tmp_path / name, space)
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


def test_a_trial_that_waits_for_the_cluster_to_grow_costs_no_processes(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A free process goes to another trial; the request of the one that waits stands."""
    from ray.air.execution._internal.actor_manager import RayActorManager

    def add_actor(manager: RayActorManager, *arguments: Any, **options: Any) -> Any:
        asked.append(1)
        return original(manager, *arguments, **options)

    asked: list[int] = []
    original = RayActorManager.add_actor
    monkeypatch.setattr(RayActorManager, "add_actor", add_actor)
    monkeypatch.setattr("cdn_tune.tuning.driver.was_started_here", lambda: False)  # as on a cluster that was joined
    result = run_search(tiny, tmp_path / "run", make_space(trials=12), train=unhurried)
    assert sum(row["state"] in ("complete", "pruned") for row in result.rows) == 12
    assert len(asked) == 3  # for two places, and for one that may come
