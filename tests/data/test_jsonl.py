from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cdn_tune.data import jsonl
from cdn_tune.data.annotations import true_moments
from cdn_tune.errors import DataError

LINE: dict[str, Any] = {"video": "a", "duration": 9, "start": 1.5, "end": 4, "query": "a person opens the door"}


def write(root: Path, *lines: Any, split: str = "train") -> None:
    text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
    (root / f"{split}.jsonl").write_text(text + "\n")


def test_lines_are_annotations(tmp_path: Path) -> None:
    write(tmp_path, LINE, "", {**LINE, "end": 99, "note": "further keys are ignored"})
    first, second = jsonl.LAYOUT.load(tmp_path, "train").annotations
    assert (first.id, first.video, first.duration, first.start, first.end) == ("train.jsonl:1", "a", 9, 1.5, 4)
    assert (second.id, second.end) == ("train.jsonl:3", 9)


def test_bom_and_carriage_returns_are_read(tmp_path: Path) -> None:
    (tmp_path / "test.jsonl").write_bytes(b"\xef\xbb\xbf" + (json.dumps(LINE) + "\r\n").encode() * 2)
    assert len(jsonl.LAYOUT.load(tmp_path, "test").annotations) == 2


def test_val_is_there_or_carved(tmp_path: Path) -> None:
    assert jsonl.annotation_files(tmp_path, "val") == ()
    write(tmp_path, LINE, split="val")
    assert jsonl.annotation_files(tmp_path, "val") == (tmp_path / "val.jsonl",)


@pytest.mark.parametrize(
    ("line", "part"),
    [
        ("{", "not valid JSON"),
        ("[1]", "is a list"),
        ({key: value for key, value in LINE.items() if key != "end"}, "'end' is missing"),
        ({**LINE, "start": "1"}, "start is '1'; write a number"),
        ({**LINE, "duration": True}, "duration is True; write a number"),
        ({**LINE, "query": None}, "query is None; write a string"),
        ({**LINE, "video": ""}, "the video's name is ''"),
        ({**LINE, "start": 5}, "lies before start"),
        ({**LINE, "duration": -1}, "is not positive"),
        ({**LINE, "query": " "}, "empty query"),
    ],
)
def test_wrong_lines_are_named(tmp_path: Path, line: Any, part: str) -> None:
    write(tmp_path, LINE, line)
    with pytest.raises(DataError) as error:
        jsonl.LAYOUT.load(tmp_path, "train")
    assert f"{tmp_path / 'train.jsonl'}:2: " in str(error.value)
    assert part in str(error.value)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        (json.dumps([LINE, LINE]), "a JSON array"),
        (json.dumps([LINE, LINE], indent=2), "a JSON array"),
        (json.dumps(LINE, indent=2), "one JSON object over several lines"),
    ],
)
def test_json_that_is_not_lines_is_one_error(tmp_path: Path, text: str, kind: str) -> None:
    path = tmp_path / "train.jsonl"
    path.write_text(text)
    with pytest.raises(DataError) as error:
        list(jsonl.scan(tmp_path, "train"))
    assert f"{path}: is {kind}" in str(error.value)
    assert f"jq -c '{'.[]' if 'array' in kind else '.'}' {path} > NEW" in str(error.value)


WINDOWS: dict[str, Any] = {
    "qid": 7, "query": "a door", "vid": "a", "duration": 20, "relevant_windows": [[2, 4], [19, 25], [30, 40]],
    "saliency_scores": [[1, 2, 3]],
}  # fmt: skip


def test_a_query_that_several_moments_answer(tmp_path: Path) -> None:
    write(tmp_path, WINDOWS, LINE, {**WINDOWS, "relevant_windows": [[25, 30]]})
    loaded = jsonl.LAYOUT.load(tmp_path, "train")
    first, second = loaded.annotations
    assert (first.video, first.qid, first.moments) == ("a", 7, ((2, 4), (19, 20)))  # the third lies outside
    assert (second.qid, second.moments) == (None, ((1.5, 4),))
    assert [item.id for item in loaded.skipped] == ["train.jsonl:3"]
    np.testing.assert_array_equal(true_moments(loaded.annotations), [[[2, 4], [19, 20]], [[1.5, 4], [np.nan, np.nan]]])


def test_a_sentence_that_is_not_in_the_video_and_parts(tmp_path: Path) -> None:
    write(tmp_path, {**WINDOWS, "part": "near"}, {**LINE, "part": "far"}, {**WINDOWS, "relevant_windows": []}, LINE)
    loaded = jsonl.LAYOUT.load(tmp_path, "train")
    assert [item.part for item in loaded.queries] == ["near", "far", None]
    assert loaded.queries == loaded.annotations
    assert loaded.skipped == ()
    (absent,) = loaded.absent
    assert (absent.id, absent.video, absent.query, absent.moments) == ("train.jsonl:3", "a", "a door", ((0, 0),))


def test_too_many_parts_are_refused(tmp_path: Path) -> None:
    write(tmp_path, *({**LINE, "part": f"part {number}"} for number in range(21)), LINE, {**LINE, "part": "part 3"})
    with pytest.raises(DataError, match=r"train\.jsonl:21: a part beyond 20; name fewer parts"):
        jsonl.LAYOUT.load(tmp_path, "train")
    wrong = [number for number, each in enumerate(jsonl.scan(tmp_path, "train")) if isinstance(each, DataError)]
    assert wrong == [20]  # the lines after it are of parts that are known


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"relevant_windows": [[1, 2]] * 101}, "101 relevant_windows; write at most 100"),
        ({"relevant_windows": [], "duration": 0}, "duration 0 s of video a is not positive"),
        ({"part": ""}, "part is ''; write a name of at most 40 characters"),
        ({"part": "a\nb"}, "write a name of at most 40 characters"),
        ({"part": 3}, "part is 3; write a name"),
        ({"relevant_windows": {}}, "relevant_windows is {}; write a list"),
        ({"relevant_windows": [[1, 2], [3]]}, "a relevant window is [3]; write [start, end]"),
        ({"relevant_windows": [[1, 2], [5, 3]]}, "lies before start"),
        ({"relevant_windows": [[1, 10**400]]}, "too large for a number"),
        ({"vid": 3}, "vid is 3; write a string"),
    ],
)
def test_wrong_windows_are_named(tmp_path: Path, change: dict[str, Any], part: str) -> None:
    write(tmp_path, {**WINDOWS, **change})
    with pytest.raises(DataError) as error:
        jsonl.LAYOUT.load(tmp_path, "train")
    assert f"{tmp_path / 'train.jsonl'}:1: " in str(error.value)
    assert part in str(error.value)
