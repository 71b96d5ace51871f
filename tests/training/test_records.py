"""What a trial records can be read back as TensorBoard reads it."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from cdn_tune.config import Experiment
from cdn_tune.training.reports import EpochReport, ignore
from cdn_tune.training.runs.records import EVENTS, METRICS, Records, read_metrics
from cdn_tune.training.train_trial import train_in

Tiny = Callable[..., Experiment]


def epoch(number: int, val: Mapping[str, float] | None = None) -> EpochReport:
    return EpochReport(
        epoch=number,
        epochs=4,
        loss=1.0 / number,
        losses={"moment_loss": 0.5, "attention_loss": 0.25},
        learning_rate=1e-3,
        gradient_norm=2.0,
        samples_per_second=10.0 * number,
        train_seconds=3.0,
        val_seconds=0.5,
        val=dict(val if val is not None else {"R1@0.5": 0.1 * number}),
        value=0.1 * number,
        best_value=0.1 * number,
        best_epoch=number,
    )


def read(folder: Path) -> EventAccumulator:
    events = EventAccumulator(str(folder / EVENTS), size_guidance={"images": 0, "tensors": 0, "scalars": 0})
    return events.Reload()


def scalars(events: EventAccumulator, tag: str) -> list[tuple[int, float]]:
    return [(event.step, pytest.approx(event.value)) for event in events.Scalars(tag)]


def hparams_of(events: EventAccumulator, name: str) -> Any:
    content = events.SummaryMetadata(f"_hparams_/{name}").plugin_data.content
    return getattr(HParamsPluginData.FromString(content), name)


def test_epochs_are_read_back(tmp_path: Path) -> None:
    with Records(tmp_path, []) as records:
        for number in (1, 2):
            records.write(epoch(number))
    events = read(tmp_path)
    assert scalars(events, "train/loss") == [(1, 1.0), (2, 0.5)]
    assert scalars(events, "train/samples_per_second") == [(1, 10.0), (2, 20.0)]
    assert scalars(events, "val/R1@0.5") == [(1, 0.1), (2, 0.2)]
    assert scalars(events, "time/train_seconds") == [(1, 3.0), (2, 3.0)]
    assert scalars(events, "time/val_seconds") == [(1, 0.5), (2, 0.5)]
    assert [entry["epoch"] for entry in read_metrics(tmp_path)] == [1, 2]


def test_epoch_without_evaluation_has_no_val_scalars(tmp_path: Path) -> None:
    with Records(tmp_path, []) as records:
        records.write(epoch(1, val={}))
        records.write(epoch(2))
    events = read(tmp_path)
    assert scalars(events, "train/loss") == [(1, 1.0), (2, 0.5)]
    assert scalars(events, "val/R1@0.5") == [(2, 0.2)]
    assert scalars(events, "time/val_seconds") == [(2, 0.5)]


def test_peak_memory_is_recorded_where_it_is_known(tmp_path: Path) -> None:
    with Records(tmp_path, []) as records:
        records.write(epoch(1))
        known = epoch(2)
        object.__setattr__(known, "peak_bytes", 3 << 20)
        records.write(known)
    assert scalars(read(tmp_path), "train/peak_memory_mib") == [(2, 3.0)]


def test_pictures_are_read_back_and_texts_are_written_once(tmp_path: Path) -> None:
    picture = np.full((256, 300, 3), 7, np.uint8)
    with Records(tmp_path, []) as records:
        for number in (1, 2):
            records.pictures(number, {"scores/val.txt:3": picture}, {"val.txt:3": "she opens the door"})
            records.write(epoch(number))
    events = read(tmp_path)
    shown = events.Images("scores/val.txt:3")
    assert [(image.step, image.height, image.width) for image in shown] == [(1, 256, 300), (2, 256, 300)]
    (text,) = events.Tensors("queries/val.txt:3/text_summary")
    assert text.tensor_proto.string_val[0].decode() == "she opens the door"


def test_texts_are_not_written_again_by_a_trial_taken_up_again(tmp_path: Path) -> None:
    for history in ([], [epoch(1)]):
        with Records(tmp_path, history) as records:
            number = len(history) + 1
            records.pictures(number, {}, {"val.txt:3": "she opens the door"})
            records.write(epoch(number))
    assert len(read(tmp_path).Tensors("queries/val.txt:3/text_summary")) == 1


def test_what_lies_beyond_the_history_goes(tmp_path: Path) -> None:
    picture = np.zeros((256, 256, 3), np.uint8)
    for history, numbers in (([], (1, 2, 3)), ([epoch(1)], (2,))):
        with Records(tmp_path, history) as records:
            for number in numbers:
                records.pictures(number, {"scores/a": picture}, {"a": "text"})
                records.write(epoch(number))
    events = read(tmp_path)
    assert scalars(events, "train/loss") == [(1, 1.0), (2, 0.5)]
    assert [image.step for image in events.Images("scores/a")] == [1, 2]
    assert [entry["epoch"] for entry in read_metrics(tmp_path)] == [1, 2]


def test_hparams_are_in_the_same_folder(tiny: Tiny, tmp_path: Path) -> None:
    experiment = tiny()
    with Records(tmp_path, []) as records:
        records.write(epoch(1))
        records.hparams(experiment, best_value=0.4, best_epoch=1)
    assert [path.name for path in (tmp_path / EVENTS).iterdir() if path.is_dir()] == []
    events = read(tmp_path)
    started = hparams_of(events, "session_start_info").hparams
    assert started["optim.lr"].number_value == experiment.optim.lr
    assert started["data.dataset"].string_value == "charades_sta"
    assert started["model.map.layers"].number_value == 2
    assert "model.scale_layers" not in started  # unset
    assert "eval.ious" not in started  # a list
    metrics = hparams_of(events, "experiment").metric_infos
    assert [info.name.tag for info in metrics] == ["hparam/R1@0.5"]
    assert scalars(events, "hparam/R1@0.5") == [(1, 0.4)]


def test_hparams_are_written_when_a_trial_ends_early(tiny: Tiny, tmp_path: Path) -> None:
    def prune(report: EpochReport) -> None:
        if report.epoch == 2:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        train_in(tiny(), tmp_path, prune)
    events = read(tmp_path)
    assert hparams_of(events, "session_start_info").hparams["train.epochs"].number_value == 3
    best = max(read_metrics(tmp_path), key=lambda entry: entry["value"])
    assert scalars(events, "hparam/R1@0.5") == [(best["epoch"], best["value"])]


def test_other_workers_write_nothing(tiny: Tiny, tmp_path: Path) -> None:
    with Records(tmp_path, [], enabled=False) as records:
        records.pictures(1, {"scores/a": np.zeros((2, 2, 3), np.uint8)}, {"a": "text"})
        records.hparams(tiny(), 0.4, 1)
    assert list(tmp_path.iterdir()) == []


def test_training_records_what_it_reports(tiny: Tiny, tmp_path: Path) -> None:
    reports: list[EpochReport] = []
    train_in(tiny(**{"train.epochs": 2}), tmp_path, reports.append)
    events = read(tmp_path)
    assert scalars(events, "train/loss") == [(report.epoch, report.loss) for report in reports]
    assert scalars(events, "val/mIoU") == [(report.epoch, report.val["mIoU"]) for report in reports]
    lines = (tmp_path / METRICS).read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == [report.plain() for report in reports]
    train_in(tiny(**{"train.epochs": 2}), tmp_path, ignore)
    assert scalars(read(tmp_path), "train/loss") == [(report.epoch, report.loss) for report in reports]
