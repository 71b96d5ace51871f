"""The vocabulary: the words of a dataset's queries and their vectors.

Letters: L words of a query, V words with a vector, W word-vector size.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from cdn_tune.data.annotations import Annotation
from cdn_tune.data.tokenizer import tokenizer_of
from cdn_tune.data.vectors import load_vectors
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


def build_vocabulary(
    path: Path, word_size: int, tokenizer: str, annotations: Iterable[Annotation], root: Path | None = None
) -> Vocabulary:
    """Returns the vocabulary of some annotations; only vectors of words that occur are kept.

    Args:
        path: Word vectors in the GloVe text format (see `load_vectors`).
        word_size: Expected W.
        tokenizer: Name of the tokenizer. With `words` every query must have a known word; `legacy` keeps the zero
            vectors, as published, unless no query at all has a known word.
        annotations: Their queries.
        root: Folder of the annotation files, for error messages.

    Raises:
        DataError: If the vectors cannot be read, have another size or are not finite, or a query has no known word.
    """
    source = load_vectors(path)
    if source.dim != word_size:
        raise DataError(
            f"{path}: word vectors of size {source.dim} but data.word_size={word_size}; "
            f"set data.word_size={source.dim} or data.word_vectors to another file"
        )
    tokenize = tokenizer_of(tokenizer)
    queries: dict[str, list[Annotation]] = {}
    for annotation in annotations:
        queries.setdefault(annotation.query, []).append(annotation)
    counts: Counter[str] = Counter()
    unknown_queries = 0
    example: Annotation | None = None
    for query, asked in queries.items():
        tokens = tokenize(query)
        counts.update({token: count * len(asked) for token, count in Counter(tokens).items()})
        if not any(token in source.stoi for token in tokens):
            unknown_queries += len(asked)
            example = example or asked[0]
            if tokenizer == "words":
                break
    if example is not None and (tokenizer == "words" or unknown_queries == sum(map(len, queries.values()))):
        where = example.id if root is None else root / example.id
        raise DataError(
            f"{where}: no word of the query {example.query!r} has a vector in {path}; correct or remove the query"
            + (", or set data.word_vectors to a file that covers it" if tokenizer == "words" else
               ", or set data.tokenizer=words")
        )  # fmt: skip
    known = sorted(token for token in counts if token in source.stoi)
    vectors = torch.zeros(len(known) + 1, word_size)
    vectors[1:] = source.vectors[[source.stoi[token] for token in known]]
    if not torch.isfinite(vectors).all():
        bad = known[int(torch.isfinite(vectors[1:]).all(dim=1).logical_not().nonzero()[0])]
        raise DataError(f"{path}: the vector of {bad!r} is not finite; correct the line or download the file again")
    rows = {token: row for row, token in enumerate(known, start=1)}
    unknown = {token: count for token, count in counts.most_common() if token not in rows}
    return Vocabulary(tokenizer, rows, vectors, unknown, unknown_queries)
