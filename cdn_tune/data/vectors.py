"""Word vectors: a file in the GloVe text format, and the table of a dataset's own words.

The file is read through torchtext's `Vectors` and its cache. The table is kept in the cache folder, so that a node
reads 400 000 vectors once; every further trial and worker reads the thousand or so that it needs.

Letters: V words with a vector, W word-vector size.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import os
import ssl
import tempfile
import threading
import warnings
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from filelock import FileLock

from cdn_tune.data.cache import user_cache
from cdn_tune.data.files import brief, sampled_sha256, written_whole
from cdn_tune.errors import DataError

if TYPE_CHECKING:
    from torchtext.vocab import Vectors

TABLE_VERSION = 1
SHORTEST_PIECE = 3
_LOG = logging.getLogger(__name__)
_SILENCE = threading.Lock()


def load_vectors(path: Path) -> Vectors:
    """Returns all word vectors of a file: `itos`, `stoi`, `vectors` float32 [words, W] and `dim`.

    torchtext's cache ``NAME.pt`` beside the file is used when it is not older than the file, or alone when there is no
    text file; otherwise it is written: beside the file, or in the user's cache folder when the file's folder cannot be
    written to. Processes that load at once wait for the one that writes, and a killed one leaves nothing half-written.

    Args:
        path: Text file, ``word v1 v2 ...`` per line; a header line of two fields is skipped.

    Raises:
        DataError: If neither file nor cache exists, or they cannot be read as word vectors.
    """
    beside = Path(f"{path}.pt")
    if not path.is_file():
        if not beside.is_file():
            raise DataError(f"{path}: no such file, nor {beside.name}; set data.word_vectors to a GloVe text file")
        vectors = _cached(path, beside.parent)
        if vectors is None:
            raise DataError(f"{beside}: not a torchtext vector cache; delete it and put {path.name} there")
        return vectors
    if path.stat().st_size == 0:
        raise DataError(f"{path}: the word-vector file is empty; download or copy it again")
    if _fresh(path, beside) and (vectors := _cached(path, beside.parent)) is not None:
        return vectors
    folder = path.parent if os.access(path.parent, os.W_OK) else user_cache() / "vectors" / _key(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        cached = folder / f"{path.name}.pt"
        with FileLock(f"{cached}.lock"):
            if _fresh(path, cached) and (vectors := _cached(path, folder)) is not None:
                return vectors
            return _parse(path, cached)
    except OSError as error:
        raise DataError(
            f"{folder}: the word-vector cache cannot be written ({error.strerror}); "
            "free space there or set CDN_TUNE_CACHE to a writable folder"
        ) from None


def _key(path: Path) -> str:
    stat = path.stat()
    return hashlib.sha256(f"{path.resolve()}|{stat.st_size}|{stat.st_mtime_ns}".encode()).hexdigest()[:16]


def _fresh(path: Path, cached: Path) -> bool:
    return cached.is_file() and cached.stat().st_mtime_ns >= path.stat().st_mtime_ns


def _parse(path: Path, cached: Path) -> Vectors:
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=cached.parent) as folder:
        try:
            with _quiet() as vocab:
                vectors = vocab.Vectors(str(path), cache=folder)
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            fault = f"not word vectors in the GloVe text format ({brief(error)})"
            raise DataError(f"{path}: {fault}; use one 'word v1 v2 ...' a line") from None
        Path(folder, cached.name).replace(cached)
    return _without_bom(vectors)


def _cached(path: Path, folder: Path) -> Vectors | None:
    """Returns the vectors from ``folder/NAME.pt``, or None if that file is damaged."""
    try:
        with _quiet() as vocab:
            vectors = vocab.Vectors(path.name, cache=str(folder))
    except Exception:  # Unpickling damaged bytes raises almost anything; the text file, if any, is read instead.
        return None
    return _without_bom(vectors) if _is_sound(vectors) else None


def _is_sound(vectors: Vectors) -> bool:
    """Returns whether what a cache held are words, each with a vector."""
    words, rows, values = vectors.itos, vectors.stoi, vectors.vectors
    return (
        isinstance(values, torch.Tensor)
        and values.layout == torch.strided
        and values.dtype == torch.float32
        and values.ndim == 2
        and isinstance(words, list)
        and len(words) == len(values) > 0
        and all(isinstance(word, str) for word in words)
        and isinstance(rows, dict)
        and all(isinstance(row, int) and 0 <= row < len(words) for row in rows.values())
        and set(rows) == set(words)
        and vectors.dim == values.shape[1]
    )


def _without_bom(vectors: Vectors) -> Vectors:
    if vectors.itos and (first := vectors.itos[0]).startswith("\ufeff"):
        vectors.itos[0] = first[1:]
        vectors.stoi[first[1:]] = vectors.stoi.pop(first)
    return vectors


@contextmanager
def _quiet() -> Iterator[Any]:
    """Yields `torchtext.vocab`, with its progress bar, log lines and warnings kept off the screen.

    Its switching off of TLS checks is undone. It is imported here, since that takes longer than reading the table that
    nearly every process finds in the cache.
    """
    with _SILENCE:
        context = ssl._create_default_https_context
        from torchtext import vocab

        log, bar = logging.getLogger(vocab.__name__), vocab.tqdm
        level = log.level
        vocab.tqdm = functools.partial(bar, disable=True)
        log.setLevel(logging.ERROR)
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "Detected pickle protocol", UserWarning)
                yield vocab
        finally:
            vocab.tqdm = bar
            log.setLevel(level)
            ssl._create_default_https_context = context


@dataclass(frozen=True, eq=False)
class WordTable:
    """Sorted words and their vectors, float32 [V, W]."""

    words: tuple[str, ...]
    vectors: torch.Tensor

    @property
    def size(self) -> int:
        """Size of a vector W."""
        return int(self.vectors.shape[1])


def word_table(path: Path, tokens: Collection[str], unknown: str = "zero") -> WordTable:
    """Returns the vectors that a file has for some words, from the cache if they were needed before.

    Of several processes one reads the file and the others wait. Where the cache cannot be used, the file is read.

    Args:
        path: Word vectors in the GloVe text format (see `load_vectors`).
        tokens: The words.
        unknown: ``zero`` leaves out words that the file lacks; ``subword`` gives them the mean of their pieces (see
            `pieces`), and leaves out those without any.

    Raises:
        DataError: If the vectors cannot be read.
    """
    source = path if path.is_file() else Path(f"{path}.pt")
    if not source.is_file():
        return _select(load_vectors(path), tokens, unknown)
    stat = source.stat()
    facts = [TABLE_VERSION, stat.st_size, stat.st_mtime_ns, sampled_sha256(source), unknown, *sorted(tokens)]
    key = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:24]
    cached = user_cache() / "words" / f"{key}.npz"
    if (table := _read(cached)) is not None:
        return table
    try:
        cached.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(cached.with_suffix(".lock")):
            if (table := _read(cached)) is None:
                table = _select(load_vectors(path), tokens, unknown)
                with written_whole(cached) as partial, partial.open("wb") as file:
                    np.savez(file, words=np.array(table.words, dtype=np.str_), vectors=table.vectors.numpy())
            return table
    except OSError as error:
        _LOG.warning("%s: word vectors are not cached: %s. Going on without", cached.parent, error.strerror or error)
        return _select(load_vectors(path), tokens, unknown)


def pieces(token: str, known: Mapping[str, int]) -> list[str]:
    """Returns the known words a word is made of: from its left, the longest each time, of at least three letters.

    ``cuttingboard`` gives ``cutting`` and ``board``. Letters that begin no known word are passed over.
    """
    found = []
    at = 0
    while at + SHORTEST_PIECE <= len(token):
        for end in range(len(token), at + SHORTEST_PIECE - 1, -1):
            if token[at:end] in known:
                found.append(token[at:end])
                at = end
                break
        else:
            at += 1
    return found


def _select(source: Vectors, tokens: Collection[str], unknown: str) -> WordTable:
    rows: dict[str, torch.Tensor] = {}
    for token in sorted(tokens):
        if token in source.stoi:
            rows[token] = source.vectors[source.stoi[token]]
        elif unknown == "subword" and (parts := pieces(token, source.stoi)):
            rows[token] = source.vectors[[source.stoi[part] for part in parts]].mean(dim=0)
    vectors = torch.stack(list(rows.values())) if rows else torch.zeros(0, source.dim)
    return WordTable(tuple(rows), vectors)


def _read(path: Path) -> WordTable | None:
    """Returns a cached table; None if it is missing or damaged."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            words, vectors = tuple(map(str, arrays["words"])), torch.from_numpy(arrays["vectors"])
    except Exception:  # zipfile and numpy raise almost anything on damaged bytes; the source is read instead
        return None
    return WordTable(words, vectors) if vectors.ndim == 2 and len(words) == len(vectors) else None
