"""Checkpoints: strict, safe, whole or absent."""

import os
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from cdn_tune.config import Experiment
from cdn_tune.errors import CheckpointError, RunError
from cdn_tune.training.runs.checkpoint import build_model, load_checkpoint, read_checkpoint, save_checkpoint
from cdn_tune.training.runs.files import write_atomic, write_text

Tiny = Callable[..., Experiment]


class Evil:
    """A pickle that would run code when opened."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (os.system, ("touch pwned",))


def content(experiment: Experiment) -> dict[str, object]:
    return {"model": build_model(experiment).state_dict(), "epoch": 1, "val": {"R1@0.5": 0.5}, "planted": True}


def test_round_trip(tiny: Tiny, tmp_path: Path) -> None:
    experiment = tiny()
    save_checkpoint(tmp_path / "x.pt", experiment, content(experiment))
    checkpoint = load_checkpoint(tmp_path / "x.pt")
    assert checkpoint.experiment == experiment
    assert checkpoint.value == 0.5
    assert not checkpoint.model.training
    assert [path.name for path in tmp_path.iterdir()] == ["x.pt"]


def test_weights_follow_from_the_seed_alone(tiny: Tiny) -> None:
    torch.manual_seed(1)
    first = build_model(tiny()).state_dict()
    torch.manual_seed(2)
    second = build_model(tiny()).state_dict()
    other = build_model(tiny(seed=1)).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_opening_a_checkpoint_never_runs_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"format": 1, "x": Evil()}, "evil.pt")
    (tmp_path / "evil.pkl").write_bytes(pickle.dumps(Evil()))
    for name in ("evil.pt", "evil.pkl"):
        with pytest.raises(CheckpointError, match=f"{name}: .*might run code and is not opened"):
            read_checkpoint(tmp_path / name)
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize("bad", [b"", b"not a checkpoint", b"PK\x03\x04 half a zip"])
def test_damaged_file_is_told(tmp_path: Path, bad: bytes) -> None:
    (tmp_path / "x.pt").write_bytes(bad)
    with pytest.raises(CheckpointError, match="damaged"):
        load_checkpoint(tmp_path / "x.pt")


def test_missing_and_foreign_files_are_told(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        load_checkpoint(tmp_path / "x.pt")
    torch.save({"model": {}}, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match="format None"):
        load_checkpoint(tmp_path / "x.pt")


def test_weights_that_do_not_fit_are_named(tiny: Tiny, tmp_path: Path) -> None:
    experiment = tiny()
    whole = content(experiment)
    weights = dict(build_model(experiment).state_dict())
    name = next(iter(weights))
    del weights[name]
    save_checkpoint(tmp_path / "x.pt", experiment, {**whole, "model": weights})
    with pytest.raises(CheckpointError, match=name.replace(".", r"\.")):
        load_checkpoint(tmp_path / "x.pt")


def test_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "old")

    def fail(_: object) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(RunError, match="No space left on device"):
        write_atomic(path, fail)
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["a.txt"]
