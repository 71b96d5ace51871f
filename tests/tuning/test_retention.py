"""Kept checkpoints and the leaderboard follow the study."""

import contextlib
import csv
import json
import math
import os
import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial

from cdn_tune.config import Experiment
from cdn_tune.errors import CheckpointError, RunError
from cdn_tune.evaluation.choose_checkpoint import choose_best
from cdn_tune.training.runs.checkpoint import BEST, build_model, load_checkpoint, read_checkpoint, save_checkpoint
from cdn_tune.training.runs.files import write_json
from cdn_tune.training.runs.kept import CHECKPOINT, RECORD, kept_folder, recorded_value
from cdn_tune.tuning.checkpoints.checkpoint_files import CheckpointFiles, disk_used
from cdn_tune.tuning.checkpoints.retention import Retention, keep_best
from cdn_tune.tuning.engine.virtual.engine import World
from cdn_tune.tuning.engine.virtual.files import MemoryFiles
from cdn_tune.tuning.layout import trial_folder
from cdn_tune.tuning.results.leaderboard import leaderboard, write_leaderboard
from cdn_tune.tuning.study.filtered_study import altered
from cdn_tune.tuning.study.ranking import CONFIRMATION, CONFIRMS, ROLE, SEED

Tiny = Callable[..., Experiment]
KEPT_FILES = ("checkpoint.pt", "experiment.yaml", "record.json")


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


def test_what_a_stopped_trial_has_to_be_worth_is_unknown_until_as_many_as_are_kept_have_ended() -> None:
    """A disk budget, several objectives and confirmations keep others than the best by value."""
    world = World(best=dict.fromkeys(range(4), 1))
    done, pruned, running = TrialState.COMPLETE, TrialState.PRUNED, TrialState.RUNNING
    trials = make_trials([(done, 0.2), (running, 0.9), (pruned, 0.5), (done, 0.8)])
    retention = Retention(MemoryFiles(world), 2)
    retention.tidy(trials[:2])
    assert retention.worth == -math.inf
    retention.tidy(trials[2:3])
    assert retention.worth == 0.2
    retention.tidy(trials[3:])
    assert retention.worth == 0.5
    front = [altered(trial, values=[trial.values[0], 1.0]) for trial in trials if trial.state == done]
    directions = [StudyDirection.MAXIMIZE, StudyDirection.MINIMIZE]
    for of, more in ((trials, {"budget": 10.0}), (front, {"directions": directions})):
        retention = Retention(MemoryFiles(world), 2, **more)  # type: ignore[arg-type]
        retention.tidy(of)
        assert len(retention.records) == 2
        assert retention.worth == -math.inf


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


def refuse_links(*_: object) -> None:
    raise OSError("no links here")


def test_works_without_hard_links(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.link", refuse_links)
    write_best(tmp_path, 0, tiny(seed=5))
    kept = keep_best(tmp_path, make_trials([(TrialState.COMPLETE, 0.9)]), keep=1)
    assert load_checkpoint(kept[0]).experiment.seed == 5


class Crash(BaseException):
    """Stands for a process that dies."""


OPERATIONS = ("link", "replace", "unlink", "mkdir", "rmdir", "fsync")


@contextlib.contextmanager
def dying_after(operations: int) -> Iterator[list[str]]:
    """Dies after so many changes to the file system; yields the log of them."""
    log: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        for name in OPERATIONS:
            original = getattr(os, name)

            def call(*arguments: Any, _name: str = name, _original: Any = original, **options: Any) -> Any:
                result = _original(*arguments, **options)
                log.append(f"{_name} {arguments[0]}")
                if len(log) > operations:
                    raise Crash
                return result

            patch.setattr(os, name, call)
        yield log


def readable(run: Path, number: int) -> bool:
    """Whether a trial's best checkpoint can be read, as kept or as the trial's own."""
    for path in (kept_folder(run, number) / CHECKPOINT, trial_folder(run, number) / BEST):
        with contextlib.suppress(CheckpointError):
            return bool(read_checkpoint(path))
    return False


@pytest.mark.parametrize("links", [True, False])
def test_the_best_survives_a_crash_after_every_single_step(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool
) -> None:
    done = TrialState.COMPLETE
    trials = make_trials([(done, 0.2), (done, 0.8), (done, 0.5), (TrialState.FAIL, None), (TrialState.RUNNING, 0.1)])
    template = tmp_path / "template"
    for trial in trials:
        write_best(template, trial.number, tiny(seed=trial.number))
    assert len(keep_best(template, trials[:1], keep=2)) == 1  # an earlier winner, about to lose
    if not links:
        monkeypatch.setattr("os.link", refuse_links)
    steps = 0
    while True:
        run = tmp_path / f"run-{steps}"
        shutil.copytree(template, run, copy_function=os.link if links else shutil.copy)
        try:
            with dying_after(steps):
                kept = keep_best(run, trials, keep=2)
        except Crash:
            assert readable(run, 1), f"lost after step {steps}"
            assert readable(run, 2), f"the second is lost after step {steps}"
            kept = keep_best(run, trials, keep=2)
            steps += 1
            finished = False
        else:
            finished = True
        assert [path.parent.name for path in kept] == ["trial-0001", "trial-0002"]
        left = sorted(str(path.relative_to(run)) for path in run.rglob("*") if path.is_file())
        assert left == [
            *(f"best/trial-{number}/{name}" for number in ("0001", "0002") for name in KEPT_FILES),
            "trials/0004/checkpoints/best.pt",
        ]
        shutil.rmtree(run)
        if finished:
            break
    assert steps > 20


def test_nothing_is_deleted_before_the_winner_is_on_disk(tiny: Tiny, tmp_path: Path) -> None:
    trials = make_trials([(TrialState.COMPLETE, 0.2), (TrialState.COMPLETE, 0.8)])
    for trial in trials:
        write_best(tmp_path, trial.number, tiny())
    with dying_after(10_000) as log:
        keep_best(tmp_path, trials, keep=1)
    linked = next(index for index, entry in enumerate(log) if entry.startswith("replace") and CHECKPOINT in entry)
    flushed = [index for index, entry in enumerate(log) if entry.startswith("fsync") and index > linked]
    deleted = [index for index, entry in enumerate(log) if entry.split()[0] in {"unlink", "rmdir"} and index > linked]
    assert len(flushed) == 3  # the folder, the one around it, the run's
    assert max(flushed) < min(deleted)


def test_a_damaged_checkpoint_takes_no_place(tiny: Tiny, tmp_path: Path) -> None:
    done = TrialState.COMPLETE
    trials = make_trials([(done, 0.9), (done, 0.8), (done, 0.7), (done, 0.6)])
    for trial in trials:
        write_best(tmp_path, trial.number, tiny())
    broken = trial_folder(tmp_path, 0) / BEST
    broken.write_bytes(broken.read_bytes()[:-200])
    (broken.parent / "last.pt").touch()
    retention = Retention(CheckpointFiles(tmp_path), 2)
    assert [path.parent.name for path in retention.tidy(trials[:3])] == ["trial-0001", "trial-0002"]
    assert set(retention.damaged) == {0}
    assert "damaged" in retention.damaged[0]
    assert broken.exists()  # who knows what can still be made of it
    assert not (broken.parent / "last.pt").exists()

    kept = kept_folder(tmp_path, 1) / CHECKPOINT  # a disk at fault, found at the next start
    kept.write_bytes(b"rubbish")
    retention = Retention(CheckpointFiles(tmp_path), 2)
    assert [path.parent.name for path in retention.tidy(trials)] == ["trial-0002", "trial-0003"]
    assert "trial-0001" in retention.damaged[1]
    assert kept.exists()


def test_a_disk_that_cannot_be_read_costs_no_checkpoint(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trials = make_trials([(TrialState.COMPLETE, 0.9), (TrialState.COMPLETE, 0.8)])
    for trial in trials:
        write_best(tmp_path, trial.number, tiny())

    def fail(*_: object, **__: object) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr("torch.load", fail)
        with pytest.raises(RunError, match=r"cannot be read \(Input/output error"):
            keep_best(tmp_path, trials, keep=1)
    assert all(readable(tmp_path, trial.number) for trial in trials)


def test_what_crashes_leave_is_collected_and_what_lives_is_not(tiny: Tiny, tmp_path: Path) -> None:
    trials = make_trials([(TrialState.COMPLETE, 0.9), (TrialState.PRUNED, 0.1), (TrialState.RUNNING, 0.5)])
    for trial in trials:
        write_best(tmp_path, trial.number, tiny())
    orphans = [
        tmp_path / "best/trial-0007/checkpoint.pt",  # of a study that is another one now
        tmp_path / "best/trial-0001/experiment.yaml",  # half written
        tmp_path / "best/trial-0000/.checkpoint.pt.tmp",
        tmp_path / "trials/0001/checkpoints/.last.pt.1.tmp",
        tmp_path / "trials/0001/.ray/train/x",
        tmp_path / "trials/0001/.error.txt.1.tmp",
        tmp_path / ".leaderboard.csv.1.tmp",
    ]
    living = [
        tmp_path / "trials/0002/checkpoints/.last.pt.1.tmp",
        tmp_path / "trials/0002/.ray/train/x",
        tmp_path / "trials/0001/metrics.jsonl",
        tmp_path / "best/notes.txt",
        tmp_path / f".leaderboard.csv.{os.getpid()}.tmp",
    ]
    for path in (*orphans, *living):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    assert keep_best(tmp_path, [], keep=1) == []
    assert all(path.exists() for path in orphans)  # an empty study says nothing
    keep_best(tmp_path, trials, keep=1)
    assert not [path for path in orphans if path.exists()]
    assert all(path.exists() for path in living)


def test_a_stopped_worker_that_writes_once_more_leaves_nothing(tiny: Tiny, tmp_path: Path) -> None:
    trials = make_trials([(TrialState.COMPLETE, 0.9), (TrialState.PRUNED, 0.1), (TrialState.RUNNING, 0.5)])
    write_best(tmp_path, 0, tiny())
    retention = Retention(CheckpointFiles(tmp_path), 1)
    retention.tidy(trials)
    write_best(tmp_path, 1, tiny())
    trials[2].state = TrialState.FAIL
    retention.tidy(trials)
    assert not list(tmp_path.glob("trials/*/checkpoints"))


def test_the_record_ranks_and_the_checkpoint_says_what_it_is(tiny: Tiny, tmp_path: Path) -> None:
    """Trial 0 was stopped at 0.4, but its group had already finished another epoch, worth 0.5."""
    trials = make_trials([(TrialState.PRUNED, 0.4), (TrialState.COMPLETE, 0.45)])
    trials[0].user_attrs["best_epoch"], trials[1].user_attrs["best_epoch"] = 3, 1
    for number in (0, 1):  # epoch 1, val 0.5
        write_best(tmp_path, number, tiny(seed=number))
    retention = Retention(CheckpointFiles(tmp_path), 2)
    kept = retention.tidy(trials)
    assert [path.parent.name for path in kept] == ["trial-0001", "trial-0000"]
    record = retention.records[0]
    assert (record.value, record.epoch, record.checkpoint_epoch, record.checkpoint_value) == (0.4, 3, 1, 0.5)
    assert not record.agrees
    assert retention.records[1].agrees
    assert json.loads((kept[1].parent / "record.json").read_text()) == asdict(record)
    write_json(tmp_path / "manifest.json", {"kind": "search"})
    assert choose_best(tmp_path).checkpoint.path == kept[0]  # though both checkpoints say 0.5
    write_json(kept[1].parent / "record.json", {**asdict(record), "value": 0.46})
    assert choose_best(tmp_path).checkpoint.path == kept[1]


def test_a_pareto_front_comes_first(tiny: Tiny, tmp_path: Path) -> None:
    maximize, minimize = StudyDirection.MAXIMIZE, StudyDirection.MINIMIZE
    points = [(0.9, 9.0), (0.5, 5.0), (0.4, 6.0), (0.1, 1.0)]  # the third is beaten by the second
    trials = []
    for number, values in enumerate(points):
        trial = create_trial(values=list(values), intermediate_values={1: values[0]})
        trial.number = number
        trials.append(trial)
        write_best(tmp_path, number, tiny())
    retention = Retention(CheckpointFiles(tmp_path), 4, directions=[maximize, minimize])
    assert [path.parent.name[-1] for path in retention.tidy(trials)] == ["0", "1", "3", "2"]
    retention = Retention(CheckpointFiles(tmp_path), 2, directions=[maximize, minimize])
    assert [path.parent.name[-1] for path in retention.tidy(trials)] == ["0", "1"]
    beaten = create_trial(values=[0.05, 1.5], intermediate_values={1: 0.05})  # by the fourth, which is no longer kept
    beaten.number = 4
    write_best(tmp_path, 4, tiny())
    better = create_trial(values=[0.6, 4.0], intermediate_values={1: 0.6})
    better.number = 5
    write_best(tmp_path, 5, tiny())
    assert [path.parent.name[-1] for path in retention.tidy([*trials, beaten, better])] == ["0", "5"]


def test_the_budget_holds_and_the_best_is_above_it(tiny: Tiny, tmp_path: Path) -> None:
    done, running = TrialState.COMPLETE, TrialState.RUNNING
    trials = make_trials([(done, 0.9), (done, 0.8), (done, 0.7), (running, 0.1)])
    for trial in trials[:3]:
        write_best(tmp_path, trial.number, tiny())
    size = (trial_folder(tmp_path, 0) / BEST).stat().st_size
    retention = Retention(CheckpointFiles(tmp_path), 3, budget=6.5 * size)
    retention.begin(3, is_new=False, checkpoint_bytes=4 * size)
    assert len(retention.tidy(trials)) == 2  # beside the four that trial 3 may come to take
    assert disk_used(tmp_path) == sum(path.stat().st_size for path in (tmp_path / "best").rglob("*.*"))
    assert not retention.fits(trials, size)  # 2 kept, 4 reserved
    assert retention.fits(trials, size // 4)
    trials[3].state = TrialState.FAIL
    assert len(retention.tidy(trials)) == 2  # its reservation is over; what has lost does not come back
    assert retention.fits(trials, 4 * size)
    assert len(retention.records) == 2
    assert retention.fits(trials, 5 * size)  # the second gives way, as nothing runs that would
    assert list(retention.records) == [0]
    assert not kept_folder(tmp_path, 1).exists()
    with pytest.raises(RunError, match=r"disk_budget_gb=.* beside .* of the best one; raise it to"):
        retention.fits(trials, 6 * size)
    assert readable(tmp_path, 0)
    assert [path.parent.name for path in keep_best(tmp_path, trials, 3, budget=1)] == ["trial-0000"]
    assert Retention(CheckpointFiles(tmp_path), 3).fits(trials, 10**15)


def test_links_share_their_blocks(tiny: Tiny, tmp_path: Path) -> None:
    write_best(tmp_path, 0, tiny())
    used = disk_used(tmp_path)
    assert used == (trial_folder(tmp_path, 0) / BEST).stat().st_size
    os.link(trial_folder(tmp_path, 0) / BEST, trial_folder(tmp_path, 0) / "checkpoints/previous.pt")
    assert disk_used(tmp_path) == used
    assert disk_used(tmp_path / "nothing") == 0


def test_later_calls_look_at_what_has_changed_only(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many trials have ended: the work is counted, not timed."""
    trials = make_trials([(TrialState.COMPLETE, number / 1000) for number in range(300)])
    for number in (298, 299):
        write_best(tmp_path, number, tiny())
    retention = Retention(CheckpointFiles(tmp_path), 1)
    looks = 0

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        def count(*arguments: Any, **options: Any) -> Any:
            nonlocal looks
            looks += 1
            return function(*arguments, **options)

        return count

    monkeypatch.setattr(Path, "exists", counted(Path.exists))
    monkeypatch.setattr(shutil, "rmtree", counted(shutil.rmtree))
    retention.tidy(trials[:-1])
    first, looks = looks, 0
    assert first > 300
    kept = retention.tidy(trials)
    assert kept[0].parent.name == "trial-0299"
    assert looks < 100
    looks = 0
    assert retention.tidy(trials) == kept
    assert looks == 0


@pytest.mark.parametrize("directions", [[], [StudyDirection.MAXIMIZE, StudyDirection.MINIMIZE]])
@pytest.mark.parametrize("seed", range(3))
def test_told_of_what_has_ended_it_keeps_what_it_would_keep_told_of_all(seed: int, directions: Any) -> None:
    draw, world = random.Random(seed), World()
    whole, part = (Retention(MemoryFiles(world), 2, directions=directions) for _ in range(2))
    trials: list[FrozenTrial] = []
    for number in range(80):
        own = [trial.number for trial in trials if not trial.user_attrs and trial.state == TrialState.COMPLETE]
        confirms = draw.choice(own) if own and not directions and draw.random() < 0.3 else None
        state = draw.choice([TrialState.COMPLETE, TrialState.COMPLETE, TrialState.FAIL])
        value = draw.random()
        trial = create_trial(
            state=state,
            values=[value, draw.random()][: len(directions) or 1] if state == TrialState.COMPLETE else None,
            intermediate_values={1: value},
            user_attrs={} if confirms is None else {ROLE: CONFIRMATION, CONFIRMS: confirms, SEED: number},
        )
        trial.number = number
        trials.append(trial)
        world.saved[number] = world.best[number] = 1
        few = [trial] if confirms is None else [trial, trials[confirms]]
        assert part.tidy(few) == whole.tidy(trials)
        assert list(part.records) == list(whole.records)


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


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"value": null}', '{"value": ' + "9" * 400 + "}", "[" * 10**5])
def test_a_damaged_record_of_a_kept_checkpoint_is_none(content: str, tmp_path: Path) -> None:
    (tmp_path / RECORD).write_text(content)
    assert recorded_value(tmp_path) is None
