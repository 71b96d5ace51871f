"""Every shipped experiment at its full size, on planted features in its layout: planned, and trained for two steps.

A batch is cut to one query; model, losses, optimiser, features, frames and map are those of the file.
"""

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from rich.console import Console

from cdn_tune.cli.show.plan import plan_table
from cdn_tune.config import DataConfig, Experiment, load_experiment
from cdn_tune.data.dataset import SequenceBatch
from cdn_tune.data.planted import plant
from cdn_tune.training.memory.estimate import count_parameters
from cdn_tune.training.plan import make_plan
from cdn_tune.training.reports import StepReport
from cdn_tune.training.runs.checkpoint import build_model
from cdn_tune.training.step.optimiser import Ema, build_optimiser, build_schedule
from cdn_tune.training.step.process_group import this_world
from cdn_tune.training.step.steps import Engine
from cdn_tune.training.train_trial import open_data

ROOT = Path(__file__).resolve().parents[2] / "experiments"
# Of maps and of sequences, seconds each; a published CDN takes 6 GB and half a minute or more.
QUICK = ("charades/SnAG-256-L6-I3D", "demo/small")
NAMES = sorted(path.relative_to(ROOT).with_suffix("").as_posix() for path in ROOT.rglob("*.yaml"))
SHIPPED = [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in NAMES]
SIZES = {  # SnAG's as published; those of the other families lie with their tests
    "charades/SnAG-256-L6-C3D": 10_408_073,
    "charades/SnAG-256-L6-I3D": 9_883_785,
    "tacos/SnAG-2304-L8-C3D": 11_202_187,
    "activitynet/SnAG-256-L7-C3D": 3_228_042,
}
SECONDS = {"charades_sta": 30, "tacos": 1200, "activitynet": 60}
FEATURES = {"charades_sta": 240, "tacos": 9600, "activitynet": 240}  # of TACoS SnAG reads every fourth, at most 2304
VIDEOS = ("first", "second", "third")
QUERY = "the person opens the door and takes a cup"

Data = Callable[[DataConfig], DataConfig]


def annotations(folder: Path, dataset: str) -> None:
    """Writes a dataset's annotation files: videos with a query each, two of them to train on and one to choose by."""
    folder.mkdir()
    seconds = SECONDS[dataset]
    moment = [0.3 * seconds, 0.6 * seconds]
    if dataset == "charades_sta":  # has no val files
        for split, videos in (("train", VIDEOS), ("test", ("fourth",))):
            lines = "".join(f"{video} {moment[0]} {moment[1]}##{QUERY}\n" for video in videos)
            (folder / f"charades_sta_{split}.txt").write_text(lines)
            (folder / f"Charades_v1_{split}.csv").write_text(
                "id,length\n" + "".join(f"{video},{seconds}\n" for video in videos)
            )
        return
    entry: dict[str, object] = {"timestamps": [moment], "sentences": [QUERY]}
    entry |= {"fps": 1, "num_frames": seconds} if dataset == "tacos" else {"duration": seconds}
    for split, videos in (("train", VIDEOS[:2]), ("val", VIDEOS[2:]), ("test", ("fourth",))):
        (folder / f"{split}.json").write_text(json.dumps(dict.fromkeys(videos, entry)))


@pytest.fixture(scope="module")
def planted_for(tmp_path_factory: pytest.TempPathFactory) -> Data:
    """Plants features in an experiment's layout, of its sizes, once each; returns its data settings there."""
    folder = tmp_path_factory.mktemp("shipped")

    def find(data: DataConfig) -> DataConfig:
        source, root = folder / data.dataset, folder / f"{data.dataset}-{data.feature_size}-{data.word_size}"
        if not source.exists():
            annotations(source, data.dataset)
        planted = plant(
            root,
            annotations=data.dataset,
            source=source,
            feature_size=data.feature_size,
            word_size=data.word_size,
            frame_rate=FEATURES[data.dataset] / SECONDS[data.dataset],
        )
        # A fraction that holds out one of three videos.
        return data.model_copy(
            update={"root": str(root), "word_vectors": planted.word_vectors, "val_fraction": 0.34, "features": None}
        )

    return find


def assert_reads_its_sizes(experiment: Experiment, full: Experiment) -> None:
    batch = open_data(experiment.data, experiment.model.inputs.sequences)["train"].batch([0])
    steps = full.data.sequence.length if isinstance(batch, SequenceBatch) else full.data.frames
    assert batch.frames.shape[1] >= steps
    assert (batch.frames.shape[2], batch.words.shape[2]) == (full.data.feature_size, full.data.word_size)
    assert (experiment.model, experiment.loss, experiment.optim) == (full.model, full.loss, full.optim)


@pytest.mark.parametrize(("name", "size"), SIZES.items())
def test_published_size(name: str, size: int) -> None:
    assert count_parameters(load_experiment(ROOT / f"{name}.yaml")) == size


@pytest.mark.timeout(3000)
@pytest.mark.parametrize("name", SHIPPED)
def test_is_planned_and_takes_two_steps(name: str, planted_for: Data) -> None:
    full = load_experiment(ROOT / f"{name}.yaml")
    settings = full.train.model_copy(update={"epochs": 1, "batch_size": 1, "eval_queries": 1})
    experiment = full.model_copy(update={"data": planted_for(full.data), "train": settings})
    assert_reads_its_sizes(experiment, full)

    splits = open_data(experiment.data, experiment.model.inputs.sequences)
    plan = make_plan(experiment, splits, measured_steps=2)
    assert plan.parameters == count_parameters(full)
    assert (plan.steps_per_epoch, plan.batch, plan.micro_batch) == (2, 1, 1)
    console = Console(width=120)
    with console.capture() as capture:
        console.print(plan_table(plan, experiment))
    assert f"{full.name}: " in capture.get()
    assert f"{plan.parameters:,}" in capture.get()

    torch.manual_seed(full.seed)
    model = build_model(experiment)
    ema = Ema(model, settings.ema, settings.ema_warmup) if settings.ema else None
    optimiser = build_optimiser(model, experiment.optim, model.text_part)
    schedule = build_schedule(optimiser, experiment.optim, total_steps=2, epoch_steps=2)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    engine = Engine(experiment, model, optimiser, schedule, this_world(), torch.float32, scaler, ema=ema)
    before = {name: value.clone() for name, value in model.named_parameters()}
    steps: list[StepReport] = []
    totals = engine.run_epoch(splits["train"], 1, steps.append)
    assert len(steps) == 2
    assert all(map(math.isfinite, (*(step.loss for step in steps), *totals.losses.values())))
    assert math.isfinite(totals.gradient_norm)
    assert totals.gradient_norm > 0
    assert all(value.grad is not None for value in model.parameters())
    moved = {name: not torch.equal(value, before[name]) for name, value in model.named_parameters()}
    assert any(moved.values())
    # Of 2D-TAN's first layers gradients are below 1e-15 at first, which Adam's epsilon swallows.
    gradients = {
        name: float(value.grad.abs().max()) for name, value in model.named_parameters() if value.grad is not None
    }
    assert [name for name, gradient in gradients.items() if gradient > 1e-10 and not moved[name]] == []
