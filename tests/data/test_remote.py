"""Features in an object store: the same clips as from a local file, read once per node, and errors that say where."""

import importlib.util
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
import torch

from cdn_tune.config import DataConfig
from cdn_tune.data.dataset import MomentDataset, load_splits
from cdn_tune.data.fingerprint import fingerprint
from cdn_tune.errors import DataError

URL = "memory://bucket/features.hdf5"


@pytest.fixture
def store(planted: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[str]:
    """The planted features in an object store that lives in this process's memory, and a cache of its own."""
    monkeypatch.setenv("CDN_TUNE_CACHE", str(tmp_path / "cache"))
    files = fsspec.filesystem("memory")
    files.makedirs("/bucket", exist_ok=True)
    files.pipe("/bucket/features.hdf5", (planted / "vgg_rgb_features.hdf5").read_bytes())
    yield URL
    files.rm("/bucket", recursive=True)


def config(planted: Path, features: str | None) -> DataConfig:
    return DataConfig(
        dataset="charades_sta",
        root=str(planted),
        features=features,
        feature_size=16,
        frames=16,
        word_vectors="glove.planted.12d.txt",
        word_size=12,
    )


def train(settings: DataConfig) -> MomentDataset:
    return load_splits(settings, ("train",))["train"]


def test_clips_are_those_of_the_local_file(planted: Path, store: str) -> None:
    remote, local = train(config(planted, store)), train(config(planted, None))
    indices = range(0, len(local), 3)
    torch.testing.assert_close(remote.batch(indices).visual, local.batch(indices).visual, rtol=0, atol=0)


def test_the_source_is_read_once(planted: Path, store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    first = train(config(planted, store)).batch([0, 1]).visual
    monkeypatch.setattr("cdn_tune.data.features.FeatureStore._read", None)  # nothing may be read from now on
    monkeypatch.setattr("cdn_tune.data.features.FeatureStore.require", lambda *_: None)
    assert torch.equal(train(config(planted, store)).batch([0, 1]).visual, first)


def test_the_fingerprint_knows_it(planted: Path, store: str) -> None:
    facts = fingerprint(config(planted, store))
    assert facts["files"]["features"]["name"] == "features.hdf5"
    assert facts["planted"]


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("memory://bucket/other.hdf5", r"data\.features=memory://bucket/other\.hdf5: no such file there"),
        ("nosuch://bucket/x.hdf5", r"data\.features=nosuch://bucket/x\.hdf5: cannot be reached \(.*nosuch"),
        ("s3://bucket/x.hdf5", r"cannot be reached \(Install s3fs to access S3\)"),
    ],
)
def test_what_cannot_be_had_is_named(planted: Path, store: str, url: str, told: str) -> None:
    assert store
    if url.startswith("s3") and importlib.util.find_spec("s3fs"):
        pytest.skip("s3fs is installed, so it would ask a server")
    with pytest.raises(DataError, match=told):
        train(config(planted, url))


def test_a_remote_file_that_is_no_hdf5_is_named(planted: Path, store: str) -> None:
    fsspec.filesystem("memory").pipe("/bucket/features.hdf5", b"<html>403 Forbidden</html>")
    with pytest.raises(DataError, match=r"memory://.*features\.hdf5: cannot be opened as HDF5"):
        train(config(planted, store))
