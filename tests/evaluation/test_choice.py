"""Which checkpoint is used: the best of the study, and another one never in silence where test would be opened."""

from collections.abc import Callable
from pathlib import Path

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from cdn_tune.config import Experiment
from cdn_tune.errors import CheckpointError, RunError
from cdn_tune.evaluation.choose_checkpoint import choose_best, choose_checkpoint
from cdn_tune.evaluation.evaluate import evaluate_run
from cdn_tune.evaluation.export import export_run
from cdn_tune.evaluation.request import Request
from cdn_tune.training.runs.checkpoint import build_model, save_checkpoint
from cdn_tune.training.runs.files import write_json
from cdn_tune.training.runs.kept import CHECKPOINT, kept_folder
from cdn_tune.training.runs.run_folder import MANIFEST, claim, describe_run, locked
from cdn_tune.tuning.layout import JOURNAL
from cdn_tune.tuning.results.record import front_trials

VALUES = [0.2, 0.9, 0.5]
SPACE = {
    "name": "s",
    "experiment": "experiment.yaml",
    "parameters": {"optim.lr": {"type": "float", "low": 0.001, "high": 0.01}},
}


@pytest.fixture
def searched(tiny: Callable[..., Experiment], tmp_path: Path) -> Path:
    """A finished search of three trials, all kept; trial 1 is the best."""
    run, experiment = tmp_path / "search", tiny()
    with locked(run):
        claim(run, {"kind": "search"}, {"experiment.yaml": experiment.plain(), "search_space.yaml": SPACE})
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = JournalStorage(JournalFileBackend(str(run / JOURNAL)))
    study = optuna.create_study(study_name="s", storage=storage, direction="maximize")
    state = build_model(experiment).state_dict()
    for number, value in enumerate(VALUES):
        study.add_trial(optuna.trial.create_trial(value=value, intermediate_values={1: value}))
        content = {"model": state, "epoch": 1, "val": {"R1@0.5": value}, "planted": True}
        save_checkpoint(kept_folder(run, number) / CHECKPOINT, experiment, content)
    return run


def lose(run: Path, number: int, how: str) -> Path:
    path = kept_folder(run, number) / CHECKPOINT
    path.write_bytes(b"x") if how == "damaged" else path.unlink()
    return path


@pytest.mark.parametrize("how", ["gone", "damaged"])
def test_test_is_not_opened_for_another_model_than_the_best(searched: Path, how: str) -> None:
    lost, left = lose(searched, 1, how), kept_folder(searched, 2) / CHECKPOINT
    with pytest.raises(CheckpointError, match=rf"trial-0001.*is of the best trial.*--checkpoint {left}$") as raised:
        evaluate_run(searched, None, Request(resamples=20))
    assert "\n" not in str(raised.value)
    assert not list(searched.glob("looks*"))
    choice = choose_checkpoint(searched)  # to predict and to export
    assert (choice.checkpoint.path, choice.is_best) == (left, False)
    assert str(lost.parent) in choice.damaged[0]
    assert str(lost.parent) in export_run(searched, searched.parent / "out").damaged[0]
    result = evaluate_run(searched, None, Request(checkpoint=left, resamples=20))  # the remedy
    assert (result["checkpoint"], result["looks"]) == (f"best/trial-0002/{CHECKPOINT}", 1)


@pytest.mark.parametrize("key", ["data.dataset", "name", "model.name", "optim.lr"])
def test_a_checkpoint_of_another_run_is_not_measured_in_this_ones_folder(
    searched: Path, tiny: Callable[..., Experiment], tmp_path: Path, key: str
) -> None:
    other = {"data.dataset": "tacos", "name": "other", "model.name": "tan", "optim.lr": 0.5}[key]
    experiment = tiny(**{key: other})
    path = tmp_path / "other.pt"
    state = build_model(experiment).state_dict()
    save_checkpoint(path, experiment, {"model": state, "epoch": 1, "val": {"R1@0.5": 0.5}, "planted": True})
    kind = "train" if key in ("model.name", "optim.lr") else "search"  # the trials of a search differ in these
    write_json(searched / MANIFEST, describe_run(kind, tiny(), {}))
    with pytest.raises(
        CheckpointError, match=rf"other\.pt: is of another run than .*{key} is .*; evaluate it in its own"
    ):
        evaluate_run(searched, None, Request(checkpoint=path, resamples=20))
    assert not list(searched.glob("looks*"))


def test_one_that_is_not_the_best_may_be_gone(searched: Path) -> None:
    lose(searched, 2, "gone")
    assert choose_best(searched, top=2).is_best
    assert choose_best(searched).damaged == ()
    choice = choose_best(searched, trials=(1, 2))
    assert (choice.is_best, len(choice.checkpoints)) == (True, 1)
    assert not choose_best(searched, trials=(2, 1)).is_best  # the front's best is the first


def test_the_study_ranks_whatever_lies_beside_the_checkpoints(searched: Path) -> None:
    (kept_folder(searched, 0) / "record.json").write_text('{"value": 1.0}')
    assert choose_best(searched).checkpoint.path.parent.name == "trial-0001"


def test_without_its_study_the_best_of_what_lies_there_is_taken_and_it_is_said(searched: Path) -> None:
    (searched / JOURNAL).unlink()
    choice = choose_best(searched)
    assert (choice.checkpoint.path.parent.name, choice.is_best) == ("trial-0001", True)
    (line,) = choice.damaged
    assert "its study does not say which trial is the best" in line
    lose(searched, 0, "damaged")
    assert not choose_best(searched).is_best  # it may have been


def test_a_front_of_one_objective_is_refused(searched: Path) -> None:
    with pytest.raises(RunError, match="has one objective, so its Pareto front is its best trial; leave --front out"):
        front_trials(searched)
