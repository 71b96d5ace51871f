from __future__ import annotations

import logging
import os
import pickle
import ssl
import threading
from pathlib import Path

import pytest
import torch
import torchtext.vocab

from cdn_tune.data import vectors as module
from cdn_tune.data.vectors import load_vectors, user_cache
from cdn_tune.errors import DataError

TEXT = "the 1 2 3\nknife 4 5 6\n's -1 0 .5\n"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "glove.3d.txt"
    path.write_text(TEXT)
    return path


def test_reads_the_text_and_then_its_cache(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = load_vectors(path)
    assert (first.itos, first.dim) == (["the", "knife", "'s"], 3)
    assert Path(f"{path}.pt").is_file()
    monkeypatch.setattr(module, "_parse", lambda *_: pytest.fail("parsed again"))
    second = load_vectors(path)
    assert second.stoi == first.stoi
    assert torch.equal(second.vectors, torch.tensor([[1, 2, 3], [4, 5, 6], [-1, 0, 0.5]]))


def test_the_cache_alone_is_enough(path: Path) -> None:
    load_vectors(path)
    path.unlink()
    assert load_vectors(path).itos == ["the", "knife", "'s"]


def test_a_cache_older_than_the_text_is_written_anew(path: Path) -> None:
    load_vectors(path)
    path.write_text("fork 7 8 9\n")
    later = Path(f"{path}.pt").stat().st_mtime + 10
    os.utime(path, (later, later))
    assert load_vectors(path).itos == ["fork"]


@pytest.mark.parametrize("content", [b"", b"damaged", pickle.dumps(3)])
def test_a_damaged_cache_is_written_anew(path: Path, content: bytes) -> None:
    load_vectors(path)
    Path(f"{path}.pt").write_bytes(content)
    assert load_vectors(path).itos == ["the", "knife", "'s"]
    path.unlink()
    Path(f"{path}.pt").write_bytes(content)
    with pytest.raises(DataError, match="not a torchtext vector cache; delete it"):
        load_vectors(path)


def test_a_truncated_cache_is_written_anew(path: Path) -> None:
    load_vectors(path)
    cached = Path(f"{path}.pt")
    cached.write_bytes(cached.read_bytes()[: cached.stat().st_size // 2])
    assert load_vectors(path).itos == ["the", "knife", "'s"]


def test_crlf_bom_and_header_change_nothing(path: Path) -> None:
    path.write_bytes(b"3 3\r\n" + TEXT.replace("\n", "\r\n").encode())
    assert load_vectors(path).itos == ["the", "knife", "'s"]
    path.with_name("bom.txt").write_bytes(b"\xef\xbb\xbf" + TEXT.encode())
    for _ in ("text", "cache"):
        assert load_vectors(path.with_name("bom.txt")).stoi["the"] == 0


@pytest.mark.parametrize("text", ["the 1 2 3\nknife 4 5\n", "the 1 2 3\nknife 4 five 6\n", "no\nvectors\n", "\n"])
def test_what_is_no_vector_file_is_named(path: Path, text: str) -> None:
    path.write_text(text)
    with pytest.raises(DataError, match=r"glove\.3d\.txt: not word vectors in the GloVe text format") as error:
        load_vectors(path)
    assert "\n" not in str(error.value)
    assert sorted(item.name for item in path.parent.iterdir() if not item.name.endswith(".lock")) == [path.name]


@pytest.mark.parametrize(("content", "part"), [(None, "no such file"), ("", "is empty")])
def test_a_missing_or_empty_file_is_named(path: Path, content: str | None, part: str) -> None:
    path.unlink()
    if content is not None:
        path.write_text(content)
    with pytest.raises(DataError, match=part):
        load_vectors(path)


def test_a_read_only_folder_is_cached_elsewhere(
    path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("CDN_TUNE_CACHE", str(cache))
    monkeypatch.setattr(os, "access", lambda *_: False)
    load_vectors(path)
    assert [item.name for item in path.parent.iterdir()] == [path.name]
    assert [item.name for item in cache.rglob("*.pt")] == ["glove.3d.txt.pt"]
    path.write_text("fork 7 8 9 9\n")
    assert load_vectors(path).itos == ["fork"]


def test_the_cache_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CDN_TUNE_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert user_cache() == Path("/x/cdn-tune")
    monkeypatch.setenv("CDN_TUNE_CACHE", "/y")
    assert user_cache() == Path("/y")


def test_nothing_is_printed_and_global_state_is_restored(path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    log = logging.getLogger("torchtext.vocab")
    before = (ssl._create_default_https_context, torchtext.vocab.tqdm, log.level)
    path.write_text("3 3\n" + TEXT)
    load_vectors(path)
    load_vectors(path)
    assert capfd.readouterr() == ("", "")
    assert (ssl._create_default_https_context, torchtext.vocab.tqdm, log.level) == before


def test_one_of_many_writes_the_cache(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parsed: list[Path] = []
    parse = module._parse

    def counted(*args: Path) -> torchtext.vocab.Vectors:
        parsed.append(args[0])
        return parse(*args)

    monkeypatch.setattr(module, "_parse", counted)
    found: list[list[str]] = []
    threads = [threading.Thread(target=lambda: found.append(load_vectors(path).itos)) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [["the", "knife", "'s"]] * 6
    assert len(parsed) == 1
