from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

import pytest

from cdn_tune.data.files import aside, clear_left, locate, parse_json, read_text, scratch_folder, written_whole
from cdn_tune.errors import DataError


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def fail() -> None:
        with written_whole(path) as partial:
            partial.write_text("half")
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail()
    assert path.read_text() == "old"
    with written_whole(path) as partial:
        partial.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_a_name_is_looked_for_in_root_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, here = tmp_path / "root", tmp_path / "here"
    for folder in (root, here):
        folder.mkdir()
    monkeypatch.chdir(here)
    assert locate(root, "a.txt") == root / "a.txt"
    (here / "a.txt").touch()
    assert locate(root, "a.txt") == Path("a.txt")
    (root / "a.txt").touch()
    assert locate(root, "a.txt") == root / "a.txt"
    assert locate(root, str(here / "b.txt")) == here / "b.txt"


def test_a_folder_is_not_read(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        read_text(tmp_path)


@pytest.mark.parametrize("text", ["[" * 101 + "]" * 101, '{"a":' * 101 + "1" + "}" * 101, "[" * 10**5, "9" * 5000, "{"])
def test_json_that_cannot_be_used_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError, match=r"nested more than 100 deep|Exceeds the limit|Expecting property name"):
        parse_json(text)


def test_json_is_parsed_as_by_python() -> None:
    deepest = "[" * 100 + "]" * 100
    for text in (deepest, '{"a": [1, {"b": "[[["}], "c": null}', " 1 ", "NaN"):
        assert repr(parse_json(text)) == repr(json.loads(text)) == repr(parse_json(text.encode()))


DEAD = 2**22 + 1  # above the largest number that Linux gives to a process


def test_what_killed_processes_left_is_tidied_and_what_lives_is_not(tmp_path: Path) -> None:
    left = tmp_path / f".a.json.{DEAD}.tmp"
    folder = tmp_path / f".a.json.{2**40}.tmp"
    others = [
        tmp_path / f".b.json.{DEAD}.tmp",
        tmp_path / f".a.json.{os.getppid()}.tmp",
        tmp_path / ".a.json.tmp",
        tmp_path / f"a.json.{DEAD}.tmp",
    ]
    for path in (left, *others):
        path.write_text("half")
    folder.mkdir()
    (folder / "x").touch()
    with aside(tmp_path / "a.json") as temporary:
        assert not left.exists()
        assert not folder.exists()
        temporary.mkdir()
        (temporary / "x").touch()
    assert sorted(tmp_path.iterdir()) == sorted(others)
    clear_left(tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted(others[1:])


def test_scratch_folders_of_killed_processes_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    dead, foreign = tmp_path / "cdn-tune-dead", tmp_path / "cdn-tune-notes"
    for path in (dead / "files", foreign):
        path.mkdir(parents=True)
    (dead / ".alive").touch()
    with scratch_folder() as living:
        (living / "x").touch()
        assert not dead.exists()
        with scratch_folder() as second:
            assert (living / "x").exists()
            assert not list(second.iterdir())
    assert list(tmp_path.iterdir()) == [foreign]
