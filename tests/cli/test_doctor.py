from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cdn_tune.cli import app
from cdn_tune.cli.data.doctor import fact_lines, findings_table, verdict
from cdn_tune.data.doctor import Finding, Report

RUN = CliRunner()


def test_a_healthy_folder_is_ready_and_written_as_json(planted: Path, tmp_path: Path) -> None:
    file = tmp_path / "report.json"
    result = RUN.invoke(app, ["data", "doctor", str(planted), "--quick", "--json", str(file)])
    assert result.exit_code == 0, result.output
    assert "ready to train" in result.output
    assert "planted data" in result.output
    content = json.loads(file.read_text())
    assert (content["dataset"], content["quick"], content["fails"]) == ("charades_sta", True, False)


def test_a_folder_that_cannot_train_exits_with_2_and_says_the_remedy(planted: Path, tmp_path: Path) -> None:
    for path in planted.iterdir():
        if path.suffix in {".txt", ".csv"}:
            (tmp_path / path.name).write_bytes(path.read_bytes())
    result = RUN.invoke(app, ["data", "doctor", str(tmp_path)])
    assert result.exit_code == 2
    assert "training would fail: 1 to mend" in result.output
    assert "data.features=FILE" in result.output


@pytest.mark.parametrize("arguments", [["absent"], [".", "--out", "/dev/null/absent/report.json"]])
def test_wrong_arguments_are_one_line(arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = RUN.invoke(app, ["data", "doctor", *arguments])
    assert result.exit_code == 2
    assert "internal error" not in result.output
    assert "absent" in result.output


def test_a_table_row_per_finding() -> None:
    findings = (
        Finding("error", "features", "fault [x]", "mend it", 5, ("a", "b", "c", "d")),
        Finding("info", "words", "remark"),
    )
    report = Report("root", "tacos", "an edition", False, False, findings=findings)
    assert findings_table(findings).row_count == 2
    assert next(fact_lines(report)) == "tacos, an edition in root"
    assert verdict(report) == "training would fail: 1 to mend"
    assert list(fact_lines(Report("root", None, None, False, False))) == []


def test_one_place_is_named_unless_the_finding_names_it() -> None:
    findings = (
        Finding("error", "features", "1 of 30 videos have no features", "add them", 1, ("PLACE",)),
        Finding("error", "annotations", "train.txt:3: no '##'", "mend it", 1, ("train.txt:3",)),
    )
    (what,) = (column for column in findings_table(findings).columns if column.header == "what")
    assert list(what.cells) == ["1 of 30 videos have no features (PLACE)", "train.txt:3: no '##'"]


def test_the_keys_that_a_remedy_names_are_read(planted: Path, tmp_path: Path) -> None:
    for path in planted.iterdir():
        if path.suffix in {".txt", ".csv"} and "glove" not in path.name:
            (tmp_path / path.name).write_bytes(path.read_bytes())
    vectors = next(path for path in planted.iterdir() if path.name.startswith("glove") and path.suffix == ".txt")
    keys = [
        f"data.word_vectors={vectors}",
        f"data.features={planted / 'vgg_rgb_features.hdf5'}",
        "data.val_fraction=0.2",
    ]
    result = RUN.invoke(app, ["data", "doctor", str(tmp_path), *keys])
    assert result.exit_code == 0, result.output
    result = RUN.invoke(app, ["data", "doctor", str(tmp_path), *keys, "data.word_size=13", "--json"])
    assert result.exit_code == 2
    assert "but data.word_size=13" in result.output
    for wrong in ("optim.lr=1", "data.root=x", "data.val_fraction=2"):
        result = RUN.invoke(app, ["data", "doctor", str(tmp_path), wrong])
        assert result.exit_code == 2
        assert wrong.partition("=")[0] in result.output


def test_convert_from_the_command_line(tmp_path: Path) -> None:
    import numpy as np

    (tmp_path / "raw").mkdir()
    np.save(tmp_path / "raw" / "a.npy", np.ones((3, 4), np.float32))
    arguments = ["data", "convert", str(tmp_path / "raw"), str(tmp_path / "out.hdf5"), "--form", "arrays"]
    result = RUN.invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert "1 videos, size 4, verified" in result.output
    again = RUN.invoke(app, arguments)
    assert again.exit_code == 2
    assert "exists already" in again.output


def test_plant_without_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = RUN.invoke(app, ["data", "plant", "--videos", "4", "--feature-size", "4"])
    assert result.exit_code == 0, result.output
    assert (tmp_path / "data" / "planted" / "planted.json").exists()


def test_plant_with_a_preset_and_an_option_of_its_own(tmp_path: Path) -> None:
    arguments = ["data", "plant", str(tmp_path), "--videos", "4", "--feature-size", "4", "--preset", "planted-medium"]
    result = RUN.invoke(app, [*arguments, "--distractors", "1"])
    assert result.exit_code == 0, result.output
    options = json.loads((tmp_path / "planted.json").read_text())["options"]
    assert (options["distractors"], options["snr"]) == (1, 0.7)
    assert RUN.invoke(app, ["data", "plant", str(tmp_path), "--preset", "hard"]).exit_code == 2


def test_plant_with_a_preset_of_other_annotations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = ["data", "plant", "--videos", "3", "--feature-size", "4", "--preset", "planted-hard"]
    for given, rate in (([], 2.0), (["--frame-rate", "1", "--overwrite"], 1.0)):
        result = RUN.invoke(app, [*arguments, *given])
        assert result.exit_code == 0, result.output
        options = json.loads((tmp_path / "data/tabletop-planted/planted.json").read_text())["options"]
        assert (options["annotations"], options["frame_rate"]) == ("tabletop", rate)
    assert RUN.invoke(app, [*arguments, "other", "--annotations", "generated"]).exit_code == 0
    assert (tmp_path / "other/charades_sta_test.txt").is_file()


@pytest.mark.parametrize("name", ["x" * 300, "x" * 5000])
def test_a_name_too_long_is_one_line(name: str) -> None:
    for command in (["data", "doctor", name], ["train", name], ["evaluate", name], ["data", "plant", name]):
        result = RUN.invoke(app, command)
        assert result.exit_code == 2, (command, result.output)
        assert "internal error" not in result.output
