from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from cdn_tune.data.convert import convert
from cdn_tune.data.doctor import examine
from cdn_tune.data.features import FeatureStore
from cdn_tune.data.frames import read_frames
from cdn_tune.data.hdf5 import EXTERNAL, open_features
from cdn_tune.errors import DataError

from .conftest import Small

HUGE = (10**12, 4)
FEATURES = "vgg_rgb_features.hdf5"


def other_file(file: Any) -> Path:
    path = Path(file.filename).with_name("other.hdf5")
    with h5py.File(path, "w") as other:
        other["v"] = np.ones((5, 4), np.float32)
    return path


def external_link(file: Any) -> None:
    file["AAAA1"] = h5py.ExternalLink(str(other_file(file)), "v")


def link_through_another(file: Any) -> None:
    file["door"] = h5py.ExternalLink(str(other_file(file)), "/")
    file["AAAA1"] = h5py.SoftLink("/door/v")


def fifo(file: Any) -> None:
    os.mkfifo(path := Path(file.filename).with_name("fifo"))
    file["AAAA1"] = h5py.ExternalLink(str(path), "v")


def external_storage(file: Any) -> None:
    raw = Path(file.filename).with_name("raw")
    raw.write_bytes(np.ones((5, 4), np.float32).tobytes())
    file.create_dataset("AAAA1", (5, 4), np.float32, external=[(str(raw), 0, h5py.h5f.UNLIMITED)])


def virtual(file: Any) -> None:
    layout = h5py.VirtualLayout((5, 4), np.float32)
    layout[:] = h5py.VirtualSource(str(other_file(file)), "v", (5, 4))
    file.create_virtual_dataset("AAAA1", layout)


def bomb(file: Any) -> None:
    options: dict[str, Any] = {"chunks": (1 << 22, 4), "compression": "gzip", "fillvalue": 0}
    dataset = file.create_dataset("AAAA1", (6 << 22, 4), np.float32, **options)
    with h5py.File("memory", "w", driver="core", backing_store=False) as memory:
        small = memory.create_dataset("a", (1 << 22, 4), np.float32, **options)
        small[:] = 0
        packed = small.id.read_direct_chunk((0, 0))[1]
    for first in range(0, 6 << 22, 1 << 22):
        dataset.id.write_direct_chunk((first, 0), packed)


HOSTILE: dict[str, tuple[Callable[[Any], object], str]] = {
    "declared without data": (lambda file: file.create_dataset("AAAA1", HUGE, np.float32), "14.6 TiB, but 0 bytes"),
    "chunks without data": (
        lambda file: file.create_dataset("AAAA1", HUGE, np.float32, chunks=(1000, 4)),
        "0 of its 1000000000 chunks are stored",
    ),
    "a chunk too large": (
        lambda file: file.create_dataset("AAAA1", (10, 4), np.float32, chunks=(1 << 26, 4), maxshape=(None, 4)),
        "in chunks of 1.0 GiB",
    ),
    "a bomb": (bomb, "do not compress so well"),
    "external link": (external_link, "is an external link to "),
    "link through another file": (link_through_another, "is an external link to "),
    "a FIFO": (fifo, "is an external link to "),
    "external storage": (external_storage, "is external storage in "),
    "virtual": (virtual, "is a virtual dataset"),
    "empty": (lambda file: file.create_dataset("AAAA1", data=h5py.Empty("f")), "empty HDF5 dataset without a shape"),
    "scalar": (lambda file: file.create_dataset("AAAA1", data=1.0), "has shape []"),
    "links in a circle": (lambda file: file.update({"AAAA1": h5py.SoftLink("/AAAA1")}), "leads to itself"),
    "a link to nothing": (lambda file: file.update({"AAAA1": h5py.SoftLink("/nothing")}), "leads nowhere"),
    "references": (lambda file: file.create_dataset("AAAA1", data=[[file.ref]], dtype=h5py.ref_dtype), "object values"),
    "a type": (lambda file: file.update({"AAAA1": np.dtype("f4")}), "is an HDF5 datatype"),
}
OTHER_FILES = ["external link", "link through another file", "external storage", "virtual"]


def harm(small: Small, fault: str) -> Path:
    path = small.root / FEATURES
    with h5py.File(path, "a", libver="latest" if fault == "virtual" else None) as file:
        del file["AAAA1"]
        HOSTILE[fault][0](file)
    return path


@pytest.mark.parametrize("fault", HOSTILE)
def test_a_hostile_dataset_is_refused_before_it_is_read_wherever_one_is_read(small: Small, fault: str) -> None:
    path = harm(small, fault)
    says = HOSTILE[fault][1]
    with pytest.raises(DataError, match="AAAA1") as error:
        FeatureStore(path, 8, 4).frames("AAAA1")
    assert says in str(error.value)
    with pytest.raises(DataError):
        read_frames(path, "AAAA1", feature_size=4)
    with pytest.raises(DataError):
        convert(path, small.root / "new.hdf5", "hdf5")
    errors = [finding for finding in examine(small.root).findings if finding.level == "error"]
    assert says in " ".join(finding.what + finding.remedy for finding in errors)


@pytest.mark.parametrize("fault", OTHER_FILES)
def test_other_files_are_read_on_purpose(small: Small, fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = harm(small, fault)
    with pytest.raises(DataError, match=f"set {EXTERNAL}=1"):
        FeatureStore(path, 8, 4).frames("AAAA1")
    monkeypatch.setenv(EXTERNAL, "1")
    assert (FeatureStore(path, 8, 4).frames("AAAA1") == 1).all()
    assert (read_frames(path, "AAAA1", feature_size=4).frames == 1).all()


def test_soft_links_compressed_data_and_unused_chunk_space_are_fine(small: Small) -> None:
    rows = np.ones((7, 4), np.float32)
    with h5py.File(small.root / FEATURES, "a") as file:
        file.create_group("in")["v"] = rows
        file["soft"] = h5py.SoftLink("in/v")
        file.create_dataset("packed", data=rows, chunks=(4, 4), compression="gzip")
        file.create_dataset("room", data=rows, chunks=(100, 4), maxshape=(None, 4))
    store = FeatureStore(small.root / FEATURES, 8, 4)
    assert all((store.frames(name) == rows).all() for name in ("soft", "packed", "room", "in/v"))


@pytest.mark.parametrize("shape", [(3, 5), (10**12, 4)])
def test_an_array_file_is_not_read_before_its_shape_is_known(tmp_path: Path, shape: tuple[int, int]) -> None:
    path = tmp_path / "a.npy"
    np.save(path, np.zeros((3, 5), np.float32))
    text = f"'shape': {shape}".ljust(40)
    path.write_bytes(
        path.read_bytes().replace(b"'shape': (3, 5), }".ljust(40), f"{text[:-1].rstrip()}, }}".ljust(40).encode())
    )
    with pytest.raises(DataError, match=r"of size 5|cannot be read as \.npy"):
        read_frames(path, feature_size=4)


def hold(path: Path, ready: Any, done: Any) -> None:
    with h5py.File(path, "a"):
        ready.set()
        done.wait(30)


def test_a_file_that_is_written_elsewhere_is_not_called_damaged(small: Small) -> None:
    spawn = multiprocessing.get_context("fork")
    ready, done = spawn.Event(), spawn.Event()
    writer = spawn.Process(target=hold, args=(small.root / FEATURES, ready, done))
    writer.start()
    try:
        assert ready.wait(30)
        with pytest.raises(DataError, match="is open for writing in another process; wait until"):
            open_features(small.root / FEATURES)
    finally:
        done.set()
        writer.join()
