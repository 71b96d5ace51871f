"""The final table of a training: the best epoch's metrics, time, memory, disk."""

from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from cdn_tune.cli.show.tables import trained_table
from cdn_tune.config import Experiment
from cdn_tune.training.memory.estimate import checkpoint_bytes, occupied_bytes
from cdn_tune.training.reports import ignore
from cdn_tune.training.runs.records import read_metrics
from cdn_tune.training.train_trial import train_in

Tiny = Callable[..., Experiment]


def shown(*arguments: object) -> str:
    console = Console(width=160)
    with console.capture() as captured:
        console.print(trained_table(*arguments))  # type: ignore[arg-type]
    return captured.get()


def test_the_best_epoch_is_shown_with_its_cost(tiny: Tiny, tmp_path: Path) -> None:
    experiment = tiny(**{"train.epochs": 2})
    train_in(experiment, tmp_path, ignore)
    epochs = read_metrics(tmp_path)
    epochs[-1] |= {"best_epoch": 1, "peak_bytes": 3 << 20}
    for epoch, seconds in zip(epochs, (60.0, 65.0), strict=True):
        epoch |= {"train_seconds": seconds, "val_seconds": 1.0}
    epochs[0]["val"] = dict.fromkeys(experiment.eval.metrics, 0.1234)
    text = shown(experiment, epochs, tmp_path, True)
    assert "charades_sta (planted data), val split, epoch 1 of 2, in %" in text
    head, _, row = (line.split() for line in text.splitlines()[-4:-1])
    assert head[: len(experiment.eval.metrics)] == list(experiment.eval.metrics)
    assert row.count("12.34") == len(experiment.eval.metrics)
    assert "2 min 7 s" in text
    assert "3 MiB" in text
    del epochs[-1]["peak_bytes"]  # of a run that began before there was any
    assert "MiB" not in shown(experiment, epochs, tmp_path, False)


def test_disk_use_is_what_the_plan_says(tiny: Tiny, tmp_path: Path) -> None:
    experiment = tiny(**{"train.epochs": 3})
    train_in(experiment, tmp_path, ignore)
    files = [path.stat().st_size for path in (tmp_path / "checkpoints").iterdir()]
    assert len(files) == 3
    assert occupied_bytes(tmp_path) == sum(files)
    tensors = checkpoint_bytes(experiment)
    archives = 4 * (1 << 17)  # names, history and alignment of so small a model's files
    assert occupied_bytes(tmp_path) < tensors + archives
