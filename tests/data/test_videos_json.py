from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import h5py
import pytest
import torch

from cdn_tune.config import DataConfig
from cdn_tune.data.dataset import load_splits
from cdn_tune.data.planted import plant
from cdn_tune.data.videos_json import ACTIVITYNET
from cdn_tune.errors import DataError

Real = Callable[[str], Path]


@pytest.mark.parametrize(("split", "pairs", "skipped"), [("train", 37417, 4), ("val", 17505, 0), ("test", 17031, 0)])
def test_real_counts(real: Real, split: str, pairs: int, skipped: int) -> None:
    loaded = ACTIVITYNET.load(real("activitynet"), split)  # type: ignore[arg-type]
    assert len(loaded.annotations) + len(loaded.skipped) == pairs + skipped
    assert len(loaded.skipped) == skipped


def write(root: Path, content: object, split: str = "train") -> None:
    (root / f"{split}.json").write_text(json.dumps(content))


def test_an_entry(tmp_path: Path) -> None:
    write(tmp_path, {"v_a": {"duration": 9, "timestamps": [[1, 3.5], [4, 12]], "sentences": [" One.", "Two "]}})
    first, second = ACTIVITYNET.load(tmp_path, "train").annotations
    assert (first.id, first.video, first.duration, first.start, first.end) == ("train.json:v_a:0", "v_a", 9, 1, 3.5)
    assert (second.query, second.end) == ("Two", 9)


@pytest.mark.parametrize(
    ("entry", "part"),
    [
        ({"timestamps": [], "sentences": []}, "keys are missing"),
        ({"duration": 0, "timestamps": [], "sentences": []}, "duration is 0; it must be a positive number"),
        ({"duration": 5, "timestamps": [[1, 2]], "sentences": []}, "not two lists of one length"),
        ({"duration": 5, "timestamps": [[1]], "sentences": ["a"]}, "timestamps[0] is [1]; write [first second"),
        ({"duration": 5, "timestamps": [[3, 1]], "sentences": ["a"]}, "lies before start"),
        ({"duration": 5, "timestamps": [[1, 3]], "sentences": [" "]}, "empty query"),
        ({"duration": 5, "timestamps": [[1, 3]], "sentences": [7]}, "sentences[0] is 7"),
    ],
)
def test_wrong_entries_are_named(tmp_path: Path, entry: dict[str, object], part: str) -> None:
    write(tmp_path, {"v_a": entry})
    with pytest.raises(DataError) as error:
        ACTIVITYNET.load(tmp_path, "train")
    assert part in str(error.value)
    assert "v_a" in str(error.value)
    assert "\n" not in str(error.value)


def test_planted_in_its_own_layout(real: Real, tmp_path: Path) -> None:
    planted = plant(tmp_path / "planted", "activitynet", real("activitynet"), videos=9, feature_size=8, frame_rate=0.2)
    with h5py.File(planted.root / ACTIVITYNET.features[0]) as file:
        assert all(isinstance(file[video][ACTIVITYNET.member], h5py.Dataset) for video in file)
    config = DataConfig(
        dataset="activitynet",
        root=str(planted.root),
        feature_size=8,
        frames=16,
        word_vectors=planted.word_vectors,
        word_size=50,
    )
    splits = load_splits(config, ("train", "val", "test"))
    assert sum(map(len, splits.values())) == planted.queries
    batch = splits["train"].batch([0, 1])
    assert torch.isfinite(batch.visual).all()
    assert batch.visual.shape == (2, 16, 8)
