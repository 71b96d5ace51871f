"""`cdn-tune predict` and `export`, and their pages."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from typer.testing import CliRunner

from cdn_tune.cli import app
from cdn_tune.config import Experiment
from cdn_tune.data.charades import LAYOUT
from cdn_tune.training.runs.checkpoint import BEST, build_model, save_checkpoint
from cdn_tune.training.runs.run_folder import claim, locked

ROOT = Path(__file__).resolve().parents[2]
PAGES = ROOT / "docs" / "how-to"
SENTENCE = "a person opens the door"


def make_run(folder: Path, experiment: Experiment, planted: bool = True) -> Path:
    """A train run whose best checkpoint is an untrained model's."""
    with locked(folder):
        claim(folder, {"kind": "train"}, {"experiment.yaml": experiment.plain()})
    state = build_model(experiment).state_dict()
    content = {"model": state, "epoch": 1, "val": {"R1@0.5": 0.5}, "planted": planted}
    save_checkpoint(folder / BEST, experiment, content)
    return folder


@pytest.fixture
def run(tiny: Callable[..., Experiment], tmp_path: Path) -> Path:
    return make_run(tmp_path / "run", tiny())


@pytest.fixture
def features(planted: Path) -> Path:
    return planted / "vgg_rgb_features.hdf5"


def invoke(*arguments: Any) -> Any:
    return CliRunner().invoke(app, list(map(str, arguments)))


def ask(*arguments: Any) -> Any:
    result = invoke("predict", *arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_table(run: Path, features: Path, planted: Path) -> None:
    video = LAYOUT.load(planted, "test").annotations[0]
    result = invoke("predict", run, "--features", features, "--video", video.video, "--query", "a [b] :tada: door")
    assert result.exit_code == 0, result.output
    assert f"{video.video}: {video.duration:.2f} s (from the annotations in" in result.stdout
    assert "a [b] :tada: door\n" in result.stdout
    assert "planted data" in result.stdout
    ranks = re.findall(r"^ +(\d) +([\d.]+) s +([\d.]+) s +(0\.\d{4})", result.stdout, flags=re.MULTILINE)
    assert [int(rank) for rank, *_ in ranks] == [1, 2, 3, 4, 5]


def test_json_queries_and_a_file_of_them(run: Path, features: Path, tmp_path: Path) -> None:
    (tmp_path / "queries.txt").write_text("a man opens the zyxwv\n\n  a woman sits down  \n")
    found = ask(
        run, "--features", features, "--video", "P0001", "--duration", 30, "--query", SENTENCE,
        "--queries", tmp_path / "queries.txt", "--top", 2,
    )  # fmt: skip
    assert [entry["query"] for entry in found["queries"]] == [SENTENCE, "a man opens the zyxwv", "a woman sits down"]
    assert found["queries"][1]["unknown_words"] == ["zyxwv"]
    assert {key: found[key] for key in ("schema", "planted", "video", "duration", "windows")} == {
        "schema": 1,
        "planted": True,
        "video": "P0001",
        "duration": 30.0,
        "windows": [[0.0, 30.0]],
    }
    for entry in found["queries"]:
        assert len(entry["moments"]) == 2
        assert all(0 <= item["start"] < item["end"] <= 30.001 for item in entry["moments"])


def test_the_only_video_needs_no_name_and_frames_tell_the_length(run: Path, tmp_path: Path) -> None:
    frames = np.random.default_rng(0).normal(size=(50, 16)).astype(np.float32)
    np.save(tmp_path / "clip.npy", frames)
    with h5py.File(tmp_path / "one.hdf5", "w") as file:
        file["group/features"] = frames  # a group per video, as some feature files have
    one = ask(run, "--features", tmp_path / "one.hdf5", "--frame-rate", 2, "--query", SENTENCE)
    other = ask(run, "--features", tmp_path / "clip.npy", "--duration", 25, "--query", SENTENCE)
    assert (one["video"], other["video"], one["duration"]) == ("group", "clip", 25.0)
    assert one["queries"] == other["queries"]


def test_windows(run: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "clip.npy", np.random.default_rng(0).normal(size=(100, 16)))
    more = ("--features", tmp_path / "clip.npy", "--duration", 100, "--query", SENTENCE)
    assert ask(run, *more, "--window", 40)["windows"] == [[0, 40], [20, 60], [40, 80], [60, 100]]
    assert ask(run, *more, "--window", 50, "--stride", 50)["windows"] == [[0, 50], [50, 100]]
    assert "4 windows of 40.0 s; a clip is 5.00 s" in invoke("predict", run, *more, "--window", 40).stdout


def test_planted_features_for_another_model_are_told(
    tiny: Callable[..., Experiment], features: Path, tmp_path: Path
) -> None:
    run = make_run(tmp_path / "real", tiny(), planted=False)
    more = ("--features", features, "--video", "P0001", "--query", SENTENCE)
    assert "features of planted data, but the model was not trained on such" in invoke("predict", run, *more).stderr


GOOD = ("--duration", "9", "--query", SENTENCE)
BAD: dict[str, tuple[tuple[str, ...], str]] = {
    "no query": (("--features", "F", "--video", "P0001", "--duration", "9"), "no query: give --query"),
    "empty query": (("--features", "F", "--query", SENTENCE, "--query", " "), "--query number 2 is empty"),
    "empty file": (("--features", "F", "--queries", "EMPTY"), "the file is empty"),
    "no file of queries": (("--features", "F", "--queries", "nowhere.txt"), "nowhere.txt: no such file"),
    "no features": (("--features", "nowhere.npy", *GOOD), "nowhere.npy: no such feature file"),
    "several videos": (("--features", "F", *GOOD), "holds 24 videos (P0000, P0001, P0002 and 21 more); name one"),
    "no such video": (("--features", "F", "--video", "X", *GOOD), "has no video 'X'; it has P0000"),
    "no HDF5": (("--features", "EMPTY", *GOOD), "the feature file is empty"),
    "no npy": (("--features", "BROKEN.npy", *GOOD), "cannot be read as .npy"),
    "pickled npy": (("--features", "OBJECT.npy", *GOOD), "cannot be read as .npy"),
    "other size": (("--features", "SMALL.npy", *GOOD), "features of size 3, but this model was trained on size 16"),
    "NaN": (("--features", "NAN.npy", *GOOD), "value nan in row 1, column 2"),
    "no length": (("--features", "OK.npy", "--query", SENTENCE), "give --duration or --frame-rate"),
    "two lengths": (("--features", "OK.npy", "--frame-rate", "1", *GOOD), "give one of them"),
    "length 0": (("--features", "OK.npy", "--duration", "0", "--query", SENTENCE), "duration=0.0: must be"),
    "rate 0": (("--features", "OK.npy", "--frame-rate", "0", "--query", SENTENCE), "--frame-rate 0: must be"),
    "window": (("--features", "OK.npy", "--window", "-1", *GOOD), "window=-1 s must be"),
    "unknown words": (("--features", "OK.npy", "--duration", "9", "--query", "zyxwv"), "none of its words"),
    "threshold": (("--features", "OK.npy", "--nms-threshold", "7", *GOOD), "nms_threshold=7.0"),
    "word vectors": (("--features", "OK.npy", "--word-vectors", "nowhere.txt", *GOOD), "no such word vectors"),
}


@pytest.mark.parametrize(("arguments", "message"), BAD.values(), ids=BAD)
def test_bad_input_is_one_line_and_exit_code_2(
    run: Path,
    features: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("EMPTY").touch()
    Path("BROKEN.npy").write_bytes(b"x")
    np.save("OK.npy", np.ones((9, 16)))
    np.save("SMALL.npy", np.ones((9, 3)))
    np.save("OBJECT.npy", np.array([{}]), allow_pickle=True)
    spoiled = np.ones((9, 16))
    spoiled[1, 2] = np.nan
    np.save("NAN.npy", spoiled)
    result = invoke("predict", run, *(str(features) if word == "F" else word for word in arguments))
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    assert message in line


def test_bad_runs_are_one_line(tmp_path: Path) -> None:
    for arguments in (
        ("predict", tmp_path / "x", "--features", "f.npy", *GOOD),
        ("export", tmp_path / "x", "--out", "y"),
    ):
        result = invoke(*arguments)
        assert result.exit_code == 2
        (line,) = result.stderr.splitlines()
        assert "no such run" in line


def test_export_and_what_it_refuses(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "models" / "tiny"
    result = invoke("export", run, "--out", folder)
    assert result.exit_code == 0, result.output
    assert f"{folder / 'model.safetensors'}" in result.stdout
    np.save(tmp_path / "clip.npy", np.random.default_rng(0).normal(size=(30, 16)))
    more = ("--features", tmp_path / "clip.npy", "--duration", 9, "--query", SENTENCE)
    assert ask(folder, *more)["queries"] == ask(run, *more)["queries"]
    before = (folder / "README.md").read_bytes()
    result = invoke("export", run, "--out", folder)
    assert result.exit_code == 2
    assert "exists and is not empty" in result.stderr
    assert (folder / "README.md").read_bytes() == before
    assert invoke("export", run, "--out", tmp_path / "z", "model.hidden=3").exit_code == 2


def test_an_export_takes_no_length_from_what_lies_nearby(
    run: Path, features: Path, planted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its experiment names a data folder without saying where; one of that name may be here by chance."""
    assert invoke("export", run, "--out", tmp_path / "out").exit_code == 0
    monkeypatch.chdir(planted.parent)
    result = invoke("predict", tmp_path / "out", "--features", features, "--video", "P0001", "--query", SENTENCE)
    assert result.exit_code == 2
    assert "give --duration" in result.stderr


def test_the_page_names_every_option() -> None:
    for command in ("predict", "export"):
        section = (PAGES / f"{command}.md").read_text("utf-8")
        options = set(re.findall(r"--[a-z][a-z-]+", invoke(command, "--help").stdout)) - {"--help", "--out"}
        assert options
        assert not [option for option in options if option not in section]
