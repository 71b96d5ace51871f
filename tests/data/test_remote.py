"""Features in an object store: the same clips as from a local file, read once per node, and errors that say where."""

from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
import torch

from cdn_tune.config import DataConfig
from cdn_tune.data.dataset import MomentDataset, load_splits
from cdn_tune.data.fingerprint import fingerprint
from cdn_tune.errors import DataError
from tests.object_store import BUCKET, DENIED, Store

URL = "memory://bucket/features.hdf5"


@pytest.fixture
def memory(planted: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[str]:
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


def test_clips_are_those_of_the_local_file(planted: Path, memory: str) -> None:
    remote, local = train(config(planted, memory)), train(config(planted, None))
    indices = range(0, len(local), 3)
    torch.testing.assert_close(remote.batch(indices).visual, local.batch(indices).visual, rtol=0, atol=0)


def test_the_source_is_read_once(planted: Path, memory: str, monkeypatch: pytest.MonkeyPatch) -> None:
    first = train(config(planted, memory)).batch([0, 1]).visual
    monkeypatch.setattr("cdn_tune.data.features.FeatureStore._read", None)  # nothing may be read from now on
    monkeypatch.setattr("cdn_tune.data.features.FeatureStore.require", lambda *_: None)
    assert torch.equal(train(config(planted, memory)).batch([0, 1]).visual, first)


def test_the_fingerprint_knows_it(planted: Path, memory: str) -> None:
    facts = fingerprint(config(planted, memory))
    assert facts["files"]["features"]["name"] == "features.hdf5"
    assert facts["planted"]


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("memory://bucket/other.hdf5", r"data\.features=memory://bucket/other\.hdf5: no such file there"),
        ("nosuch://bucket/x.hdf5", r"data\.features=nosuch://bucket/x\.hdf5: cannot be reached \(.*nosuch"),
    ],
)
def test_what_cannot_be_had_is_named(planted: Path, memory: str, url: str, told: str) -> None:
    assert memory
    with pytest.raises(DataError, match=told):
        train(config(planted, url))


def test_a_remote_file_that_is_no_hdf5_is_named(planted: Path, memory: str) -> None:
    fsspec.filesystem("memory").pipe("/bucket/features.hdf5", b"<html>403 Forbidden</html>")
    with pytest.raises(DataError, match=r"memory://.*features\.hdf5: cannot be opened as HDF5"):
        train(config(planted, memory))


def test_features_on_s3_are_those_of_the_local_file(planted: Path, store: Store) -> None:
    url = f"s3://{BUCKET}/features.hdf5"
    fsspec.filesystem("s3").pipe(url, (planted / "vgg_rgb_features.hdf5").read_bytes())
    remote, local = train(config(planted, url)), train(config(planted, None))
    torch.testing.assert_close(remote.batch([0, 3]).visual, local.batch([0, 3]).visual, rtol=0, atol=0)
    assert fingerprint(config(planted, url))["planted"]
    with pytest.raises(DataError, match=r"data\.features=s3://bucket/other\.hdf5: no such file there"):
        train(config(planted, f"s3://{BUCKET}/other.hdf5"))
    with pytest.raises(DataError, match=r"features=s3://denied/x\.hdf5: cannot be reached \(.*mend that") as raised:
        train(config(planted, f"s3://{DENIED}/x.hdf5"))
    assert "\n" not in str(raised.value)
    assert store.secret not in str(raised.value)
