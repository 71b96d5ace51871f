"""The word table: vectors of the words a dataset uses, taken from a large file once and kept in the cache folder.

So a node reads 400 000 word vectors once; every further trial and worker reads the thousand or so that it needs.

Letters: V words with a vector, W word-vector size.
"""

import hashlib
import json
import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torchtext.vocab
from filelock import FileLock

from cdn_tune.data.cache import user_cache
from cdn_tune.data.files import sampled_sha256, written_whole
from cdn_tune.data.vectors import load_vectors

VERSION = 1
SHORTEST_PIECE = 3
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class WordTable:
    """Vectors of some words.

    Attributes:
        words: Those that have one, sorted.
        vectors: float32 [V, W], in the order of `words`.
    """

    words: tuple[str, ...]
    vectors: torch.Tensor

    @property
    def size(self) -> int:
        """Size of a vector W."""
        return int(self.vectors.shape[1])


def word_table(path: Path, tokens: Collection[str], unknown: str = "zero") -> WordTable:
    """Returns the vectors that a file has for some words, from the cache where they were asked for before.

    Of processes that ask at once one reads the file and the others wait. Where the cache cannot be used, the file is
    read.

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
    facts = [VERSION, stat.st_size, stat.st_mtime_ns, sampled_sha256(source), unknown, *sorted(tokens)]
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


def _select(source: torchtext.vocab.Vectors, tokens: Collection[str], unknown: str) -> WordTable:
    rows: dict[str, torch.Tensor] = {}
    for token in sorted(tokens):
        if token in source.stoi:
            rows[token] = source.vectors[source.stoi[token]]
        elif unknown == "subword" and (parts := pieces(token, source.stoi)):
            rows[token] = source.vectors[[source.stoi[part] for part in parts]].mean(dim=0)
    vectors = torch.stack(list(rows.values())) if rows else torch.zeros(0, source.dim)
    return WordTable(tuple(rows), vectors)


def _read(path: Path) -> WordTable | None:
    """Returns a cached table; None if it is not there or damaged."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            words, vectors = tuple(map(str, arrays["words"])), torch.from_numpy(arrays["vectors"])
    except Exception:  # zipfile and numpy raise almost anything on damaged bytes; the source is read instead
        return None
    return WordTable(words, vectors) if vectors.ndim == 2 and len(words) == len(vectors) else None
