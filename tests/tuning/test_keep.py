"""Kept checkpoints and the leaderboard follow the study."""

import csv
from collections.abc import Callable
from pathlib import Path

import optuna
import pytest
from optuna.trial import FrozenTrial, TrialState, create_trial

from cdn_tune.config import Experiment
from cdn_tune.training.checkpoint import build_model, load_checkpoint, save_checkpoint
from cdn_tune.training.loop import BEST
from cdn_tune.tuning.keep import keep_best
from cdn_tune.tuning.leaderboard import leaderboard, write_leaderboard
from cdn_tune.tuning.trial import trial_folder

Tiny = Callable[..., Experiment]


def make_trials(values: list[tuple[TrialState, float | None]]) -> list[FrozenTrial]:
    trials = []
    for number, (state, value) in enumerate(values):
        trial = create_trial(
            state=state,
            value=value if state == TrialState.COMPLETE else None,
            params={"optim.lr": 0.1},
            distributions={"optim.lr": optuna.distributions.FloatDistribution(0, 1)},
            intermediate_values={} if value is None else {1: value},
            user_attrs={"reason": "broke"} if state == TrialState.FAIL else {"val": {"R1@0.5": value}},
        )
        trial.number = number
        trials.append(trial)
    return trials


def write_best(run: Path, number: int, experiment: Experiment) -> None:
    content = {"model": build_model(experiment).state_dict(), "epoch": 1, "val": {"R1@0.5": 0.5}, "planted": True}
    save_checkpoint(trial_folder(run, number) / BEST, experiment, content)


def test_best_few_are_kept_and_losers_go(tiny: Tiny, tmp_path: Path) -> None:
    done, pruned, failed, running = TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL, TrialState.RUNNING
    trials = make_trials([(done, 0.2), (done, 0.8), (pruned, 0.5), (failed, None), (running, 0.9)])
    for trial in trials:
        write_best(tmp_path, trial.number, tiny(seed=trial.number))
    kept = keep_best(tmp_path, trials, keep=2)
    assert [path.parent.name for path in kept] == ["trial-0001", "trial-0002"]
    assert sorted(path.name for path in (tmp_path / "best").iterdir()) == ["trial-0001", "trial-0002"]
    assert load_checkpoint(kept[0]).experiment.seed == 1
    assert (kept[0].parent / "experiment.yaml").exists()
    left = [trial.number for trial in trials if (trial_folder(tmp_path, trial.number) / BEST).exists()]
    assert left == [4]  # the running one keeps its own

    trials[4].state = done
    kept = keep_best(tmp_path, trials, keep=2)  # overtakes
    assert [path.parent.name for path in kept] == ["trial-0004", "trial-0001"]
    assert keep_best(tmp_path, trials, keep=2) == kept  # and again: nothing changes
    assert sorted(path.name for path in (tmp_path / "best").iterdir()) == ["trial-0001", "trial-0004"]


def test_a_winner_without_checkpoint_gives_way(tiny: Tiny, tmp_path: Path) -> None:
    trials = make_trials([(TrialState.COMPLETE, 0.9), (TrialState.COMPLETE, 0.1)])
    write_best(tmp_path, 1, tiny())
    assert [path.parent.name for path in keep_best(tmp_path, trials, keep=1)] == ["trial-0001"]


def test_works_without_hard_links(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError("no links here")

    monkeypatch.setattr("os.link", refuse)
    write_best(tmp_path, 0, tiny(seed=5))
    kept = keep_best(tmp_path, make_trials([(TrialState.COMPLETE, 0.9)]), keep=1)
    assert load_checkpoint(kept[0]).experiment.seed == 5


def test_leaderboard_ranks_then_lists_the_rest(tmp_path: Path) -> None:
    trials = make_trials(
        [(TrialState.FAIL, None), (TrialState.COMPLETE, 0.2), (TrialState.PRUNED, 0.5), (TrialState.RUNNING, None)]
    )
    rows = leaderboard(trials, ["optim.lr"], ["R1@0.5"])
    assert [(row["rank"], row["trial"], row["state"]) for row in rows] == [
        (1, 2, "pruned"),
        (2, 1, "complete"),
        ("", 3, "running"),
        ("", 0, "failed"),
    ]
    path = write_leaderboard(tmp_path, rows)
    with path.open() as file:
        read = list(csv.DictReader(file))
    assert read[0]["val R1@0.5"] == "0.5"
    assert read[3]["reason"] == "broke"
