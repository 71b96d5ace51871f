"""One trial: it learns, keeps its best, goes on exactly, and stops with a reason."""

import json
import math
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from cdn_tune.config import Experiment, load_experiment, override
from cdn_tune.data.dataset import Batch
from cdn_tune.errors import CheckpointError, ConfigError, MemoryShortage, NotFinite, TrainingError
from cdn_tune.training.evaluate.evaluation import evaluate_split
from cdn_tune.training.loop import train
from cdn_tune.training.reports import EpochReport, StepReport, ignore, unpack_ious
from cdn_tune.training.runs.checkpoint import BEST, LAST, build_model, load_checkpoint, read_checkpoint
from cdn_tune.training.runs.pace import Pace
from cdn_tune.training.runs.records import read_metrics
from cdn_tune.training.step.steps import Engine, EpochState
from cdn_tune.training.train_trial import open_data, train_in

Tiny = Callable[..., Experiment]
ROOT = Path(__file__).resolve().parents[2]


class CrashError(Exception):
    """Stands for the end of the process."""


def crash_at(epoch: int) -> Callable[[EpochReport], None]:
    def report(done: EpochReport) -> None:
        if done.epoch == epoch:
            raise CrashError

    return report


def test_learns_and_reports(tiny: Tiny, tmp_path: Path) -> None:
    reports: list[EpochReport] = []
    steps: list[StepReport] = []
    experiment = tiny(**{"train.epochs": 6, "optim.lr": 5e-3})
    result = train_in(experiment, tmp_path, reports.append, steps.append)
    assert [report.epoch for report in reports] == [1, 2, 3, 4, 5, 6]
    assert reports[-1].loss < reports[0].loss
    assert result.best_value == max(report.value for report in reports) == reports[-1].best_value
    assert reports[result.best_epoch - 1].value == result.best_value
    assert set(reports[0].val) == set(experiment.eval.metrics)
    assert len(steps) == 6 * steps[0].steps
    assert [entry["epoch"] for entry in read_metrics(tmp_path)] == [1, 2, 3, 4, 5, 6]
    assert list((tmp_path / "tensorboard").glob("events.*"))


@pytest.mark.parametrize("crash_epoch", [1, 2])
@pytest.mark.parametrize("schedule", ["constant", "cosine", "plateau"])
def test_resume_is_exact(tiny: Tiny, tmp_path: Path, crash_epoch: int, schedule: str) -> None:
    options = {"optim.schedule": schedule, "optim.warmup_steps": 3, "optim.weight_decay": 0.01}
    experiment = tiny(**{**options, "train.checkpoint": "epoch"})
    train_in(experiment, tmp_path / "whole", ignore)
    with pytest.raises(CrashError):
        train_in(experiment, tmp_path / "broken", crash_at(crash_epoch))
    told: list[int] = []
    result = train_in(experiment, tmp_path / "broken", lambda report: told.append(report.epoch))
    assert result.epochs_run == 3 - crash_epoch
    assert told == [1, 2, 3]  # what had been done before is told again
    whole, broken = (read_checkpoint(tmp_path / name / LAST) for name in ("whole", "broken"))
    for name, weights in whole["model"].items():
        assert torch.equal(weights, broken["model"][name]), name
    timed = {"train_seconds", "val_seconds", "samples_per_second", "peak_bytes"}
    for first, second in zip(whole["history"], broken["history"], strict=True):
        assert {k: v for k, v in first.items() if k not in timed} == {k: v for k, v in second.items() if k not in timed}


def test_same_seed_same_result_other_seed_other_result(tiny: Tiny, tmp_path: Path) -> None:
    losses = {}
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        reports: list[EpochReport] = []
        train_in(tiny(seed=seed, **{"train.epochs": 1}), tmp_path / name, reports.append)
        losses[name] = reports[0].loss
    assert losses["a"] == losses["b"] != losses["c"]


def test_finished_trial_is_left_alone(tiny: Tiny, tmp_path: Path) -> None:
    train_in(tiny(), tmp_path, ignore)
    before = (tmp_path / LAST).read_bytes()
    assert train_in(tiny(), tmp_path, ignore).epochs_run == 0
    assert (tmp_path / LAST).read_bytes() == before


def test_other_experiment_is_refused(tiny: Tiny, tmp_path: Path) -> None:
    train_in(tiny(**{"train.epochs": 1}), tmp_path, ignore)
    with pytest.raises(CheckpointError, match="belongs to another experiment"):
        train_in(tiny(**{"train.epochs": 1, "optim.lr": 1.0}), tmp_path, ignore)


def test_the_same_data_under_another_path_are_no_other_experiment(tiny: Tiny, tmp_path: Path) -> None:
    experiment = tiny(**{"train.epochs": 1})
    train_in(experiment, tmp_path, ignore)
    elsewhere = tmp_path / "link"
    elsewhere.symlink_to(experiment.data.root)
    assert train_in(tiny(**{"train.epochs": 1, "data.root": str(elsewhere)}), tmp_path, ignore).epochs_run == 0


def test_damaged_last_is_told(tiny: Tiny, tmp_path: Path) -> None:
    train_in(tiny(**{"train.epochs": 1}), tmp_path, ignore)
    (tmp_path / LAST).write_bytes((tmp_path / LAST).read_bytes()[:1000])
    with pytest.raises(CheckpointError, match=r"last\.pt: damaged"):
        train_in(tiny(**{"train.epochs": 1}), tmp_path, ignore)


def test_loss_that_is_not_finite_stops_with_what_a_user_needs(tiny: Tiny, tmp_path: Path) -> None:
    experiment = tiny(**{"optim.lr": 1e30, "optim.name": "adamw", "optim.weight_decay": 1e9})
    with pytest.raises(
        NotFinite,
        match=r"epoch 1, step \d+, learning rate 1e\+30; batch charades_sta_train\.txt:\d+.*; "
        r"weights of query\..* are not finite",
    ):
        train_in(experiment, tmp_path, ignore)


def test_weights_that_are_not_finite_are_named_in_evaluation(tiny: Tiny) -> None:
    experiment = tiny()
    model = build_model(experiment)
    with torch.no_grad():
        model.map.norms[0].weight[0] = math.inf
    with pytest.raises(
        NotFinite, match=r"scores or spans are not finite: weights of map\.norms\.0\.weight are not finite"
    ):
        evaluate_split(model, open_data(experiment.data)["val"], experiment.eval)


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 2 GiB"), MemoryError()]
)
def test_a_lack_of_memory_in_a_step_is_told_in_a_line(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def step(engine: Engine, batch: Batch, size: int) -> torch.Tensor:
        if engine.schedule.steps == 4:
            raise error
        return original(engine, batch, size)

    original = Engine.step
    monkeypatch.setattr(Engine, "step", step)
    with pytest.raises(
        MemoryShortage, match=r"^out of memory at epoch \d, step \d.*; lower train\.micro_batch"
    ) as told:
        train_in(tiny(), tmp_path, ignore)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("kind", [MemoryShortage, NotFinite])
def test_errors_survive_the_way_to_another_process(kind: type[TrainingError]) -> None:
    back = pickle.loads(pickle.dumps(kind("one line")))
    assert type(back) is kind
    assert str(back) == "one line"


def test_reports_count_steps_and_hold_the_ious_of_queries(tiny: Tiny, tmp_path: Path) -> None:
    reports: list[EpochReport] = []
    experiment = tiny(**{"train.eval_every": 2})
    train_in(experiment, tmp_path, reports.append)
    per_epoch = reports[0].steps
    assert [report.steps for report in reports] == [per_epoch, 2 * per_epoch, 3 * per_epoch]
    val = open_data(experiment.data)["val"]
    assert [report.val_queries for report in reports] == [len(val), 0, len(val)]
    assert not reports[1].query_ious
    ious = unpack_ious(reports[2].query_ious)
    assert len(ious) == len(val)
    assert ious.mean() == pytest.approx(reports[2].val["mIoU"], abs=1 / 510)
    old = {key: value for key, value in reports[0].plain().items() if key not in ("steps", "val_queries", "query_ious")}
    assert EpochReport.read(old).query_ious == ""  # a line written before there were any


def test_best_rebuilds_its_model_in_a_new_process(tiny: Tiny, tmp_path: Path) -> None:
    experiment = tiny()
    train_in(experiment, tmp_path, ignore)
    batch = open_data(experiment.data)["val"].batch([0, 1])
    checkpoint = load_checkpoint(tmp_path / BEST)
    assert checkpoint.planted
    with torch.no_grad():
        here = checkpoint.model(batch.visual, batch.words, batch.word_mask).logits
    torch.save({"visual": batch.visual, "words": batch.words, "mask": batch.word_mask}, tmp_path / "batch.pt")
    program = """
import json, sys, torch
from pathlib import Path
from cdn_tune.training.runs.checkpoint import load_checkpoint
folder = Path(sys.argv[1])
batch = torch.load(folder / "batch.pt")
with torch.no_grad():
    model = load_checkpoint(folder / "checkpoints/best.pt").model
    logits = model(batch["visual"], batch["words"], batch["mask"]).logits
print(json.dumps(logits.tolist()))
"""
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=True)
    assert torch.equal(torch.tensor(json.loads(done.stdout)), here)


def test_more_workers_than_queries_is_refused(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from cdn_tune.training import loop
    from cdn_tune.training.step.process_group import World

    monkeypatch.setattr(loop, "this_world", lambda: World(rank=0, size=9))
    experiment = tiny()
    with pytest.raises(ConfigError, match=r"train\.batch_size=8 is smaller than the number of workers, 9"):
        train(experiment, tmp_path, ignore, open_data(experiment.data))
    of_videos = tiny(**{"train.batch_size": 1000, "train.batch_of": "videos"})
    monkeypatch.setattr(loop, "this_world", lambda: World(rank=0, size=25))
    with pytest.raises(ConfigError, match=r"train split=\d+ videos is smaller than the number of workers, 25"):
        train(of_videos, tmp_path, ignore, open_data(of_videos.data))


@pytest.mark.parametrize(("seconds", "most"), [(0.01, 7), (0.1, 60), (1.0, 101)])
def test_workers_agree_whether_to_stop_four_times_a_second(
    seconds: float, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long a step takes; the one that notices has all of them stop at the same step."""
    from cdn_tune.training import loop

    now = 0.0
    monkeypatch.setattr(loop, "time", SimpleNamespace(monotonic=lambda: now))
    agreed: list[float] = []

    class World:
        size, is_main = 2, True

        def gather(self, item: Any) -> list[Any]:
            agreed.append(now)
            return [item, (False, False, 1)]

    state = SimpleNamespace(world=World())
    writer = SimpleNamespace(wait=lambda _: True)
    parts: Any = {
        "engine": SimpleNamespace(settle=lambda: None),
        "progress": None,
        "splits": {},
        "records": None,
        "report": ignore,
    }
    training = loop._Training(
        state=cast(Any, state),
        writer=cast(Any, writer),
        stop=lambda: now > 100 * seconds,
        pace=Pace("epoch", 0, 0.0),
        decisions=None,
        agreed=0.0,
        **parts,
    )
    monkeypatch.setattr(loop._Training, "_save", lambda *_: None)

    def train() -> None:
        nonlocal now
        while now < 1000 * seconds:
            now += seconds
            training._between_steps(1, EpochState())

    with pytest.raises(KeyboardInterrupt):
        train()
    assert now - 100 * seconds <= max(0.25, seconds) + seconds
    assert len(agreed) <= most


@pytest.mark.parametrize("path", sorted((ROOT / "experiments/ablations").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_ablation_trains_an_epoch(tiny: Tiny, tmp_path: Path, path: Path) -> None:
    """The ablation's switches on a model and data cut to size."""
    full = load_experiment(path)
    small = tiny().plain()
    stack = {"layers": 8, "experts": min(full.model.map.experts, 2), "mixing_dropout": 0.1}
    model = {
        **full.model.plain(),
        **{key: small["model"][key] for key in ("clips", "hidden", "query", "attention_size")},
    }
    model["map"] = {**model["map"], **stack}
    experiment = override({**small, "model": model, "loss": full.loss.plain()}, {"train.epochs": 1}, str(path))
    reports: list[EpochReport] = []
    train_in(experiment, tmp_path, reports.append)
    assert math.isfinite(reports[0].loss)
    assert (reports[0].losses["attention_loss"] > 0) == (full.model.clip_pool == "attention")
