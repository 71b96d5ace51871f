from __future__ import annotations

from pathlib import Path

import pytest

from cdn_tune.data.files import locate, read_text, written_whole
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
