from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdn_tune.data import charades
from cdn_tune.data.annotations import Annotation, Skipped, annotate
from cdn_tune.data.videos_json import TACOS
from cdn_tune.errors import DataError

from .conftest import HEADER, Small

Real = Callable[[str], Path]


@pytest.mark.parametrize(("split", "pairs", "skipped"), [("train", 12408, 4), ("test", 3720, 0)])
def test_charades_as_distributed(real: Real, split: Any, pairs: int, skipped: int) -> None:
    loaded = charades.LAYOUT.load(real("charades_sta"), split)
    assert len(loaded.annotations) + len(loaded.skipped) == pairs
    assert len(loaded.skipped) == skipped
    assert len({item.id for item in loaded.annotations}) == len(loaded.annotations)
    assert all(0 <= item.start < item.end <= item.duration for item in loaded.annotations)


def test_charades_skips_the_four_known_faults_by_line(real: Real) -> None:
    skipped = charades.LAYOUT.load(real("charades_sta"), "train").skipped
    assert [item.id.split(":")[1] for item in skipped] == ["8252", "8440", "9623", "9624"]
    assert all("before" in item.reason for item in skipped)


@pytest.mark.parametrize(("split", "pairs"), [("train", 9790), ("val", 4436), ("test", 4001)])
def test_tacos_as_distributed(real: Real, split: Any, pairs: int) -> None:
    loaded = TACOS.load(real("tacos"), split)
    assert (len(loaded.annotations), loaded.skipped) == (pairs, ())
    assert all(0 <= item.start < item.end <= item.duration for item in loaded.annotations)


def test_tacos_times_are_frames_over_fps(real: Real) -> None:
    first = TACOS.load(real("tacos"), "train").annotations[0]
    assert first == Annotation(
        "train.json:s17-d69.avi:0", "s17-d69.avi", 12438 / 29.4, 224 / 29.4, 358 / 29.4, "He took out a pan"
    )


def test_end_is_clamped_to_the_duration_and_ids_name_the_line(small: Small) -> None:
    small.train[2] = "AAAA2 3.0 99.0##someone waits.  "
    small.save()
    item = charades.LAYOUT.load(small.root, "train").annotations[2]
    assert item == Annotation("charades_sta_train.txt:3", "AAAA2", 20.0, 3.0, 20.0, "someone waits.")


def test_crlf_bom_and_blank_lines_change_nothing(small: Small) -> None:
    plain = charades.LAYOUT.load(small.root, "train")
    for name in ("charades_sta_train.txt", "Charades_v1_train.csv"):
        text = (small.root / name).read_text()
        small.write(name, "\ufeff" + text.replace("\n", "\r\n") + "\r\n")
    assert charades.LAYOUT.load(small.root, "train") == plain


def test_a_moment_after_the_end_of_the_video_is_skipped_and_named(small: Small) -> None:
    small.train[1] = "AAAA1 21.0 30.0##a person opens the door."
    small.save()
    loaded = charades.LAYOUT.load(small.root, "train")
    assert len(loaded.annotations) == 5
    assert [item.id for item in loaded.skipped] == ["charades_sta_train.txt:2"]
    assert [item.id.partition(":")[2] for item in loaded.queries] == list("123456")  # to measure on: all, in file order
    empty = loaded.queries[1]
    assert (empty.start, empty.end, empty.query) == (empty.duration, empty.duration, "a person opens the door.")


@pytest.mark.parametrize(
    ("line", "parts"),
    [
        ("AAAA1 1.0 2.0 a person", ("no '##'", "VIDEO START END##query")),
        ("AAAA1 1.0##a person", ("2 fields",)),
        ("AAAA1 one 2.0##a person", ("start 'one' is not a number",)),
        ("AAAA1 1.0 2,5##a person", ("end '2,5' is not a number",)),
        ("AAAA1 nan 2.0##a person", ("start nan", "finite")),
        ("AAAA1 9.0 3.5##a person", ("end 3.5 s lies before start 9 s", "AAAA1", "swap")),
        ("AAAA1 -1.0 3.5##a person", ("start -1 s", "negative")),
        ("AAAA1 1.0 3.5##  ", ("empty query", "AAAA1")),
        ("ZZZZZ 1.0 3.5##a person", ("'ZZZZZ' is not in Charades_v1_train.csv",)),
    ],
)
def test_a_wrong_line_is_named(small: Small, line: str, parts: tuple[str, ...]) -> None:
    small.train[3] = line
    small.save()
    with pytest.raises(DataError) as error:
        charades.LAYOUT.load(small.root, "train")
    message = str(error.value)
    assert "charades_sta_train.txt:4" in message
    assert "\n" not in message
    assert all(part in message for part in parts), message


@pytest.mark.parametrize(("video", "query"), [("v", "a \ud800 person"), ("\udfff", "a person")])
def test_half_a_character_is_told(video: str, query: str) -> None:
    with pytest.raises(DataError, match=r"f:1: .* is no text") as raised:
        annotate(Path("f"), "1", video, 9.0, 1.0, 2.0, query)
    str(raised.value).encode()


def test_reversed_moments_are_skipped_only_where_published() -> None:
    assert isinstance(annotate(Path("f"), "1", "LEOL6", 6.25, 8, 7, "q", known_faults=charades.KNOWN_FAULTS), Skipped)
    with pytest.raises(DataError, match="f:1: end 6 s lies before start 8 s"):
        annotate(Path("f"), "1", "LEOL6", 6.25, 8, 6, "q", known_faults=charades.KNOWN_FAULTS)


@pytest.mark.parametrize(
    ("name", "text", "parts"),
    [
        ("charades_sta_train.txt", "", ("is empty",)),
        ("charades_sta_train.txt", "\r\n \r\n", ("is empty",)),
        ("Charades_v1_train.csv", "", ("is empty",)),
        ("Charades_v1_train.csv", "id,duration\nAAAA0,3\n", ("no column 'length'",)),
        ("Charades_v1_train.csv", HEADER + "AAAA0,,,,,,,,,,\n", ("'AAAA0' has no length",)),
        ("Charades_v1_train.csv", HEADER + "AAAA0,,,,,,,,,,long\n", ("length 'long'", ":2")),
        ("Charades_v1_train.csv", HEADER + "AAAA0,,,,,,,,,,0\n", ("duration 0 s", "not positive")),
        ("Charades_v1_train.csv", HEADER + "AAAA0,short row\n", ("'AAAA0' has no length",)),
    ],
)
def test_a_wrong_file_is_named(small: Small, name: str, text: str, parts: tuple[str, ...]) -> None:
    small.write(name, text)
    with pytest.raises(DataError) as error:
        charades.LAYOUT.load(small.root, "train")
    assert all(part in str(error.value) for part in parts), error.value


def test_a_missing_file_is_named_with_a_remedy(small: Small) -> None:
    (small.root / "Charades_v1_test.csv").unlink()
    with pytest.raises(DataError, match=r"Charades_v1_test\.csv: no such file; check data\.root"):
        charades.LAYOUT.load(small.root, "test")


def test_a_file_that_is_not_utf8_is_named_with_its_line(small: Small) -> None:
    path = small.root / "charades_sta_train.txt"
    path.write_bytes(path.read_bytes().replace(b"AAAA1 1.0 5.5##a", b"AAAA1 1.0 5.5##caf\xe9"))
    with pytest.raises(DataError, match=r"charades_sta_train\.txt:2: not UTF-8"):
        charades.LAYOUT.load(small.root, "train")


def test_a_file_with_nothing_usable_is_refused(small: Small) -> None:
    small.write("charades_sta_train.txt", "AAAA0 30.0 40.0##a person opens the door.\n")
    with pytest.raises(DataError, match="no usable annotation, 1 skipped"):
        charades.LAYOUT.load(small.root, "train")


ENTRY = {"timestamps": [[10, 20]], "sentences": ["Cut."], "fps": 10.0, "num_frames": 100}


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("{", ("train.json:1", "not valid JSON")),
        ("[]", ("top level is a list",)),
        (json.dumps({"v": {}}), ("video 'v'", "keys are missing")),
        (json.dumps({"v": 3}), ("video 'v'", "keys are missing")),
        (json.dumps({"v": {**ENTRY, "fps": 0}}), ("video 'v'", "fps is 0")),
        (json.dumps({"v": {**ENTRY, "num_frames": "many"}}), ("num_frames is 'many'",)),
        (json.dumps({"v": {**ENTRY, "sentences": []}}), ("one length",)),
        (json.dumps({"v": {**ENTRY, "timestamps": [[10]]}}), ("timestamps[0] is [10]",)),
        (json.dumps({"v": {**ENTRY, "timestamps": [["a", 3]]}}), ("timestamps[0]",)),
        (json.dumps({"v": {**ENTRY, "sentences": [None]}}), ("sentences[0] is None",)),
        (json.dumps({"v": {**ENTRY, "timestamps": [[20, 10]]}}), ("train.json:v:0", "end 1 s lies before start 2 s")),
        ("{}", ("no usable annotation",)),
    ],
)
def test_wrong_json_is_named(tmp_path: Path, text: str, parts: tuple[str, ...]) -> None:
    (tmp_path / "train.json").write_text(text)
    with pytest.raises(DataError) as error:
        TACOS.load(tmp_path, "train")
    assert all(part in str(error.value) for part in parts), error.value
    assert str(tmp_path) in str(error.value)


numbers = st.floats(allow_nan=True, allow_infinity=True)


@given(numbers, numbers, numbers)
def test_whatever_is_accepted_is_a_moment_within_the_video(duration: float, start: float, end: float) -> None:
    try:
        item = annotate(Path("f"), "1", "v", duration, start, end, "query")
    except DataError as error:
        assert "f:1" in str(error)  # noqa: PT017
        return
    if isinstance(item, Annotation):
        assert 0 <= item.start < item.end <= item.duration
        assert (item.start, item.duration) == (start, duration)
    else:
        assert start >= duration or start == end
