"""Extraction: what is written, what stays, what is left out, and what a killed one leaves to the next."""

import os
import shutil
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from cdn_tune.cli import app
from cdn_tune.data.features import FeatureStore
from cdn_tune.data.videos import extract as module
from cdn_tune.data.videos import rows
from cdn_tune.data.videos.backbones import Backbone, Network, open_backbone
from cdn_tune.data.videos.extract import extract, extract_features
from cdn_tune.data.videos.making import makings_in, read_making
from cdn_tune.data.videos.rows import row_times
from cdn_tune.errors import ConfigError, DataError
from tests.data.videos.clips import sample, write_video

TIMES = [i / 10 for i in range(20)]


class Grey(torch.nn.Module):
    """The mean of each colour, of the middle frame of a window, scaled."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor(1.0))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        images = images[:, :, images.shape[2] // 2] if images.ndim == 5 else images
        return self.scale * images[..., -4:, -4:].mean((2, 3))


@pytest.fixture
def grey(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes ``timm/grey`` and ``torchvision/grey`` backbones whose features are the frames' grey in steps of 10."""

    def network(window: int | None) -> Network:
        return Network(Grey(), ("head.",), 48, 48, None, (0.0,) * 3, (10 / 255,) * 3, window, 1 / 15)

    def opened(name: str, weights: Path | None, device: object, window: int | None = None) -> Backbone:
        made = network(4 if name.startswith("torchvision") else None)
        if weights is not None:
            made.module.scale.data.fill_(float(weights.stem))  # type: ignore[operator, union-attr]
        return Backbone(name, made, torch.device("cpu"), window or made.window or 1, ())

    monkeypatch.setattr(module, "open_backbone", opened)


def numbers(out: Path, video: str) -> list[int]:
    """Returns the numbers of the frames whose features a file has."""
    with h5py.File(out) as file:
        return [round(float(row[0])) for row in file[video][()]]


@pytest.mark.usefixtures("grey")
def test_rows_are_of_the_frames_at_equal_distances_over_the_whole_video(tmp_path: Path) -> None:
    video = write_video(tmp_path / "a.mp4", [0.0, 0.1, 0.2, 1.0, 1.6])
    result = extract([video], tmp_path / "out.hdf5", "timm/grey", fps=5)
    assert (result.videos, result.computed, result.size, result.failed) == (1, 1, 3, ())
    # 1.601 s are 8 rows, at 0.1, 0.3, 0.5, ... seconds
    assert numbers(result.path, "a") == [1, 2, 2, 2, 2, 3, 3, 3]
    assert FeatureStore(result.path, 4, 3).clips("a").shape == (4, 3)
    assert read_making(result.path) == result.making


@pytest.mark.usefixtures("grey")
def test_a_window_lies_around_the_middle_of_its_row(tmp_path: Path) -> None:
    video = write_video(tmp_path / "a.mp4", TIMES)
    result = extract([video], tmp_path / "out.hdf5", "torchvision/grey", fps=2, window=3)
    assert numbers(result.path, "a") == [2, 7, 11, 16]
    assert (result.making.window, result.making.stride) == (3, 1 / 15)
    times = row_times(1.901, 2, 3, 1 / 15)
    assert times.shape == (4, 3)
    assert times[1].mean() == pytest.approx(1.901 * 1.5 / 4)


@pytest.mark.usefixtures("grey")
def test_what_is_there_stays_and_what_cannot_be_used_is_left_out(tmp_path: Path) -> None:
    first = write_video(tmp_path / "first.mp4", TIMES)
    out = tmp_path / "out.hdf5"
    extract([first], out, "timm/grey")
    with h5py.File(out) as file:
        before = file["first"][()]
    broken = tmp_path / "broken.mp4"
    broken.write_text("no video")
    same = write_video(tmp_path / "same.mp4", TIMES)
    other = write_video(tmp_path / "same.mkv", TIMES)
    second = write_video(tmp_path / "zweites Vidéo.mkv", TIMES)
    odd = second.rename(tmp_path / os.fsdecode(b"no \xff UTF-8.mkv"))
    shutil.copy(odd, second)
    result = extract([first, broken, odd, same, other, second], out, "timm/grey", workers=1)
    assert (result.videos, result.held, result.computed) == (2, 1, 1)
    assert [reason.split(": ")[0] for reason in result.failed] == [str(broken), str(odd), str(other), str(same)]
    with h5py.File(out) as file:
        assert sorted(file) == ["first", "zweites Vidéo"]
        np.testing.assert_array_equal(file["first"][()], before)
    assert list(makings_in(out).values()) == [["first", "zweites Vidéo"]]
    assert not list(tmp_path.glob(".*"))


@pytest.mark.usefixtures("grey")
def test_another_video_of_a_name_that_is_there_is_left_out(tmp_path: Path) -> None:
    video, out = write_video(tmp_path / "a.mp4", TIMES), tmp_path / "out.hdf5"
    extract([video], out, "timm/grey")
    write_video(video, TIMES[:12])
    result = extract([video], out, "timm/grey")
    assert (result.held, result.computed) == (1, 0)
    assert result.failed == (
        f"{video}: {out} has features of another video of this name; rename this one, or extract all to a new file",
    )
    with h5py.File(out, "a") as file:
        del file["a"].attrs["cdn_tune_video_bytes"]
    assert extract([video], out, "timm/grey").failed == ()


@pytest.mark.usefixtures("grey")
def test_features_of_another_making_are_not_mixed(tmp_path: Path) -> None:
    video = write_video(tmp_path / "a.mp4", TIMES)
    out = tmp_path / "out.hdf5"
    making = extract([video], out, "timm/grey", fps=2).making
    with pytest.raises(DataError, match=r"made otherwise \(fps 2.0 is 4.0 here\); name a new file"):
        extract([video], out, "timm/grey", fps=4)
    with pytest.raises(DataError, match=r"weights .* is .* here"):
        extract([video], out, "timm/grey", weights=tmp_path / "2.pth")
    with pytest.raises(DataError, match=r"weights .* is .* here"):
        extract_features(video, making, weights=tmp_path / "2.pth")
    with h5py.File(out) as file:
        np.testing.assert_array_equal(extract_features(video, making), file["a"][()])
    with h5py.File(tmp_path / "own.hdf5", "w") as file:
        file["b"] = np.ones((3, 3), np.float32)
    with pytest.raises(DataError, match="does not tell how"):
        extract([video], tmp_path / "own.hdf5", "timm/grey")


@pytest.mark.usefixtures("grey")
def test_what_an_interrupted_extraction_has_computed_is_not_computed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    videos = [write_video(tmp_path / f"{name}.mp4", TIMES) for name in "abc"]
    out = tmp_path / "out.hdf5"

    monkeypatch.setattr(rows, "FRAMES_AT_ONCE", 1)

    def interrupted(done: int, total: int) -> None:
        if done >= 0.6 * total:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        extract(videos, out, "timm/grey", workers=1, progress=interrupted)
    assert not out.exists()
    result = extract(videos, out, "timm/grey", workers=1)
    assert result.videos == 3
    assert 0 < result.computed < 3

    monkeypatch.setattr(module, "_keep", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    videos.append(write_video(tmp_path / "d.mp4", TIMES))
    with pytest.raises(DataError, match="No space left on device"):
        extract(videos, out, "timm/grey", workers=1)
    with h5py.File(out) as file:
        assert sorted(file) == ["a", "b", "c"]


@pytest.mark.usefixtures("grey")
def test_what_another_killed_extraction_has_computed_stays(tmp_path: Path) -> None:
    video, out = write_video(tmp_path / "a.mp4", TIMES), tmp_path / "out.hdf5"
    staging = tmp_path / ".out.hdf5.extracting"
    staging.mkdir()
    (staging / "another.npy").touch()
    extract([video], out, "timm/grey")
    assert sorted(path.name for path in staging.iterdir() if path.name != ".lock") == ["another.npy"]
    (staging / "another.npy").unlink()
    extract([video], out, "timm/grey")
    assert not staging.exists()


@pytest.mark.usefixtures("grey")
def test_the_command_writes_what_it_can_and_lists_the_rest(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", TIMES)
    (tmp_path / "b.mp4").write_text("no video")
    command = ["data", "extract", str(tmp_path), str(tmp_path / "out.hdf5"), "--backbone", "timm/grey"]
    result = CliRunner().invoke(app, [*command, "--workers", "1"])
    assert result.exit_code == 2
    assert "out.hdf5: 1 videos, size 3, 1 of them computed now, 0 there already" in result.stdout
    assert "made by timm/grey (weights " in result.stdout
    assert "error: 1 of 2 videos have no features" in result.stderr
    lost = [line for line in "".join(result.stderr.split("\n")).split("left out: ") if "b.mp4" in line]
    assert len(lost) == 1
    result = CliRunner().invoke(app, [*command, "--fps", "0"])
    assert (result.exit_code, "--fps 0: must be above 0" in result.stderr) == (2, True)


@pytest.mark.usefixtures("grey")
@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("s3://b/out.hdf5", "is a URL; name a file of this machine"),
        ("folder", "is a folder; name another OUT"),
        ("b.mp4", "is a video by its name; name another OUT"),
        ("text", "is there and no HDF5 file; name another OUT"),
    ],
)
def test_what_features_cannot_be_written_to_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, out: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "text").write_text("no features")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ConfigError, match=message):
        extract([write_video(tmp_path / "a.mp4", TIMES)], Path(out), "timm/grey")
    assert sorted(tmp_path.rglob("*")) == sorted([*before, tmp_path / "a.mp4"])


@pytest.mark.usefixtures("grey")
@pytest.mark.parametrize("device", ["meta", "mps", "cpu:7", "cuda:99", "disk"])
def test_a_device_that_is_not_there_is_one_line(tmp_path: Path, device: str) -> None:
    with pytest.raises(ConfigError, match=f"--device {device}: "):
        extract([tmp_path / "a.mp4"], tmp_path / "out.hdf5", "timm/grey", device=device)
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("grey")
def test_videos_that_are_not_there_are_listed_and_the_rest_is_written(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", TIMES)
    (tmp_path / "list.txt").write_text("a.mp4\nb.mp4\n")
    options = [str(tmp_path / "out.hdf5"), "--backbone", "timm/grey", "--workers", "1"]
    result = CliRunner().invoke(app, ["data", "extract", str(tmp_path / "list.txt"), "memory://none/c.mp4", *options])
    assert result.exit_code == 2
    assert numbers(tmp_path / "out.hdf5", "a") == [2, 7, 11, 16]
    said = " ".join(result.stderr.split())
    assert "memory://none/c.mp4: no such file there; correct the URL" in said
    assert "VIDEOS" not in said
    assert "no such file or folder; correct the path" in said
    assert "error: 2 of 3 videos have no features" in said
    result = CliRunner().invoke(app, ["data", "extract", "none.mp4", "memory://none/c.mp4", *options])
    assert (result.exit_code, result.stderr.count("no such file")) == (2, 1)


def test_efficientnet_lite0_and_its_weights(tmp_path: Path) -> None:
    out = tmp_path / "out.hdf5"
    result = extract([sample("carphone_pristine.mp4")], out, "efficientnet_lite0", fps=0.5)
    assert (result.videos, result.size) == (1, 1280)
    assert result.making.backbone == "efficientnet_lite0"
    assert {"av", "torch", "cdn-tune"} < set(result.making.versions)
    other = tmp_path / "other.pth"
    torch.save({"conv.weight": torch.zeros(3)}, other)
    with pytest.raises(DataError, match=r"other.pth: has weights of another network .*_conv_stem.weight is missing"):
        open_backbone("efficientnet_lite0", other)
    (tmp_path / "text.pth").write_text("no weights")
    with pytest.raises(DataError, match=r"text.pth: cannot be read as weights \(it is no file of tensors"):
        open_backbone("efficientnet_lite0", tmp_path / "text.pth")
    torch.save({"conv.weight": Fraction(1)}, tmp_path / "code.pth")
    with pytest.raises(DataError, match=r"code.pth: cannot be read as weights \(it would run code\)"):
        open_backbone("efficientnet_lite0", tmp_path / "code.pth")
    with pytest.raises(DataError, match="as the backbone takes no such window; extract them anew"):
        extract_features(tmp_path / "a.mp4", replace(result.making, window=4))
    with pytest.raises(ConfigError, match=r"--window 4: efficientnet_lite0 takes 1"):
        open_backbone("efficientnet_lite0", window=4)
    with pytest.raises(ConfigError, match="no such backbone; choose one of efficientnet_lite0, timm/MODEL"):
        open_backbone("vgg")
