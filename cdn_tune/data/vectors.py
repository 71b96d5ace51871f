"""Word vectors in the GloVe text format, read through torchtext's `Vectors` and its cache."""

import functools
import hashlib
import logging
import os
import ssl
import tempfile
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torchtext.vocab
from filelock import FileLock

from cdn_tune.data.cache import user_cache
from cdn_tune.errors import DataError

_SILENCE = threading.Lock()


def load_vectors(path: Path) -> torchtext.vocab.Vectors:
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


def _parse(path: Path, cached: Path) -> torchtext.vocab.Vectors:
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=cached.parent) as folder:
        try:
            with _quiet():
                vectors = torchtext.vocab.Vectors(str(path), cache=folder)
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            detail = " ".join(str(error).split())[:160]
            raise DataError(
                f"{path}: not word vectors in the GloVe text format ({detail}); use one 'word v1 v2 ...' a line"
            ) from None
        Path(folder, cached.name).replace(cached)
    return _without_bom(vectors)


def _cached(path: Path, folder: Path) -> torchtext.vocab.Vectors | None:
    """Returns the vectors from ``folder/NAME.pt``, or None if that file is damaged."""
    try:
        with _quiet():
            vectors = torchtext.vocab.Vectors(path.name, cache=str(folder))
    except Exception:  # Unpickling damaged bytes raises almost anything; the text file, if any, is read instead.
        return None
    return _without_bom(vectors) if isinstance(vectors.vectors, torch.Tensor) and vectors.itos else None


def _without_bom(vectors: torchtext.vocab.Vectors) -> torchtext.vocab.Vectors:
    if vectors.itos and (first := vectors.itos[0]).startswith("\ufeff"):
        vectors.itos[0] = first[1:]
        vectors.stoi[first[1:]] = vectors.stoi.pop(first)
    return vectors


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps torchtext's progress bar, log lines and warnings off the screen; undoes its switching off of TLS checks."""
    log = logging.getLogger(torchtext.vocab.__name__)
    with _SILENCE:
        bar: Any = torchtext.vocab.tqdm
        level, context = log.level, ssl._create_default_https_context
        torchtext.vocab.tqdm = functools.partial(bar, disable=True)
        log.setLevel(logging.ERROR)
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "Detected pickle protocol", UserWarning)
                yield
        finally:
            torchtext.vocab.tqdm = bar
            log.setLevel(level)
            ssl._create_default_https_context = context
