"""A train run begins, begins from other weights, or becomes longer, and is then what one begun so would be."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from cdn_tune.config import Experiment
from cdn_tune.errors import CheckpointError, RunError
from cdn_tune.training.begin import claim_training
from cdn_tune.training.reports import ignore
from cdn_tune.training.runs.checkpoint import BEST, LAST, START, build_model, read_checkpoint, save_checkpoint
from cdn_tune.training.runs.run_folder import locked, read_manifest
from cdn_tune.training.train_trial import train_in
from tests.training.test_exact_resume import assert_same

Tiny = Callable[..., Experiment]
MANIFEST: dict[str, Any] = {"kind": "train"}


def begin(run: Path, experiment: Experiment, start: Path | None = None) -> bool:
    with locked(run):
        return claim_training(run, experiment, MANIFEST, start)


def trained(run: Path, experiment: Experiment, start: Path | None = None) -> None:
    begin(run, experiment, start)
    train_in(experiment, run, ignore)


@pytest.mark.parametrize("schedule", ["constant", "plateau"])
def test_a_longer_run_is_one_that_was_begun_so(tiny: Tiny, tmp_path: Path, schedule: str) -> None:
    settings = {"optim.schedule": schedule, "optim.warmup_steps": 20, "train.ema": 0.9}
    short, long = (tiny(**settings, **{"train.epochs": epochs}) for epochs in (2, 4))
    trained(tmp_path / "whole", long)
    trained(tmp_path / "run", short)
    trained(tmp_path / "run", long)
    assert_same(tmp_path / "run", tmp_path / "whole")
    assert not begin(tmp_path / "new", long)
    assert begin(tmp_path / "run", long)  # the folder now holds the longer one
    with pytest.raises(RunError, match=r"train\.epochs is 4 there, 2 here; a run can become longer only"):
        begin(tmp_path / "run", short)


def test_where_rates_depend_on_the_length_the_remedy_leads_out(tiny: Tiny, tmp_path: Path) -> None:
    short, long = (tiny(**{"optim.schedule": "cosine", "train.epochs": epochs}) for epochs in (1, 2))
    run = tmp_path / "run"
    trained(run, short)
    before = (run / "experiment.yaml").read_bytes()
    with pytest.raises(RunError, match=r"optim\.schedule=cosine all learning rates depend on it; add --from") as told:
        begin(run, long)
    assert (run / "experiment.yaml").read_bytes() == before  # the same command as before goes on
    start = Path(str(told.value).split("--from ")[1].split(" ")[0])
    trained(tmp_path / "another", long, start)
    assert len(read_checkpoint(tmp_path / "another" / LAST)["history"]) == 2
    with pytest.raises(CheckpointError, match="belongs to another experiment"):
        train_in(long, run, ignore)  # also without the run folder's own check


def test_other_differences_are_named_as_ever(tiny: Tiny, tmp_path: Path) -> None:
    begin(tmp_path / "run", tiny())
    before = (tmp_path / "run" / "experiment.yaml").read_bytes()
    with pytest.raises(RunError, match=r"optim\.lr is 0\.003 there, 0\.5 here"):
        begin(tmp_path / "run", tiny(**{"train.epochs": 9, "optim.lr": 0.5}))
    assert (tmp_path / "run" / "experiment.yaml").read_bytes() == before


def test_patience_that_has_run_out_ends_the_longer_run_as_well(tiny: Tiny, tmp_path: Path) -> None:
    settings = {"train.patience": 1, "optim.lr": 1e-30, "model.map.batch_norm": False}  # nothing ever changes
    trained(tmp_path, tiny(**settings, **{"train.epochs": 2}))
    longer = tiny(**settings, **{"train.epochs": 5})
    begin(tmp_path, longer)
    assert train_in(longer, tmp_path, ignore).epochs_run == 0


@pytest.mark.parametrize("decay", [0.0, 0.9])
def test_a_new_run_starts_from_the_weights_that_are_evaluated(tiny: Tiny, tmp_path: Path, decay: float) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    trained(first, tiny(**{"train.ema": decay, "train.epochs": 1}))
    last = read_checkpoint(first / LAST)
    weights = last["ema"][0] if decay else last["model"]
    still = tiny(**{"optim.lr": 1e-30, "train.ema": decay, "train.epochs": 1})
    trained(second, still, first / LAST)
    kept = read_checkpoint(second / BEST)["model"]
    for name, value in weights.items():
        if "norms" not in name:  # statistics move all the same
            assert torch.equal(value, kept[name]), name
    (first / LAST).unlink()
    assert begin(second, still, first / LAST)  # the same command goes on, whatever became of the checkpoint
    assert read_manifest(second)["start"]["checkpoint"] == str(first / LAST)
    with pytest.raises(RunError, match=r"did not begin from .*best\.pt; leave --from out to go on"):
        begin(second, still, first / BEST)
    with pytest.raises(RunError, match="did not begin from"):
        begin(first, tiny(**{"train.ema": decay, "train.epochs": 1}), second / BEST)


def test_weights_that_do_not_fit_are_refused_before_anything_is_written(tiny: Tiny, tmp_path: Path) -> None:
    experiment = tiny()
    save_checkpoint(tmp_path / "a.pt", experiment, {"model": build_model(experiment).state_dict()})
    save_checkpoint(tmp_path / "b.pt", experiment, {"model": {}})
    save_checkpoint(tmp_path / "c.pt", experiment, {"model": {}, "experiment": "x" * 10_000})
    save_checkpoint(tmp_path / "e.pt", experiment, {"ema": "x"})
    broken = {name: value * torch.nan for name, value in build_model(experiment).state_dict().items()}
    save_checkpoint(tmp_path / "d.pt", experiment, {"model": broken})
    for start, asked, told in (
        (tmp_path / "a.pt", {"model.hidden": 4}, "another model .model.hidden is 8 there, 4 here.; set it as there"),
        (
            tmp_path / "a.pt",
            {"model.name": "tan", "model.hidden": 4},
            "another model .model.name is cdn there, tan here",
        ),
        (tmp_path / "a.pt", {"data.feature_size": 4}, "another model .data.feature_size is 16 there, 4 here.; set it"),
        (tmp_path / "b.pt", {}, r"b\.pt: is of another model \(other weights\); set it as there, or name another"),
        (tmp_path / "c.pt", {}, r"c\.pt: is of another model \(other weights\); set it as there, or name another"),
        (tmp_path / "e.pt", {}, r"e\.pt: is of another model \(other weights\); set it as there, or name another"),
        (tmp_path / "d.pt", {"model.map.mixing_dropout": 0.3}, r"d\.pt: its weights .* are not finite; delete it"),
        (tmp_path, {}, "is a folder; name a checkpoint in it"),
    ):
        with pytest.raises(CheckpointError, match=told):
            begin(tmp_path / "run", tiny(**asked), start)
    assert not (tmp_path / "run" / "manifest.json").exists()
    begin(tmp_path / "run", experiment, tmp_path / "a.pt")
    (tmp_path / "run" / "manifest.json").unlink()  # killed just before it was written
    begin(tmp_path / "run", experiment)
    assert not (tmp_path / "run" / START).exists()


@pytest.mark.parametrize("content", [b"\xff\xfe", b"", b"name: [", b"name: 3\n", b"a: &a [1]\nb: *a\n1: 2\n", b"{}"])
def test_a_damaged_experiment_is_named(tiny: Tiny, tmp_path: Path, content: bytes) -> None:
    begin(tmp_path, tiny())
    (tmp_path / "experiment.yaml").write_bytes(content)
    with pytest.raises(RunError, match=r"experiment\.yaml.*; restore the file, or choose another --run folder"):
        begin(tmp_path, tiny())


@pytest.mark.parametrize("key", ["data", "threads", "start", "storage", "kind", "experiment"])
def test_a_damaged_manifest_is_named(tiny: Tiny, tmp_path: Path, key: str) -> None:
    begin(tmp_path, tiny())
    values: list[Any] = [[1], 1.5, False]
    values += [{"files": 1}, {"files": {"annotations": []}}] if key == "data" else []
    for value in values:
        (tmp_path / "manifest.json").write_text(json.dumps({"kind": "train", key: value}))
        with pytest.raises(RunError, match=rf"manifest\.json: is not a cdn-tune manifest \({key}"):
            begin(tmp_path, tiny())


@pytest.mark.parametrize("key", ["model", "optimiser", "schedule", "generators", "history", "within", "experiment"])
def test_a_state_that_is_whole_but_wrong_is_named(tiny: Tiny, tmp_path: Path, key: str) -> None:
    experiment = tiny(**{"train.epochs": 1})
    train_in(experiment, tmp_path, ignore)
    content = read_checkpoint(tmp_path / LAST)
    for change in ({key: 3}, {key: [{"epoch": "one"}]}):
        whole = {**content, **change}
        plain = whole.pop("experiment")
        save_checkpoint(tmp_path / LAST, _Plain(plain), {**whole})  # type: ignore[arg-type]
        with pytest.raises(Exception, match=r"last\.pt") as told:
            train_in(experiment, tmp_path, ignore)
        assert getattr(told.value, "exit_code", None) == 2


class _Plain:
    """Stands in for an experiment that is written as it is."""

    def __init__(self, content: Any) -> None:
        self.content = content

    def plain(self) -> Any:
        return self.content
