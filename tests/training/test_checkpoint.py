"""Checkpoints: strict, safe, whole or absent."""

import os
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from cdn_tune.config import Experiment
from cdn_tune.errors import CheckpointError, RunError
from cdn_tune.training.runs.checkpoint import build_model, digest, load_checkpoint, read_checkpoint, save_checkpoint
from cdn_tune.training.runs.files import write_atomic, write_text, write_together
from tests.conftest import TINY

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


WRONG = {
    "experiment": [
        "x",
        {"data": 1},
        {1: 2},
        {"model": {"hidden": -1}},
        {**TINY, "data": {**TINY["data"], "root": "x"}, "model": {"hidden": 2**63}},
    ],
    "model": [None, [], {"x": 1.0}, {1: torch.zeros(1)}, {}],
    "epoch": ["3", None, 1.5, True, -1],
    "val": [None, "0.5", [0.5], {"R1@0.5": "0.5"}, {"R1@0.5": None}, {1: 0.5}, {"R1@0.5": float("nan")}],
    "planted": [None, 1, "yes"],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in WRONG.items() for value in values])
def test_a_sealed_checkpoint_with_other_content_is_one_line(
    tiny: Tiny, tmp_path: Path, name: str, value: object
) -> None:
    experiment = tiny()
    save_checkpoint(tmp_path / "x.pt", experiment, {**content(experiment), name: value})
    with pytest.raises(CheckpointError, match=r"x\.pt") as raised:
        load_checkpoint(tmp_path / "x.pt")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", WRONG)
def test_an_entry_that_is_missing_is_named(tiny: Tiny, tmp_path: Path, name: str) -> None:
    whole = read_checkpoint(_saved(tiny(), tmp_path / "x.pt"))
    del whole[name]
    torch.save({**whole, "sha256": digest(whole)}, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match=rf"x\.pt: '{name}' is missing or is not .*; delete it, or use another"):
        load_checkpoint(tmp_path / "x.pt")


def _saved(experiment: Experiment, path: Path) -> Path:
    save_checkpoint(path, experiment, content(experiment))
    return path


def test_weights_that_are_not_finite_are_named(tiny: Tiny, tmp_path: Path) -> None:
    experiment = tiny()
    state = build_model(experiment).state_dict()
    name = next(name for name, value in state.items() if value.is_floating_point())
    state[name] = torch.full_like(state[name], float("nan"))
    save_checkpoint(tmp_path / "x.pt", experiment, {**content(experiment), "model": state})
    with pytest.raises(CheckpointError, match=rf"x\.pt: its weights {name} are not finite"):
        load_checkpoint(tmp_path / "x.pt")


def test_a_device_is_not_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(RunError, match="is a device or a pipe"):
        write_text(tmp_path / "pipe", "x")
    assert (tmp_path / "pipe").is_fifo()


def test_files_that_belong_together_are_written_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    write_together({first: "old", second: "old"})
    flush = os.fsync

    def full(handle: int) -> None:  # the disk fills up while the second is written
        if len(list(tmp_path.glob(".*.tmp"))) > 1:
            raise OSError(28, "No space left on device")
        flush(handle)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(RunError, match="b: cannot be written"):
            write_together({first: "new", second: "new"})
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"a": "old", "b": "old"}
    write_together({first: "new", second: "new"})
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"a": "new", "b": "new"}


def test_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "old")

    def fail(_: object) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(RunError, match="No space left on device"):
        write_atomic(path, fail)
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["a.txt"]
