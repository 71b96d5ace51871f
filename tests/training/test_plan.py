"""The plan: what it says is what training does, and it reads well."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from cdn_tune.cli.show.output import duration_text, size_text
from cdn_tune.cli.show.plan import plan_table
from cdn_tune.config import Experiment
from cdn_tune.data.batches import training_batches
from cdn_tune.training import plan as plans
from cdn_tune.training.memory.estimate import estimate
from cdn_tune.training.plan import Plan, make_plan
from cdn_tune.training.train_trial import open_data

Tiny = Callable[..., Experiment]


def planned(experiment: Experiment) -> Plan:
    return make_plan(experiment, open_data(experiment.data))


def shown(plan: Plan, experiment: Experiment) -> str:
    console = Console(width=120)
    with console.capture() as capture:
        console.print(plan_table(plan, experiment))
    return capture.get()


def test_sizes_are_those_of_the_training(tiny: Tiny) -> None:
    experiment = tiny(**{"train.ema": 0.9})
    splits = open_data(experiment.data)
    plan = planned(experiment)
    steps = len(training_batches(splits["train"], experiment.train.batch_size, experiment.seed, 1))
    assert (plan.steps_per_epoch, plan.total_steps) == (steps, steps * experiment.train.epochs)
    assert plan.queries == {name: len(splits[name]) for name in ("train", "val")}
    assert plan.videos == {name: splits[name].describe()["videos"] for name in ("train", "val")}
    assert plan.memory == estimate(experiment, torch.float32)
    assert plan.checkpoint_bytes == pytest.approx(13 * plan.memory.weights, rel=0.1)  # 1 + 3 x (1 + 2 + 1)
    assert plan.micro_batch == plan.batch == experiment.train.batch_size
    assert plan.peak_bytes > plan.memory.weights
    assert f"val has {len(splits['val'])} queries" in " ".join(shown(plan, experiment).split())


def test_time_adds_up(tiny: Tiny) -> None:
    plan = planned(tiny(**{"train.epochs": 6, "train.eval_every": 4}))
    assert plan.measured_steps == 3
    assert plan.seconds_per_step > 0
    evaluations = 3  # after epochs 1, 5 and 6
    assert plan.seconds == pytest.approx(plan.total_steps * plan.seconds_per_step + evaluations * plan.val_seconds)
    assert plan.seconds_per_epoch == pytest.approx(plan.seconds / 6)


def test_measures_steps_in_pieces(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    pieces: list[tuple[int, float]] = []
    backward = plans._Trial._backward

    def watched(self: plans._Trial, batch: plans.Batch, weight: float) -> None:
        pieces.append((len(batch), weight))
        backward(self, batch, weight)

    monkeypatch.setattr(plans._Trial, "_backward", watched)
    plan = planned(tiny(**{"train.micro_batch": 3}))
    assert plan.micro_batch == 3
    assert pieces == [(3, 3 / 8), (3, 3 / 8), (2, 2 / 8)] * (plan.measured_steps + 1)


def test_lowers_the_micro_batch_to_the_memory(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    need = estimate(tiny(), torch.float32)
    monkeypatch.setattr(plans, "available_bytes", lambda _: need.total(5))
    assert planned(tiny()).micro_batch == 4


def test_batch_larger_than_the_split(tiny: Tiny) -> None:
    experiment = tiny(**{"train.batch_size": 1000})
    plan = planned(experiment)
    assert plan.batch == plan.queries["train"]
    assert plan.steps_per_epoch == 1


def test_batches_of_videos(tiny: Tiny) -> None:
    """Steps and sizes count videos; the memory of what is computed per query counts all their queries."""
    experiment = tiny(**{"train.batch_of": "videos", "train.batch_size": 5, "train.micro_batch": 2})
    plan, train = planned(experiment), open_data(experiment.data)["train"]
    batches = training_batches(train, 5, experiment.seed, 1, of_videos=True)
    assert (
        (plan.samples, plan.micro_batch, plan.steps_per_epoch)
        == (5, 2, len(batches))
        == (5, 2, -(-plan.videos["train"] // 5))
    )
    assert plan.batch == max(sum(map(len, batch)) for batch in batches) > 5
    assert plan.epoch_queries == plan.queries["train"]
    assert plan.memory.each == max(np.bincount(train.videos))
    text = " ".join(shown(plan, experiment).split())
    assert f"batch 5 videos up to {plan.batch} queries, computed 3 times up to 2 videos" in text
    assert "videos at once" in text


def test_writes_no_file(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    planned(tiny())
    assert list(tmp_path.iterdir()) == []


def test_table_tells_it(tiny: Tiny) -> None:
    experiment = tiny(**{"train.micro_batch": 3, "train.ema": 0.9})
    plan = planned(experiment)
    text = shown(plan, experiment)
    for part in (
        "tiny: pool proposals, 8 clips",
        f"{plan.parameters:,}",
        f"{plan.queries['train']} queries",
        "computed 3 times up to 3 queries",
        f"{plan.steps_per_epoch} per epoch, 3 epochs",
        "mean of weights",
        size_text(plan.checkpoint_bytes),
        "median of 3 steps",
    ):
        assert part in text
    words, measured = " ".join(text.split()), size_text(plan.peak_bytes - plan.base_bytes)
    assert f"estimated {size_text(plan.memory.total(3))} for the trial, of" in words
    assert f"measured {measured} for the trial, at its peak; {size_text(plan.peak_bytes)} with Python" in words


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1 << 20, "1 MiB"), (950 << 20, "950 MiB"), (3984588800, "3.71 GiB")],
)
def test_sizes_read_well(size: int, text: str) -> None:
    assert size_text(size) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0452, "45 ms"),
        (7.128, "7.13 s"),
        (60, "1 min"),
        (127.4, "2 min 7 s"),
        (3599.6, "1 h"),
        (3900, "1 h 5 min"),
        (183_600, "2 d 3 h"),
    ],
)
def test_durations_read_well(seconds: float, text: str) -> None:
    assert duration_text(seconds) == text
