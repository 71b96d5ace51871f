from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from cdn_tune.data.convert import FORMS, convert
from cdn_tune.data.features import FeatureStore
from cdn_tune.errors import DataError

SIZES = {"AAAA1": 11, "BBBB2": 3, "CCCC3": 1}


@pytest.fixture
def rows() -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    return {video: random.standard_normal((count, 5), dtype=np.float32) for video, count in SIZES.items()}


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out" / "features.hdf5"


def write(source: Path, form: str, rows: dict[str, np.ndarray]) -> Path:
    """Writes raw features in a form."""
    source.mkdir(exist_ok=True)
    for number, (video, values) in enumerate(rows.items()):
        if form == "charades_vgg":
            (source / video).mkdir()
            for row, vector in enumerate(values, start=1):  # 10 sorts before 2 by letters
                text = "\n".join(repr(float(value)) for value in vector)
                (source / video / f"{video}-{row}.txt").write_text(text)
        elif form == "tacos_c3d":
            for row, vector in enumerate(values):
                np.save(source / f"{video}.avi_{row * 64 + 1}_{row * 64 + 65}.npy", vector[None] if row % 2 else vector)
        elif number == 0:
            np.save(source / f"{video}.npy", values)
        elif number == 1:
            np.savez(source / f"{video}.npz", features=values)
        else:
            torch.save(torch.from_numpy(values), source / f"{video}.pt")
    return source


@pytest.mark.parametrize("form", [form for form in FORMS if FORMS[form].files])
def test_every_form_is_converted_in_order(form: str, rows: dict[str, np.ndarray], tmp_path: Path, out: Path) -> None:
    seen: list[tuple[int, int]] = []
    result = convert(write(tmp_path / "raw", form, rows), out, form, 1, lambda *counts: seen.append(counts))
    assert (result.videos, result.resumed, result.size) == (3, 0, 5)
    assert seen == [(0, 3), (1, 3), (2, 3), (3, 3)]
    end = ".avi" if form == "tacos_c3d" else ""
    with h5py.File(out) as file:
        assert {video: file[video][()].tobytes() for video in file} == {
            f"{video}{end}": values.tobytes() for video, values in rows.items()
        }
    assert [path.name for path in out.parent.iterdir()] == [out.name]
    assert FeatureStore(out, 4, 5).clips(f"AAAA1{end}").shape == (4, 5)


def test_processes_write_the_same(rows: dict[str, np.ndarray], tmp_path: Path, out: Path) -> None:
    source = write(tmp_path / "raw", "arrays", rows)
    convert(source, out, "arrays", 1)
    convert(source, out.with_name("other.hdf5"), "arrays", 2)
    assert out.read_bytes() == out.with_name("other.hdf5").read_bytes()


def test_it_goes_on_where_it_was_killed(rows: dict[str, np.ndarray], tmp_path: Path, out: Path) -> None:
    source = write(tmp_path / "raw", "arrays", rows)
    script = (
        "import sys, time\nfrom pathlib import Path\nfrom cdn_tune.data.convert import convert\n"
        "def stop(done, total):\n    if done == 2:\n        print('two', flush=True)\n        time.sleep(60)\n"
        "convert(Path(sys.argv[1]), Path(sys.argv[2]), 'arrays', 1, stop)"
    )
    process = subprocess.Popen([sys.executable, "-c", script, source, out], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "two\n"
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not out.exists()
    np.save(source / "AAAA1.npy", rows["AAAA1"] + 1)  # changed meanwhile: read again
    result = convert(source, out, "arrays", 1)
    assert (result.videos, result.resumed) == (3, 1)
    with h5py.File(out) as file:
        assert np.array_equal(file["AAAA1"][()], rows["AAAA1"] + 1)


@pytest.mark.parametrize(
    ("name", "content", "part"),
    [
        ("DDDD.npy", b"", "cannot be read"),
        ("DDDD.npy", b"no array", "cannot be read"),
        ("DDDD.npz", b"no archive", "cannot be read"),
        ("DDDD.pt", b"no tensor", "cannot be read"),
        ("DDDD.npy", np.zeros((0, 5)), "has shape [0, 5]"),
        ("DDDD.npy", np.zeros((2, 2, 5)), "has shape [2, 2, 5]"),
        ("DDDD.npy", np.array([["a"]]), "expected floats"),
        ("DDDD.npy", np.full((2, 5), np.nan), "a value in row 0 is not finite"),
        ("DDDD.npy", np.zeros((2, 6)), "vectors of size 6, the others of 5"),
        ("AAAA1.npz", b"", "video 'AAAA1' also has AAAA1.npy"),
    ],
)
def test_what_cannot_be_used_is_named_and_nothing_appears(
    rows: dict[str, np.ndarray], tmp_path: Path, out: Path, name: str, content: bytes | np.ndarray, part: str
) -> None:
    source = write(tmp_path / "raw", "arrays", rows)
    if isinstance(content, bytes):
        (source / name).write_bytes(content)
    else:
        np.save(source / name, content)
    with pytest.raises(DataError) as error:
        convert(source, out, "arrays", 1)
    assert part in str(error.value)
    assert name.partition(".")[0] in str(error.value)
    assert not out.exists()


def test_text_that_is_no_vector_is_named(rows: dict[str, np.ndarray], tmp_path: Path, out: Path) -> None:
    source = write(tmp_path / "raw", "charades_vgg", rows)
    (source / "BBBB2" / "BBBB2-2.txt").write_text("0.5 x 1.5 2 3")
    with pytest.raises(DataError, match=r"BBBB2-2\.txt: cannot be read"):
        convert(source, out, "charades_vgg", 1)
    (source / "BBBB2" / "BBBB2-2.txt").write_text("0.5 1.5")
    with pytest.raises(DataError, match=r"BBBB2-2\.txt: has vectors of size 2, BBBB2-1\.txt of 5"):
        convert(source, out, "charades_vgg", 1)


def test_arguments_are_checked(rows: dict[str, np.ndarray], tmp_path: Path, out: Path) -> None:
    source = write(tmp_path / "raw", "arrays", rows)
    for arguments, part in (
        ((source, out, "mp4"), "form 'mp4' is unknown"),
        ((tmp_path / "absent", out, "arrays"), "no such folder"),
        ((source, out, "charades_vgg"), "no features of the form charades_vgg"),
        ((source, source / "AAAA1.npy", "arrays"), "exists already"),
    ):
        with pytest.raises(DataError, match=part):
            convert(*arguments)
    (tmp_path / "charades" / "EMPTY").mkdir(parents=True)
    with pytest.raises(DataError, match=r"EMPTY: no feature files"):
        convert(tmp_path / "charades", out, "charades_vgg")
    assert not out.parent.exists()


def test_a_damaged_file_is_never_named(
    rows: dict[str, np.ndarray], tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write(tmp_path / "raw", "arrays", rows)
    monkeypatch.setattr(np, "array_equal", lambda *_: False)
    with pytest.raises(DataError, match="reads back otherwise"):
        convert(source, out, "arrays", 1)
    assert not out.exists()
