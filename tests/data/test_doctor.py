from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from typer.testing import CliRunner

from cdn_tune.cli import app
from cdn_tune.data.doctor import Finding, Report, examine
from cdn_tune.data.planted import plant
from cdn_tune.errors import DataError

from .conftest import Small

Real = Callable[[str], Path]
FEATURES = "vgg_rgb_features.hdf5"


def of_level(report: Report, level: str) -> list[Finding]:
    return [finding for finding in report.findings if finding.level == level]


def the_error(report: Report, area: str) -> Finding:
    """The only error, which is in an area and has a remedy."""
    (finding,) = of_level(report, "error")
    assert finding.area == area
    assert finding.remedy
    assert report.fails
    return finding


def test_healthy_planted_data(planted_root: Path) -> None:
    report = examine(planted_root)
    assert (report.dataset, report.variant, report.planted, report.fails) == ("charades_sta", None, True, False)
    assert of_level(report, "error") == []
    (finding,) = of_level(report, "warning")
    assert finding.what.startswith("val has 17 queries, so recall moves in steps of 0.059")
    assert (report.features["size"], report.features["checked"], report.features["rows_per_second"]) == (64, 60, 4)
    assert (report.words["size"], report.words["coverage"]) == (50, 1)
    assert json.loads(json.dumps(report.plain()))["splits"]["test"]["videos"] == 12


@pytest.mark.parametrize(
    ("dataset", "variant"),
    [
        ("charades_sta", "12 408/3 720"),
        ("tacos", "9 790/4 436/4 001"),
        ("activitynet", "37 417/17 505/17 031"),
        ("charades_cd", "11 071/859/823 + 3 375"),
    ],
)
def test_real_annotations_are_recognised(real: Real, dataset: str, variant: str) -> None:
    report = examine(real(dataset))
    assert report.dataset == dataset
    assert variant in (report.variant or "")
    assert not report.planted
    assert {finding.area for finding in of_level(report, "error")} == {"features", "words"}
    assert of_level(report, "warning") == []


def test_the_other_tacos(tmp_path: Path) -> None:
    for split, pairs in (("train", 10146), ("val", 4589), ("test", 4083)):
        entry = {"timestamps": [[1, 5]] * pairs, "sentences": ["a"] * pairs, "fps": 10, "num_frames": 90}
        (tmp_path / f"{split}.json").write_text(json.dumps({f"{split}.avi": entry}))
    assert "TALL" in (examine(tmp_path).variant or "")


def test_jsonl_is_recognised(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text('{"video": "a", "duration": 9, "start": 1, "end": 4, "query": "a door"}\n')
    report = examine(tmp_path)
    assert report.dataset == "jsonl"
    assert report.splits["train"]["queries"] == 1


def test_a_folder_of_nothing(tmp_path: Path) -> None:
    report = examine(tmp_path)
    assert report.dataset is None
    assert "cdn-tune data plant" in the_error(report, "folder").remedy


def test_no_folder_and_no_layout(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder"):
        examine(tmp_path / "absent")
    with pytest.raises(DataError, match="is unknown; choose one of charades_sta, tacos, activitynet, charades_cd"):
        examine(tmp_path, dataset="didemo")


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("AAAA1 1.0 5.0 a person opens the door.", "no '##'"),
        ("AAAA1 1.0 5.0## ", "empty query"),
        ("AAAA1 9.0 5.0##a person opens the door.", "lies before start"),
        ("AAAA1 x 5.0##a person opens the door.", "start 'x' is not a number"),
        ("AAAA1 -2 5.0##a person opens the door.", "is negative"),
        ("ZZZZ9 1.0 5.0##a person opens the door.", "is not in Charades_v1_train.csv"),
    ],
)
def test_every_wrong_line_is_found(small: Small, line: str, what: str) -> None:
    small.train[1] = small.train[4] = line
    small.save()
    finding = the_error(examine(small.root), "annotations")
    assert what in finding.what
    assert finding.count == 2
    assert finding.examples == ("charades_sta_train.txt:2", "charades_sta_train.txt:5")


def test_a_duration_that_is_missing(small: Small) -> None:
    small.lengths["AAAA3"] = ""
    small.save()
    assert "video 'AAAA3' has no length" in the_error(examine(small.root), "annotations").what


def test_text_that_is_not_utf8_and_a_lost_file(small: Small) -> None:
    (small.root / "charades_sta_test.txt").write_bytes(b"BBBB0 0.0 5.0##person takes a cup.\nBBBB0 1 2##caf\xe9\n")
    (small.root / "Charades_v1_train.csv").unlink()
    errors = [finding for finding in of_level(examine(small.root), "error") if finding.area == "annotations"]
    assert any("charades_sta_test.txt:2: not UTF-8" in finding.what for finding in errors)
    assert any("Charades_v1_train.csv: no such file" in finding.what for finding in errors)


def test_carriage_returns_and_bom_are_fine(small: Small) -> None:
    for path in small.root.glob("*.txt"):
        if path.name != "glove.txt":
            path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    assert not examine(small.root).fails


def test_remarks(small: Small) -> None:
    small.train += [small.train[0], "AAAA2 30.0 40.0##a person opens the door."]
    small.lengths["AAAA5"] = "36000"
    small.save()
    report = examine(small.root)
    assert not report.fails
    warnings = {finding.what: finding for finding in of_level(report, "warning")}
    assert warnings["the same query for the same moment again"].examples == ("charades_sta_train.txt:7",)
    assert warnings["videos longer than 3 hours"].examples == ("AAAA5",)
    assert any("rows do not fit their duration" in what for what in warnings)
    (skipped,) = (finding for finding in of_level(report, "info") if finding.area == "annotations")
    assert skipped.examples == ("charades_sta_train.txt:8",)


def test_splits_that_share_videos(small: Small) -> None:
    small.train.append("BBBB1 1.0 5.0##a person opens the door.")
    small.lengths["BBBB1"] = "10"
    small.save()
    finding = next(finding for finding in examine(small.root).findings if finding.area == "splits")
    assert (finding.level, finding.what, finding.examples) == ("warning", "train and test share 1 videos", ("BBBB1",))


def break_features(root: Path, fault: str) -> None:
    path = root / FEATURES
    if fault == "truncated":
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2])
        return
    if fault == "empty":
        path.write_bytes(b"")
        return
    with h5py.File(path, "a") as file:
        for video in ("AAAA1", "BBBB0"):
            del file[video]
            if fault == "rows":
                file[video] = np.zeros((0, 4), np.float32)
            elif fault == "nan":
                file[video] = np.full((3, 4), np.nan, np.float32)
            elif fault == "type":
                file[video] = np.full((3, 4), b"a")
            elif fault == "group":
                file.create_group(video)["c3d_features"] = np.zeros((3, 4), np.float32)
            elif fault == "flat":
                file[video] = np.zeros(4, np.float32)
            elif fault == "size":
                file[video] = np.zeros((3, 5), np.float32)


@pytest.mark.parametrize(
    ("fault", "what", "count"),
    [
        ("truncated", "cannot be opened as HDF5", 1),
        ("empty", "is empty (0 bytes)", 1),
        ("missing", "2 of 8 annotated videos have no features", 2),
        ("rows", "has 0 frames", 2),
        ("nan", "has the value nan in row 0", 2),
        ("type", "values; expected floats", 2),
        ("group", "is an HDF5 group; expected a dataset", 2),
        ("flat", "has shape [4]", 2),
        ("size", "has features of size 5", 2),
    ],
)
def test_every_video_with_wrong_features_is_found(small: Small, fault: str, what: str, count: int) -> None:
    break_features(small.root, fault)
    finding = the_error(examine(small.root), "features")
    assert what in f"{finding.what}; {finding.remedy}"
    assert finding.count == count
    if count == 2:
        assert finding.examples == ("AAAA1", "BBBB0")


def rewrite(root: Path, change: Callable[[str, Any], tuple[str, Any]]) -> None:
    """Writes the features again, each video's name and array changed."""
    with h5py.File(root / FEATURES, "a") as file:
        for video in list(file):
            name, array = change(video, file[video][()])
            del file[video]
            file[name] = array


def the_remedy(root: Path, finding: Finding) -> None:
    """Does what a finding says: converts, and puts the new file in the old one's place."""
    command = next(word for word in finding.remedy.split("with") if "cdn-tune data convert" in word)
    words = command.partition(",")[0].replace("NEW.hdf5", str(root / "NEW.hdf5")).split()
    result = CliRunner().invoke(app, words[words.index("data") :])
    assert result.exit_code == 0, result.output
    (root / "NEW.hdf5").replace(root / FEATURES)


def ragged(video: str, array: Any) -> Any:
    return np.concatenate([array] * (2 + int(video[-1])))


@pytest.mark.parametrize(
    ("fault", "change", "what", "count"),
    [
        (
            "axes",
            lambda video, array: (video, array[:, :, None, None]),
            "has shape [5, 4, 1, 1], expected [frames, 4]",
            8,
        ),
        (
            "turned",
            lambda video, array: (video, ragged(video, array).T),
            "features are transposed, such as [4, 10]; expected [frames, 4]",
            8,
        ),
        ("suffix", lambda video, array: (f"{video}.avi", array), "names that differ in case or in a suffix alone", 8),
        ("case", lambda video, array: (video.lower(), array), "names that differ in case or in a suffix alone", 8),
    ],
)
def test_what_can_be_rewritten_is_one_finding_whose_remedy_works(
    small: Small, fault: str, change: Callable[[str, Any], tuple[str, Any]], what: str, count: int
) -> None:
    rewrite(small.root, change)
    finding = the_error(examine(small.root), "features")
    assert what in finding.what
    assert finding.count == count
    if fault == "suffix":
        assert finding.examples[0] == "AAAA0 is AAAA0.avi there"
    the_remedy(small.root, finding)
    report = examine(small.root)
    assert not report.fails
    assert report.features["size"] == 4


def test_wrong_sizes_are_one_finding(small: Small) -> None:
    wide = {"AAAA1": 5, "AAAA3": 7, "BBBB0": 9}
    rewrite(small.root, lambda video, _: (video, np.ones((5, wide.get(video, 4)), np.float32)))
    finding = the_error(examine(small.root), "features")
    assert (finding.count, finding.examples) == (3, ("AAAA1", "AAAA3", "BBBB0"))


def test_what_would_spoil_a_training_is_a_warning(small: Small) -> None:
    arrays = {
        "AAAA0": np.zeros((5, 4)),
        "AAAA1": np.full((5, 4), 0.5),
        "AAAA2": np.ones((1, 4)),
        "AAAA3": np.full((5, 4), 1e38) * [[1], [2], [1], [2], [1]],
    }
    rewrite(small.root, lambda video, array: (video, arrays.get(video, array).astype(np.float32)))
    small.train[0] = "AAAA0 1.0 1e300##a person opens\0 the door."
    small.save()
    (small.root / "glove.txt").write_text((small.root / "glove.txt").read_text().replace("door 1 0 1", "door 0 0 0"))
    report = examine(small.root)
    assert not report.fails
    found = {finding.what: finding.examples for finding in of_level(report, "warning")}
    for what, example in (
        ("features are all zero", "AAAA0"),
        ("rows of features are all the same", "AAAA1"),
        ("a single row of features", "AAAA2"),
        ("values above 1e+18", "AAAA3"),
        ("end far behind the end of their video", "charades_sta_train.txt:1"),
        ("control characters", "charades_sta_train.txt:1"),
        ("vector in glove.txt is all zero", "door"),
    ):
        assert [examples for name, examples in found.items() if what in name] == [(example,)], what


def test_a_json_array_is_one_error(tmp_path: Path) -> None:
    lines = [{"video": "a", "duration": 9, "start": 1, "end": 4, "query": "a door"}] * 100
    (tmp_path / "train.jsonl").write_text(json.dumps(lines, indent=1))
    errors = [finding for finding in examine(tmp_path).findings if finding.area == "annotations"]
    assert [(finding.count, "is a JSON array" in finding.what) for finding in errors] == [(1, True), (1, False)]


def test_quick_reads_a_sample(planted_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cdn_tune.data.doctor.features.SAMPLE", 10)
    report = examine(planted_root, quick=True)
    assert report.quick
    assert report.features["checked"] == 10


def test_features_under_another_name(small: Small) -> None:
    (small.root / FEATURES).rename(small.root / "mine.hdf5")
    finding = the_error(examine(small.root), "features")
    assert "vgg_rgb_features.hdf5 or charades_vgg_rgb.hdf5" in finding.what
    assert not examine(small.root, features="mine.hdf5").fails


def test_word_vectors(small: Small) -> None:
    (small.root / "glove.txt").write_text("person 0 1 0\ntakes 0 1 1\na 1 0 0\n")
    report = examine(small.root)
    assert report.words["unknown"] == {"opens": 6, "the": 6, "door": 6, "cup": 2}
    finding = next(finding for finding in of_level(report, "warning") if finding.area == "words")
    assert finding.examples[:3] == ("opens (6)", "the (6)", "door (6)")
    (small.root / "glove.txt").write_text("person 0 x 0\n")
    (small.root / "glove.txt.pt").unlink()
    assert "not word vectors" in the_error(examine(small.root), "words").what
    (small.root / "glove.txt").unlink()
    assert "no word vectors" in the_error(examine(small.root), "words").what


def test_queries_without_a_known_word(small: Small) -> None:
    small.train[3] = "AAAA3 1.0 5.0##qwxz"
    small.save()
    finding = the_error(examine(small.root), "words")
    assert finding.examples == ("charades_sta_train.txt:4",)


def test_all_activitynet_features_are_groups(real: Real, tmp_path: Path) -> None:
    root = plant(tmp_path / "a", "activitynet", real("activitynet"), videos=9, feature_size=8, frame_rate=0.5).root
    report = examine(root)
    assert not report.fails
    assert report.features["size"] == 8
    shutil.rmtree(root)


def test_progress_counts_videos(planted_root: Path) -> None:
    seen: list[tuple[int, int]] = []
    examine(planted_root, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(n, 60) for n in range(1, 61)]


def test_too_few_videos_for_a_val_split(small: Small) -> None:
    lines = (small.root / "charades_sta_train.txt").read_text().splitlines()
    first = lines[0].split()[0]
    (small.root / "charades_sta_train.txt").write_text(
        "\n".join(line for line in lines if line.startswith(first)) + "\n"
    )
    finding = the_error(examine(small.root), "splits")
    assert "too few to hold out a val split" in finding.what
