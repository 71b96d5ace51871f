"""Charades-CD and ActivityNet-CD: counts as published, parts of test, wrong files in one line."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cdn_tune.data.annotations import SPLITS, Split
from cdn_tune.data.changing_distributions import ACTIVITYNET, CHARADES
from cdn_tune.data.doctor.examine import examine
from cdn_tune.data.layouts import Layout, recognise
from cdn_tune.data.planted import plant
from cdn_tune.data.videos_json import ACTIVITYNET as VIDEOS_ACTIVITYNET
from cdn_tune.errors import DataError

Real = Callable[[str], Path]
# Videos and queries, as counted from the public lists; train of ActivityNet-CD is what they leave of the whole.
COUNTS = {
    "charades": {"train": (4564, 11071), "val": (333, 859), "test_iid": (333, 823), "test_ood": (1442, 3375)},
    "anet": {"train": (10984, 51415), "val": (746, 3521), "test_iid": (746, 3443), "test_ood": (2450, 13578)},
}
LAYOUTS = {"charades": ("charades_cd", CHARADES), "anet": ("activitynet_cd", ACTIVITYNET)}


def entry(prefix: str, queries: int) -> dict[str, Any]:
    """An entry of the public files, with all of their keys."""
    spans, sentences = [[1, 3.5]] * queries, [f"person {number} takes a cup" for number in range(queries)]
    if prefix == "anet":
        return {"duration": 9.5, "timestamps": spans, "sentences": sentences}
    return {
        "framestamps": [[16, 56]] * queries,
        "decode_fps": 16.0,
        "encoded_sentences": [[1, 2]] * queries,
        "sentences": sentences,
        "video_fps": -1.0,
        "timestamps": spans,
        "video_duration": 9.5,
    }


def write(root: Path, prefix: str) -> None:
    """Writes files of as many videos and queries as the public ones have."""
    for name, (videos, queries) in COUNTS[prefix].items():
        least, more = divmod(queries, videos)
        content = {f"{name}{at}": entry(prefix, least + (at < more)) for at in range(videos)}
        (root / f"{prefix}_{name}.json").write_text(json.dumps(content))


@pytest.mark.parametrize("prefix", COUNTS)
def test_files_of_the_published_size_are_recognised(tmp_path: Path, prefix: str) -> None:
    write(tmp_path, prefix)
    name, layout = LAYOUTS[prefix]
    assert recognise(tmp_path) == [name]
    for split, parts in (("train", [None]), ("val", [None]), ("test", ["iid", "ood"])):
        loaded = layout.load(tmp_path, split)  # type: ignore[arg-type]
        for part in parts:
            queries = [item for item in loaded.queries if item.part == part]
            wanted = COUNTS[prefix][split if part is None else f"{split}_{part}"]
            assert (len({item.video for item in queries}), len(queries)) == wanted
    report = examine(tmp_path, quick=True)
    assert (report.dataset, "published files" in (report.variant or "")) == (name, True)
    assert report.splits["test"]["parts"] == {part: COUNTS[prefix][f"test_{part}"][1] for part in ("iid", "ood")}
    assert report.splits["val"]["parts"] == {}


@pytest.mark.parametrize("prefix", COUNTS)
def test_real_counts(real: Real, prefix: str) -> None:
    dataset, layout = LAYOUTS[prefix]
    root = real(dataset)
    for split in ("train", "val", "test"):
        if not all(path.is_file() for path in layout.files(root, split)):  # type: ignore[arg-type]
            continue
        loaded = layout.load(root, split)  # type: ignore[arg-type]
        wanted = {key.removeprefix("test_"): count for key, (_, count) in COUNTS[prefix].items() if split in key}
        assert Counter(item.part or split for item in loaded.queries) == wanted
        assert {
            part: len({item.video for item in loaded.queries if (item.part or split) == part}) for part in wanted
        } == {key.removeprefix("test_"): videos for key, (videos, _) in COUNTS[prefix].items() if split in key}
    assert len(layout.load(root, "test").skipped) == {"charades": 3, "anet": 4}[prefix]


def test_train_of_activitynet_cd_is_what_is_left(real: Real) -> None:
    whole = [item for split in SPLITS for item in VIDEOS_ACTIVITYNET.load(real("activitynet"), split).queries]
    others = [item for split in SPLITS[1:] for item in ACTIVITYNET.load(real("activitynet_cd"), split).queries]
    videos = {item.video for item in whole} - {item.video for item in others}
    assert {item.video for item in others} <= {item.video for item in whole}
    assert (len(videos), len(whole) - len(others)) == COUNTS["anet"]["train"]


def test_an_entry(tmp_path: Path) -> None:
    (tmp_path / "charades_test_iid.json").write_text(json.dumps({"A": entry("charades", 1)}))
    late = {**entry("charades", 2), "timestamps": [[2, 30], [9.75, 12]]}
    (tmp_path / "charades_test_ood.json").write_text(json.dumps({"B": late}))
    loaded = CHARADES.load(tmp_path, "test")
    first, second = loaded.annotations
    assert (first.id, first.part, first.start, first.end) == ("charades_test_iid.json:A:0", "iid", 1, 3.5)
    assert (second.id, second.part, second.end, second.duration) == ("charades_test_ood.json:B:0", "ood", 9.5, 9.5)
    assert [(item.id, item.query.part) for item in loaded.skipped] == [("charades_test_ood.json:B:1", "ood")]
    assert CHARADES.restrict(tmp_path, "test", frozenset("A")) == {
        "charades_test_iid.json": json.dumps({"A": entry("charades", 1)}) + "\n",
        "charades_test_ood.json": "{}\n",
    }


@pytest.mark.parametrize(
    ("layout", "split", "content", "part"),
    [
        (CHARADES, "test", None, "charades_test_ood.json"),
        (ACTIVITYNET, "val", "[]", "top level is a list"),
        (CHARADES, "val", json.dumps({"A": entry("anet", 1)}), "keys are missing; write the entry as"),
        (ACTIVITYNET, "val", json.dumps({"A": entry("charades", 1)}), "keys are missing; write the entry as"),
    ],
)
def test_wrong_files_are_one_line(tmp_path: Path, layout: Layout, split: Split, content: str | None, part: str) -> None:
    first, *others = layout.files(tmp_path, split)
    first.write_text(json.dumps({"A": entry("charades", 1)}) if content is None else content)
    with pytest.raises(DataError) as error:
        layout.load(tmp_path, split)
    assert part in str(error.value)
    assert "\n" not in str(error.value)
    assert all(not path.exists() for path in others)


def test_planted_in_its_own_layout(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for name, (first, last) in {"train": (0, 6), "val": (6, 8), "test_iid": (8, 12), "test_ood": (12, 16)}.items():
        content = {f"v{at}": entry("charades", 2) for at in range(first, last)}
        (source / f"charades_{name}.json").write_text(json.dumps(content))
    planted = plant(tmp_path / "planted", "charades_cd", source, feature_size=8, word_size=12)
    assert (planted.dataset, planted.videos, planted.queries) == ("charades_cd", 16, 32)
    assert Counter(item.part for item in CHARADES.load(planted.root, "test").annotations) == {"iid": 8, "ood": 8}
