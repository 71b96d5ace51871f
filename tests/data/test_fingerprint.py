from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import h5py
import pytest

from cdn_tune.data.files import sampled_sha256
from cdn_tune.data.fingerprint import PLANTED_ATTRIBUTE, PLANTED_MARKER, fingerprint, is_planted
from cdn_tune.data.mark import DRAWN, Mark

from .conftest import Small, config_of


def test_names_sizes_digests_and_splits(small: Small) -> None:
    small.train[1] = "AAAA1 21.0 30.0##a person opens the door."
    small.save()
    found = json.loads(json.dumps(fingerprint(small.config(val_fraction=0.2))))
    assert found["planted"] is False
    assert set(found["files"]["annotations"]) == {
        "charades_sta_train.txt", "charades_sta_test.txt", "Charades_v1_train.csv", "Charades_v1_test.csv"}  # fmt: skip
    content = (small.root / "charades_sta_train.txt").read_bytes()
    assert found["files"]["annotations"]["charades_sta_train.txt"] == {
        "size": len(content), "sha256": hashlib.sha256(content).hexdigest()}  # fmt: skip
    assert found["files"]["features"]["name"] == "vgg_rgb_features.hdf5"
    assert found["files"]["word_vectors"]["size"] == (small.root / "glove.txt").stat().st_size
    sizes = {split: (part["queries"], part["videos"]) for split, part in found["splits"].items()}
    assert sizes == {"train": (4, 4), "val": (1, 1), "test": (2, 2)}
    assert [entry["id"] for part in found["skipped"].values() for entry in part] == ["charades_sta_train.txt:2"]


def test_the_vectors_cache_stands_for_them_where_it_is_alone(small: Small) -> None:
    (small.root / "glove.txt").rename(small.root / "glove.txt.pt")
    assert fingerprint(small.config())["files"]["word_vectors"]["name"] == "glove.txt.pt"


def test_planted_features_keep_their_label_where_they_go(small: Small, planted_root: Path) -> None:
    assert is_planted(config_of(planted_root))
    assert not is_planted(small.config())
    moved = small.root / "features of somewhere.hdf5"
    moved.write_bytes((planted_root / "vgg_rgb_features.hdf5").read_bytes())
    assert is_planted(small.config(features=moved.name))
    assert is_planted(small.config(word_vectors=str(planted_root / "glove.planted.50d.txt")))


@pytest.mark.parametrize(
    ("content", "mark"),
    [
        ('{"planted": "drawn videos"}', DRAWN),
        ('{"planted": true}', True),
        ('{"planted": "anything"}', True),
        ('{"planted": false}', True),
        ("[]", True),
        ("{", True),
        ("\\x00", True),
    ],
)
def test_the_label_tells_drawn_videos_from_planted_features(small: Small, content: str, mark: Mark) -> None:
    (small.root / PLANTED_MARKER).write_text(content)
    assert is_planted(small.config()) == mark
    assert fingerprint(small.config())["planted"] == mark


@pytest.mark.parametrize(("value", "mark"), [(DRAWN, DRAWN), (2, True)])
def test_the_attribute_of_features_does_too(small: Small, value: str | int, mark: Mark) -> None:
    with h5py.File(small.root / "vgg_rgb_features.hdf5", "a") as file:
        file.attrs[PLANTED_ATTRIBUTE] = value
    assert is_planted(small.config()) == mark


def test_the_sampled_digest_notices_size_ends_and_middle(tmp_path: Path) -> None:
    path = tmp_path / "big"
    size = 40 << 20
    digests = set()
    for place in (None, 0, size // 15 * 7 + 100, size - 1):
        with path.open("wb") as file:
            os.truncate(file.fileno(), size)
            if place is not None:
                file.seek(place)
                file.write(b"x")
        digests.add(sampled_sha256(path))
    with path.open("ab") as file:
        file.write(b"\0")
    digests.add(sampled_sha256(path))
    assert len(digests) == 5
