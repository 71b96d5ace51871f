"""`cdn-tune predict --video FILE`: features made as the run's were; clips and contact sheets of the answers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from cdn_tune.cli import app
from cdn_tune.config import Experiment
from cdn_tune.data.fingerprint import PLANTED_MARKER, fingerprint
from cdn_tune.data.mark import DRAWN
from cdn_tune.data.videos.making import Making, write_making
from cdn_tune.training.runs.checkpoint import BEST, build_model, save_checkpoint
from cdn_tune.training.runs.run_folder import claim, locked
from tests.data.videos.clips import write_video

av = pytest.importorskip("av")

SENTENCE = "a person opens the door"
MAKING = Making("tiny_net", "0123456789abcdef", 2.0, 1, 0.0, 32, {"cdn_tune": "1"})
SIZE = 16  # of the features that the tiny experiment has


def make_run(folder: Path, experiment: Experiment, facts: dict[str, Any]) -> Path:
    with locked(folder):
        claim(folder, {"kind": "train", "data": facts}, {"experiment.yaml": experiment.plain()})
    content = {"model": build_model(experiment).state_dict(), "epoch": 1, "val": {"R1@0.5": 0.5}, "planted": False}
    save_checkpoint(folder / BEST, experiment, content)
    return folder


@pytest.fixture
def data(planted: Path, tmp_path: Path) -> Path:
    """A data folder whose feature file tells how its features were made."""
    folder = tmp_path / "data"
    shutil.copytree(planted, folder, ignore=shutil.ignore_patterns(".*", "planted.json"))
    with h5py.File(folder / "vgg_rgb_features.hdf5", "r+") as file:
        write_making(file, MAKING)
    return folder


@pytest.fixture
def run(tiny: Callable[..., Experiment], data: Path, tmp_path: Path) -> Path:
    experiment = tiny(**{"data.root": str(data)})
    return make_run(tmp_path / "run", experiment, fingerprint(experiment.data))


@pytest.fixture
def video(tmp_path: Path) -> Path:
    return write_video(tmp_path / "Küche.mp4", [at / 5 for at in range(41)])


@pytest.fixture
def extracted(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """What `extract_features`, which here gives random rows, was called with."""
    calls: list[tuple[Any, ...]] = []

    def extract_features(*arguments: Any) -> np.ndarray:
        calls.append(arguments)
        return np.random.default_rng(0).normal(size=(16, SIZE)).astype(np.float32)

    monkeypatch.setattr("cdn_tune.data.videos.extract.extract_features", extract_features)
    return calls


def invoke(*arguments: Any) -> Any:
    return CliRunner().invoke(app, ["predict", *map(str, arguments)])


def ask(*arguments: Any) -> Any:
    result = invoke(*arguments, "--query", SENTENCE, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_features_are_made_as_those_of_the_run(run: Path, data: Path, video: Path, extracted: list[Any]) -> None:
    (data / "vgg_rgb_features.hdf5").unlink()  # the run's manifest tells
    found = ask(run, "--video", video, "--weights", "net.pt")
    ((path, making, weights, device),) = extracted
    assert (path, making, weights, device.type) == (video, MAKING, Path("net.pt"), "cpu")
    assert found["video"] == "Küche"
    assert found["features"] == f"extracted by {MAKING}"
    assert found["duration"] == pytest.approx(8.0, abs=0.1)
    assert all(0 <= moment["start"] < moment["end"] <= 8.1 for moment in found["queries"][0]["moments"])


def test_the_feature_file_tells_where_the_run_does_not(
    tiny: Callable[..., Experiment], data: Path, video: Path, tmp_path: Path, extracted: list[Any]
) -> None:
    experiment = tiny(**{"data.root": str(data)})
    facts = {key: value for key, value in fingerprint(experiment.data).items() if key != "making"}
    run = make_run(tmp_path / "old", experiment, facts)
    table = invoke(run, "--video", video, "--query", SENTENCE)
    assert f"features: extracted by {MAKING}\n" in table.stdout, table.output
    assert f"({'from'} {video})" in table.stdout.replace("\n", "")
    assert extracted[0][1] == MAKING


@pytest.mark.parametrize("recorded", [True, False])
def test_a_feature_file_that_is_not_known_to_be_the_runs_tells_nothing(
    tiny: Callable[..., Experiment], planted: Path, data: Path, video: Path, extracted: list[Any], recorded: bool
) -> None:
    """It came to the run's path later, or the run did not record its own."""
    experiment = tiny(**{"data.root": str(data)})
    then = fingerprint(experiment.data.model_copy(update={"root": planted})) if recorded else {}
    result = invoke(make_run(data.parent / "old", experiment, then), "--video", video, "--query", SENTENCE)
    assert result.exit_code == 2
    assert "nothing says how the features were made" in result.stderr
    assert not extracted


def test_a_drawn_video_is_told_from_a_real_one(run: Path, video: Path, extracted: list[Any]) -> None:
    asked = (run, "--video", video, "--query", SENTENCE)
    assert "drawn videos" not in invoke(*asked).stderr
    (video.parent / PLANTED_MARKER).write_text(json.dumps({"planted": DRAWN}))
    assert "features of drawn videos, but the model was not trained on such" in invoke(*asked).stderr


def test_an_export_carries_how_features_were_made(
    run: Path, data: Path, video: Path, tmp_path: Path, extracted: list[Any]
) -> None:
    result = CliRunner().invoke(app, ["export", str(run), "--out", str(tmp_path / "model")])
    assert result.exit_code == 0, result.output
    shutil.rmtree(data)
    assert ask(tmp_path / "model", "--video", video)["queries"]
    assert extracted[0][1] == MAKING


def test_given_features_are_taken_and_the_video_tells_the_length(
    run: Path, video: Path, tmp_path: Path, extracted: list[Any]
) -> None:
    with h5py.File(tmp_path / "own.hdf5", "w") as file:
        for name in ("Küche", "other"):
            file[name] = np.random.default_rng(len(name)).normal(size=(20, SIZE))
    np.save(tmp_path / "one.npy", np.random.default_rng(5).normal(size=(20, SIZE)))
    by_name = ask(run, "--features", tmp_path / "own.hdf5", "--video", video)
    array = ask(run, "--features", tmp_path / "one.npy", "--video", video)
    assert (by_name["video"], array["video"]) == ("Küche", "one")
    assert by_name["queries"] == array["queries"]
    assert by_name["duration"] == array["duration"] == pytest.approx(8.0, abs=0.1)
    assert not extracted


def test_a_name_is_a_video_of_the_runs_data(run: Path, data: Path) -> None:
    found = ask(run, "--video", "P0001")
    assert found["features"] == str(data / "vgg_rgb_features.hdf5")
    assert found["queries"] == ask(run, "--features", data / "vgg_rgb_features.hdf5", "--video", "P0001")["queries"]


def test_clips_and_a_contact_sheet(run: Path, video: Path, tmp_path: Path, extracted: list[Any]) -> None:
    folder, sheet = tmp_path / "my clips" / "é", tmp_path / "sheet.png"
    found = ask(run, "--video", video, "--query", "a man opens a box", "--top", 2, "--cut", folder, "--sheet", sheet)
    assert found["sheet"] == str(sheet)
    named = [Path(moment["clip"]) for answers in found["queries"] for moment in answers["moments"]]
    assert sorted(named) == sorted(folder.iterdir())
    assert [path.name.split("-")[1:3] for path in named[:2]] == [["q1", "1"], ["q1", "2"]]
    moments = [moment for answers in found["queries"] for moment in answers["moments"]]
    for moment, path in zip(moments, named, strict=True):
        with av.open(str(path)) as clip:
            assert (clip.duration or 0) / 1e6 == pytest.approx(moment["end"] - moment["start"], abs=0.3)
    with Image.open(sheet) as image:
        assert image.width > 1000
    again = invoke(run, "--video", video, "--query", SENTENCE, "--top", 1, "--cut", folder, "--sheet", sheet)
    assert again.exit_code == 0, again.output
    wrote = [line for line in again.stdout.splitlines() if line.startswith("wrote ")]
    assert wrote[0].startswith(f"wrote {folder}/Küche-1-")
    assert wrote[1:] == [f"wrote {sheet}"]


def test_a_clip_that_cannot_be_written_is_told_and_the_rest_goes_on(
    run: Path, video: Path, tmp_path: Path, extracted: list[Any]
) -> None:
    more = (run, "--video", video, "--top", 2, "--cut", tmp_path / "clips")
    first, second = (Path(moment["clip"]) for moment in ask(*more)["queries"][0]["moments"])
    first.write_text("mine")
    second.unlink()
    result = invoke(*more, "--query", SENTENCE, "--json")
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"error: {first}: exists and was not cut by cdn-tune")
    assert [moment["clip"] for moment in json.loads(result.stdout)["queries"][0]["moments"]] == [None, str(second)]
    assert (first.read_text(), second.is_file()) == ("mine", True)


BAD: dict[str, tuple[tuple[str, ...], str]] = {
    "nothing": ((), "no video: give --video FILE"),
    "no such file": (("--video", "./gone.mp4"), "gone.mp4: no such file"),
    "no such name": (("--video", "gone.mp4"), "--video gone.mp4: no such file, nor has "),
    "a file and a name": (("--video", "P0001"), "is a file here, and a video of the run's features; write ./P0001"),
    "URL": (("--video", "https://example.com/a.mp4"), "is no file of an object store"),
    "text": (("--video", "text.mp4"), "cannot be opened as a video"),
    "playlist": (("--video", "list.m3u8"), "cannot be opened as a video"),
    "still image": (("--video", "still.png"), "cannot be opened as a video"),
    "sound alone": (("--video", "sound.mp4"), "has no video stream"),
    "truncated": (("--video", "half.mp4"), "cannot be opened as a video"),
    "not in the features": (("--features", "F", "--video", "./OK.mp4"), "has no video 'OK'"),
    "cut without the video": (("--video", "P0002", "--cut", "clips"), "--cut: needs the video itself"),
    "sheet without the video": (("--video", "P0002", "--sheet", "s.png"), "--sheet: needs the video itself"),
    "cut to a file": (("--video", "OK.mp4", "--cut", "text.mp4"), "--cut text.mp4: is a file"),
    "sheet of another kind": (("--video", "OK.mp4", "--sheet", "s.jpg"), "--sheet s.jpg: is written as PNG"),
    "weights of made features": (("--video", "P0002", "--weights", "w.pt"), "--weights w.pt: has no meaning"),
}


@pytest.mark.parametrize(("arguments", "message"), BAD.values(), ids=BAD)
def test_bad_input_is_one_line_and_exit_code_2(
    run: Path,
    data: Path,
    video: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    extracted: list[Any],
    arguments: tuple[str, ...],
    message: str,
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    shutil.copy(video, "OK.mp4")
    Path("half.mp4").write_bytes(video.read_bytes()[:2000])
    if message.startswith("is a file here"):
        shutil.copy(video, "P0001")
    Path("text.mp4").write_text("text " * 100)
    Path("list.m3u8").write_text("#EXTM3U\n#EXTINF:10,\nhttps://example.com/a.ts\n#EXT-X-ENDLIST\n")
    Image.new("RGB", (64, 48)).save("still.png")
    with av.open("sound.mp4", "w") as container:
        stream = container.add_stream("aac", rate=8000, layout="mono")
        heard = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.float32), "fltp", "mono")
        heard.sample_rate, heard.pts = 8000, 0
        container.mux([*stream.encode(heard), *stream.encode(None)])
    features = str(data / "vgg_rgb_features.hdf5")
    result = invoke(run, *(features if word == "F" else word for word in arguments), "--query", SENTENCE)
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    assert message in line
    assert not extracted or "needs the video" in message


def test_features_of_unknown_making_are_not_guessed(
    tiny: Callable[..., Experiment], video: Path, tmp_path: Path, extracted: list[Any]
) -> None:
    run = make_run(tmp_path / "plain", tiny(), {})
    result = invoke(run, "--video", video, "--query", SENTENCE)
    assert result.exit_code == 2
    assert "nothing says how the features were made" in result.stderr
    assert "give the video's as --features FILE" in result.stderr
    assert not extracted


def test_features_of_another_size_are_refused(
    run: Path, video: Path, monkeypatch: pytest.MonkeyPatch, extracted: list[Any]
) -> None:
    monkeypatch.setattr("cdn_tune.data.videos.extract.extract_features", lambda *_: np.ones((9, 3), np.float32))
    result = invoke(run, "--video", video, "--query", SENTENCE)
    assert result.exit_code == 2
    assert "features of size 3, but this model was trained on size 16" in result.stderr


def test_given_features_of_another_making_are_refused(run: Path, data: Path, tmp_path: Path) -> None:
    other = shutil.copy(data / "vgg_rgb_features.hdf5", tmp_path / "other.hdf5")
    asked = ("--features", other, "--video", "P0001")
    assert ask(run, *asked)["queries"]
    with h5py.File(other, "r+") as file:
        write_making(file["P0001"], replace(MAKING, fps=7.0))  # what a video says goes before the file
    result = invoke(run, *asked, "--query", SENTENCE)
    assert result.exit_code == 2
    assert "was made otherwise than the features that this model was trained on (fps" in result.stderr


def test_a_damaged_record_of_the_making_is_one_line(run: Path, video: Path, extracted: list[Any]) -> None:
    manifest = json.loads((run / "manifest.json").read_text())
    manifest["data"]["making"] = {"backbone": 7}
    (run / "manifest.json").write_text(json.dumps(manifest))
    result = invoke(run, "--video", video, "--query", SENTENCE)
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert "manifest.json: is not a cdn-tune manifest" in line
    assert "it does not name backbone" in line
