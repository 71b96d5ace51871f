"""The vocabulary: the words of a dataset's queries and their vectors.

Letters: B queries of a batch, Q of a split, L words of a query, V words with a vector, W word-vector size.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from cdn_tune.data.annotations import Annotation
from cdn_tune.data.tokenizer import tokenizer_of
from cdn_tune.data.vectors import word_table
from cdn_tune.errors import DataError


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """The words that occur and have a vector.

    Attributes:
        tokenizer: Name of the tokenizer.
        rows: Row of each known word in `vectors`, from 1.
        vectors: float32 [V + 1, W]; row 0 is zero and stands for padding and for words without a vector.
        unknown: Words of the queries without a vector, and how often they occur, most frequent first.
        unknown_queries: How many queries have no known word at all (only `legacy` admits any).
    """

    tokenizer: str
    rows: Mapping[str, int]
    vectors: torch.Tensor
    unknown: Mapping[str, int]
    unknown_queries: int

    def ids(self, query: str) -> npt.NDArray[np.int64]:
        """Returns the row in `vectors` of each word of a query, int64 [L]; 0 for a word without a vector."""
        tokens = tokenizer_of(self.tokenizer)(query)
        return np.fromiter((self.rows.get(token, 0) for token in tokens), np.int64, len(tokens))

    def encode(self, query: str) -> torch.Tensor:
        """Returns the word vectors of a query, float32 [L, W]; zero for a word without a vector."""
        return self.vectors[torch.from_numpy(self.ids(query))]

    def table(self, queries: Sequence[str]) -> "QueryTable":
        """Returns queries as rows of word vectors."""
        distinct = {query: self.ids(query) for query in set(queries)}
        ids = [distinct[query] for query in queries]
        lengths = torch.tensor([len(row) for row in ids])
        padded = torch.zeros(len(ids), max(map(len, ids)), dtype=torch.int64)
        padded[torch.arange(padded.shape[1]) < lengths[:, None]] = torch.from_numpy(np.concatenate(ids))
        return QueryTable(self.vectors, padded, lengths)

    def describe(self) -> dict[str, Any]:
        """Returns how many words have a vector, and examples of those that have none, ready for JSON."""
        return {
            "known_words": len(self.rows),
            "unknown_words": len(self.unknown),
            "unknown_examples": list(self.unknown)[:5],
            "unknown_queries": self.unknown_queries,
        }


@dataclass(frozen=True, eq=False)
class QueryTable:
    """Numbered queries, as rows of word vectors.

    Attributes:
        vectors: float32 [V + 1, W]; row 0 is zero.
        ids: Rows in `vectors` of each query's words, int64 [Q, L]; 0 after the last.
        lengths: Words of each query, int64 [Q].
    """

    vectors: torch.Tensor
    ids: torch.Tensor
    lengths: torch.Tensor

    def batch(self, at: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns word vectors, zero after the last word, [B, L, W] and where words are [B, L], of queries `at` [B]."""
        lengths = self.lengths[at]
        longest = int(lengths.max())
        return self.vectors[self.ids[at, :longest]], torch.arange(longest) < lengths[:, None]


def build_vocabulary(
    path: Path,
    word_size: int,
    tokenizer: str,
    annotations: Iterable[Annotation],
    root: Path | None = None,
    unknown_words: str = "zero",
) -> Vocabulary:
    """Returns the vocabulary of some annotations; only vectors of words that occur are kept.

    Args:
        path: Word vectors in the GloVe text format (see `load_vectors`).
        word_size: Expected W.
        tokenizer: Name of the tokenizer. With `words` every query must have a known word; `legacy` keeps the zero
            vectors, as published, unless no query at all has a known word.
        annotations: Their queries.
        root: Folder of the annotation files, for error messages.
        unknown_words: Vector of a word that the file lacks: ``zero``, or the mean of its pieces, ``subword``.

    Raises:
        DataError: If the vectors cannot be read, have another size or are not finite, or a query has no known word.
    """
    tokenize = tokenizer_of(tokenizer)
    queries: dict[str, list[Annotation]] = {}
    for annotation in annotations:
        queries.setdefault(annotation.query, []).append(annotation)
    tokens = {query: tokenize(query) for query in queries}
    counts: Counter[str] = Counter()
    for query, items in queries.items():
        counts.update({token: count * len(items) for token, count in Counter(tokens[query]).items()})
    table = word_table(path, counts, unknown_words)
    require_size(path, table.size, word_size)
    rows = {token: row for row, token in enumerate(table.words, start=1)}
    without = [items for query, items in queries.items() if not any(token in rows for token in tokens[query])]
    unknown_queries = sum(map(len, without))
    if without and (tokenizer == "words" or unknown_queries == sum(map(len, queries.values()))):
        example = without[0][0]
        where = example.id if root is None else root / example.id
        other = "word_vectors to a file that covers it" if tokenizer == "words" else "tokenizer=words"
        what = f"no word of the query {example.query!r} has a vector in {path}"
        raise DataError(f"{where}: {what}; correct or remove the query, or set data.{other}")
    if not torch.isfinite(table.vectors).all():
        bad = table.words[int(torch.isfinite(table.vectors).all(dim=1).logical_not().nonzero()[0])]
        raise DataError(f"{path}: the vector of {bad!r} is not finite; correct the line or download the file again")
    vectors = torch.cat([torch.zeros(1, word_size), table.vectors])
    unknown = {token: count for token, count in counts.most_common() if token not in rows}
    return Vocabulary(tokenizer, rows, vectors, unknown, unknown_queries)


def require_size(path: Path, size: int, word_size: int) -> None:
    """Raises a `DataError` if the word vectors of a file are of another size than is expected."""
    if size != word_size:
        raise DataError(
            f"{path}: word vectors of size {size} but data.word_size={word_size}; "
            f"set data.word_size={size} or data.word_vectors to another file"
        )
