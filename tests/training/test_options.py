"""The options of a training: micro-batches, averaged weights, patience, formats, how often val is evaluated."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from cdn_tune.config import Experiment
from cdn_tune.training.evaluate.evaluation import evaluate_split
from cdn_tune.training.reports import EpochReport, ignore
from cdn_tune.training.runs.checkpoint import BEST, LAST, build_model, load_checkpoint, read_checkpoint
from cdn_tune.training.state import Snapshots, Writer
from cdn_tune.training.step.optimiser import Ema
from cdn_tune.training.train_trial import open_data, train_in

Tiny = Callable[..., Experiment]
NO_STATISTICS = {"model.map.batch_norm": False, "model.map.mixing_dropout": 0.0}


@pytest.mark.parametrize("size", [1, 3, 5, 7])
def test_micro_batches_add_up_to_the_batch(tiny: Tiny, tmp_path: Path, size: int) -> None:
    reports: dict[object, list[EpochReport]] = {"auto": [], size: []}
    for micro_batch, found in reports.items():
        experiment = tiny(**{**NO_STATISTICS, "train.micro_batch": micro_batch})
        train_in(experiment, tmp_path / str(micro_batch), found.append)
    for whole, pieces in zip(*reports.values(), strict=True):
        assert pieces.loss == pytest.approx(whole.loss, rel=1e-5)
        assert pieces.gradient_norm == pytest.approx(whole.gradient_norm, rel=1e-4)
        assert pieces.val == whole.val
    weights = [read_checkpoint(tmp_path / str(micro_batch) / LAST)["model"] for micro_batch in reports]
    for state in weights:
        del state["clip_pool.weight.bias"]  # a softmax follows: its gradient is rounding alone, which Adam blows up
    torch.testing.assert_close(weights[0], weights[1], atol=1e-4, rtol=1e-3)


def test_averaged_weights_are_evaluated_and_kept(tiny: Tiny, tmp_path: Path) -> None:
    experiment = tiny(**{"train.ema": 0.9, "train.epochs": 2})
    reports: list[EpochReport] = []
    train_in(experiment, tmp_path, reports.append)
    last = read_checkpoint(tmp_path / LAST)
    checkpoint = load_checkpoint(tmp_path / BEST)
    assert any(not torch.equal(last["model"][name], value) for name, value in last["ema"][0].items())
    val = evaluate_split(checkpoint.model, open_data(experiment.data)["val"], experiment.eval).metrics
    assert val == reports[checkpoint.epoch - 1].val
    if checkpoint.epoch == 2:
        for name, value in checkpoint.model.state_dict().items():
            assert torch.equal(value, last["ema"][0][name])


def test_the_mean_of_constant_weights_is_those() -> None:
    model = torch.nn.Linear(2, 2)
    ema = Ema(model, 0.99)
    with torch.no_grad():
        model.weight.fill_(3.0)
    for _ in range(400):
        ema.update(model)
    assert torch.allclose(ema.model.weight, model.weight, atol=0.1)
    assert not ema.model.weight.requires_grad


def test_patience_ends_a_training(tiny: Tiny, tmp_path: Path) -> None:
    experiment = tiny(**{"train.epochs": 30, "train.patience": 2, "optim.lr": 1e-12, **NO_STATISTICS})  # learns nothing
    reports: list[EpochReport] = []
    result = train_in(experiment, tmp_path, reports.append)
    assert [report.epoch for report in reports] == [1, 2, 3]
    assert (result.best_epoch, reports[-1].epochs, reports[-1].is_last) == (1, 3, True)
    again: list[int] = []
    assert train_in(experiment, tmp_path, lambda report: again.append(report.epoch)).epochs_run == 0
    assert again == [1, 2, 3]


def test_val_is_evaluated_every_so_many_epochs(tiny: Tiny, tmp_path: Path) -> None:
    reports: list[EpochReport] = []
    train_in(tiny(**{"train.epochs": 6, "train.eval_every": 3}), tmp_path, reports.append)
    assert [bool(report.val) for report in reports] == [True, False, False, True, False, True]
    assert reports[1].value == reports[0].value
    assert all(report.best_epoch in (1, 4, 6) for report in reports)


def test_val_is_evaluated_on_some_queries(tiny: Tiny) -> None:
    experiment = tiny()
    val = open_data(experiment.data)["val"]
    model = build_model(experiment)
    whole, part = (evaluate_split(model, val, experiment.eval, queries=count) for count in (None, 5))
    assert len(whole.top) == len(val) > len(part.top) == 5
    chosen = torch.linspace(0, len(val) - 1, 5).round().long()
    torch.testing.assert_close(part.top, whole.top[chosen], equal_nan=True)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_narrow_formats_train(tiny: Tiny, tmp_path: Path, precision: str) -> None:
    reports: list[EpochReport] = []
    train_in(tiny(**{"train.precision": precision}), tmp_path, reports.append)
    exact: list[EpochReport] = []
    train_in(tiny(), tmp_path / "exact", exact.append)
    assert reports[-1].loss < reports[0].loss
    assert reports[0].loss == pytest.approx(exact[0].loss, rel=0.05)


def test_writer_raises_what_a_job_raised() -> None:
    def fail() -> None:
        raise OSError("no space")

    with Writer() as writer:
        writer.submit(fail)
        with pytest.raises(OSError, match="no space"):
            writer.wait()


def test_a_snapshot_shares_memory_with_the_next_alone() -> None:
    tensor, snapshots = torch.zeros(2), Snapshots()
    copy = snapshots.take({"a": [tensor, (tensor, 1)], "b": None})
    tensor.fill_(1)
    assert copy["a"][0].sum() == copy["a"][1][0].sum() == 0
    assert (copy["a"][1][1], copy["b"]) == (1, None)
    assert snapshots.take({"a": [tensor, (tensor, 1)], "b": 2})["a"][0].data_ptr() == copy["a"][0].data_ptr()
    assert snapshots.take({"a": [torch.zeros(3)]})["a"][0].shape == (3,)


def test_the_training_of_a_finished_trial_is_not_repeated(tiny: Tiny, tmp_path: Path) -> None:
    experiment = tiny(**{"train.epochs": 1})
    train_in(experiment, tmp_path, ignore)
    before = (tmp_path / LAST).stat().st_mtime_ns
    assert train_in(experiment, tmp_path, ignore).epochs_run == 0
    assert (tmp_path / LAST).stat().st_mtime_ns == before
