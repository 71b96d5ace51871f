from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from cdn_tune.data import vectors as module
from cdn_tune.data.dataset import load_split
from cdn_tune.data.vectors import pieces, word_table

from .conftest import Small


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CDN_TUNE_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "glove.txt"
    path.write_text("cutting 1 2 0\nboard 3 6 0\nboards 9 9 0\ncut 5 5 0\nan 0 1 0\n")
    return path


def test_only_the_words_asked_for_are_kept_and_read_once(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = word_table(path, {"cut", "board", "knife"})
    assert first.words == ("board", "cut")
    assert first.vectors.tolist() == [[3, 6, 0], [5, 5, 0]]
    monkeypatch.setattr(module, "load_vectors", lambda _: pytest.fail("read again"))
    again = word_table(path, ["knife", "board", "cut"])
    assert (again.words, again.size) == (first.words, 3)
    assert torch.equal(again.vectors, first.vectors)


def test_other_words_another_fallback_and_a_changed_file_are_noticed(path: Path) -> None:
    assert word_table(path, {"cutboard"}).words == ()
    assert word_table(path, {"cutboard"}, "subword").vectors.tolist() == [[4, 5.5, 0]]
    assert word_table(path, {"cutboard", "an"}).words == ("an",)
    path.write_text("an 7 8 0\n")
    os.utime(path, (2e9, 2e9))
    assert word_table(path, {"cutboard", "an"}).vectors.tolist() == [[7, 8, 0]]


def test_pieces_are_the_longest_known_words(path: Path) -> None:
    known = dict.fromkeys(("cutting", "board", "boards", "cut", "an"), 0)
    assert pieces("cuttingboards", known) == ["cutting", "boards"]
    assert pieces("xcutxx", known) == ["cut"]
    assert pieces("an", known) == pieces("", known) == pieces("knife", known) == []


@pytest.mark.parametrize("fault", ["damaged", "unwritable"])
def test_without_a_usable_cache_the_file_is_read(
    path: Path, fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    expected = word_table(path, {"cut"})
    if fault == "damaged":
        (cached,) = (tmp_path / "cache" / "words").glob("*.npz")
        cached.write_bytes(cached.read_bytes()[:50])
    else:
        monkeypatch.setenv("CDN_TUNE_CACHE", str(path))
    assert torch.equal(word_table(path, {"cut"}).vectors, expected.vectors)
    assert ("Going on without" in caplog.text) == (fault == "unwritable")


def test_the_configuration_chooses_the_fallback(small: Small) -> None:
    small.write("charades_sta_test.txt", "BBBB0 0.0 5.0##the doorcup\nBBBB1 2.0 9.0##person takes a cup.\n")
    zero = load_split(small.config(), "test")
    subword = load_split(small.config(unknown_words="subword"), "test")
    assert zero.vocabulary.unknown == {"doorcup": 1}
    assert subword.vocabulary.unknown == {}
    assert zero.batch([0]).words[0, 1].tolist() == [0, 0, 0]
    assert subword.batch([0]).words[0, 1].tolist() == [1, 0.5, 1]
