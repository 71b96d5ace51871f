"""Kept checkpoints of a search whose home is an object store, and what is refused there."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState

from cdn_tune.config import Experiment
from cdn_tune.distributed.shared_folder_check import what_is_missing
from cdn_tune.errors import ConfigError, RunError
from cdn_tune.training.object_store.store import ObjectStore, open_store
from cdn_tune.training.object_store.sync import fetched, push_run
from cdn_tune.training.object_store.trial_sync import Attempt, Superseded
from cdn_tune.training.object_store.working_copy import place_of, portable, working_copy
from cdn_tune.training.runs.checkpoint import BEST, read_checkpoint
from cdn_tune.tuning.checkpoints.checkpoint_files import CheckpointFiles
from cdn_tune.tuning.checkpoints.retention import Retention
from cdn_tune.tuning.layout import trial_folder
from cdn_tune.tuning.storage.check import check_shared
from tests.object_store import Store

from .test_retention import make_trials, write_best

Tiny = Callable[..., Experiment]
DONE = TrialState.COMPLETE


def home_of(run: Path) -> ObjectStore:
    place = place_of(run)
    assert place is not None
    return place.store


def trained_elsewhere(run: Path, number: int, experiment: Experiment, tmp_path: Path) -> None:
    """Brings a trial's best checkpoint home, and leaves nothing of it on this machine."""
    write_best(tmp_path / "elsewhere", number, experiment)
    name = f"trials/{number:04d}/{BEST}"
    home_of(run).upload(tmp_path / "elsewhere" / name, name)


def names(run: Path) -> list[str]:
    return sorted(name for name in home_of(run).entries() if name.endswith(".pt"))


def test_the_best_are_fetched_kept_at_home_and_losers_go(tiny: Tiny, store: Store, tmp_path: Path) -> None:
    run = working_copy(store.url())
    trials = make_trials([(DONE, 0.2), (DONE, 0.8), (TrialState.RUNNING, 0.9), (TrialState.RUNNING, 0.3)])
    for trial in trials:
        trained_elsewhere(run, trial.number, tiny(seed=trial.number), tmp_path)
    write_best(run, 1, tiny(seed=99))  # an earlier attempt's, on this machine: not what counts
    retention = Retention(CheckpointFiles(run), keep=1)
    attempt = Attempt(trial_folder(run, 2))
    attempt.claim()
    assert [path.parent.name for path in retention.tidy(trials)] == ["trial-0001"]
    assert read_checkpoint(run / "best/trial-0001/checkpoint.pt")["experiment"]["seed"] == 1
    assert names(run) == [
        "best/trial-0001/checkpoint.pt",
        "trials/0002/checkpoints/best.pt",
        "trials/0003/checkpoints/best.pt",
    ]
    attempt.check()
    trials[2].state = DONE
    assert [path.parent.name for path in retention.tidy(trials)] == ["trial-0002"]
    assert names(run) == ["best/trial-0002/checkpoint.pt", "trials/0003/checkpoints/best.pt"]
    with pytest.raises(Superseded):  # should its process live on, it writes no more
        attempt.check()
    assert not list(run.glob(".fetched*"))


def test_nothing_is_deleted_before_what_is_kept_is_at_home(
    tiny: Tiny, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = working_copy(store.url())
    trials = make_trials([(DONE, 0.2), (DONE, 0.8)])
    for trial in trials:
        trained_elsewhere(run, trial.number, tiny(seed=trial.number), tmp_path)
    before = names(run)

    def away(*_: Any) -> None:
        raise RunError("the store does not answer")

    with monkeypatch.context() as patch:
        patch.setattr(ObjectStore, "upload", away)
        with pytest.raises(RunError, match="does not answer"):
            Retention(CheckpointFiles(run), keep=1).tidy(trials)
    assert names(run) == before
    Retention(CheckpointFiles(run), keep=1).tidy(trials)
    assert names(run) == ["best/trial-0001/checkpoint.pt"]


def test_another_machine_goes_on_keeping_and_tidies_what_a_crash_has_left(
    tiny: Tiny, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = store.url()
    run = working_copy(url)
    trials = make_trials([(DONE, 0.2), (DONE, 0.8)])
    for trial in trials:
        trained_elsewhere(run, trial.number, tiny(seed=trial.number), tmp_path)
    Retention(CheckpointFiles(run), keep=1).tidy(trials)
    push_run(run)
    trained_elsewhere(run, 0, tiny(), tmp_path)  # a late write
    home_of(run).write("best/trial-0000/checkpoint.pt", b"half of what was to be kept")
    monkeypatch.setenv("CDN_TUNE_CACHE", str(tmp_path / "other"))
    other = fetched(url, models=True)
    assert other != run
    assert [path.parent.name for path in Retention(CheckpointFiles(other), keep=1).tidy(trials)] == ["trial-0001"]
    assert read_checkpoint(other / "best/trial-0001/checkpoint.pt")["experiment"]["seed"] == 1
    assert names(other) == ["best/trial-0001/checkpoint.pt"]


@pytest.mark.parametrize("storage", ["sqlite:///study.db", "journal:///study", "memory"])
def test_a_study_in_a_file_is_refused(storage: str, store: Store, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"s3://bucket/.*/run: its study must be on a server .* add --storage postg"):
        check_shared(working_copy(store.url()), storage)
    check_shared(working_copy(store.url()), "postgresql://user@host/name")
    check_shared(tmp_path, storage)


def test_a_machine_tells_whether_it_sees_a_run(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "token").write_text("42")
    assert what_is_missing(str(tmp_path), "token", "42") is None
    told = what_is_missing(str(tmp_path / "not shared"), "token", "42")
    assert told is not None
    assert "on a file system that all nodes have under the same path, or one on an object store" in told
    run = working_copy(store.url())
    home_of(run).write("token", b"42")
    assert what_is_missing(portable(run), "token", "42") is None
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    open_store.cache_clear()
    assert "cannot reach it (s3://bucket/" in str(what_is_missing(portable(run), "token", "42"))
