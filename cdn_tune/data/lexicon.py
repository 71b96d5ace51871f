"""The lexicon: every word that has a vector, for queries that no split has; and what stands for it with token features.

Letters: V words, L words of a query, W word-vector size.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch

from cdn_tune.config import DataConfig
from cdn_tune.data.files import locate
from cdn_tune.data.text import TextEncoder
from cdn_tune.data.tokenizer import tokenizer_of
from cdn_tune.data.tokens import LanguageModel, TokenFeatures
from cdn_tune.data.vectors import load_vectors, pieces
from cdn_tune.errors import DataError


class QueryReader(Protocol):
    """What turns a query into what a model reads: a `Lexicon`, a `TextEncoder`, or the `TokenFeatures` of a file."""

    def encode(self, query: str) -> tuple[torch.Tensor, tuple[str, ...]]:
        """Returns a query's word vectors or token features, float32 [L, W], and its words that have none.

        Raises:
            DataError: If it has none at all.
        """


@dataclass(frozen=True, eq=False)
class Lexicon:
    """Words and their vectors, and how a query is read into them; the same as in training.

    Attributes:
        source: Where the vectors come from, for error messages.
        tokenizer: Name of the tokenizer.
        unknown_words: Vector of a word without one: ``zero``, or the mean of its pieces, ``subword``.
        rows: Row of each word in `vectors`.
        vectors: float32 [V, W].
    """

    source: str
    tokenizer: str
    unknown_words: str
    rows: Mapping[str, int]
    vectors: torch.Tensor

    def encode(self, query: str) -> tuple[torch.Tensor, tuple[str, ...]]:
        """Returns a query's word vectors, float32 [L, W], zero for a word without one; and those words, each once.

        Raises:
            DataError: If it has no words, or (with the tokenizer `words`, as in training) none with a vector.
        """
        tokens = tokenizer_of(self.tokenizer)(query)
        if not tokens:
            raise DataError(f"query {query!r}: has no words; write a sentence such as 'a person opens the door'")
        found = [self._vector(token) for token in tokens]
        unknown = tuple(dict.fromkeys(token for token, row in zip(tokens, found, strict=True) if row is None))
        if self.tokenizer == "words" and all(row is None for row in found):
            raise DataError(f"query {query!r}: none of its words has a vector in {self.source}; use other words")
        zero = torch.zeros(self.vectors.shape[1])
        vectors = torch.stack([zero if row is None else row for row in found])
        if not bool(vectors.isfinite().all()):
            raise DataError(f"query {query!r}: a word's vector in {self.source} is not finite; mend that file")
        return vectors, unknown

    def _vector(self, token: str) -> torch.Tensor | None:
        if token in self.rows:
            return self.vectors[self.rows[token]]
        if self.unknown_words == "subword" and (parts := pieces(token, self.rows)):
            return self.vectors[[self.rows[part] for part in parts]].mean(dim=0)
        return None


def open_reader(
    config: DataConfig,
    word_vectors: Path | None = None,
    text_model: str | None = None,
    held: Lexicon | LanguageModel | None = None,
) -> QueryReader:
    """Returns what reads the queries of a model, as its experiment's `data.text` says.

    Args:
        config: Of the model's experiment.
        word_vectors: The word vectors' path now, if no longer that of the experiment.
        text_model: Folder or name of the language model whose token features it was trained on, which then computes
            those of any query; where it is None, a query must be in the experiment's file of token features.
        held: What an exported folder has in place of the experiment's files.

    Raises:
        DataError: If a file or the language model is missing, cannot be read, or is not that of training.
    """
    if config.text == "words":
        if text_model is not None:
            raise DataError(f"--text-model {text_model}: this model reads word vectors; leave the option out")
        return held if isinstance(held, Lexicon) and word_vectors is None else open_lexicon(config, word_vectors)
    if word_vectors is not None:
        raise DataError(
            f"--word-vectors {word_vectors}: this model reads token features; give --text-model DIR instead"
        )
    path = locate(Path(config.root).expanduser(), config.tokens)
    tokens = TokenFeatures(path, config.word_size) if held is None and path.is_file() else None
    trained = held if isinstance(held, LanguageModel) else tokens.model if tokens else None
    if text_model is not None:
        return _encoder(text_model, config.word_size, trained)
    if tokens is None:
        of = f"of {trained.name}" if trained else f"that are no longer in {path}"
        raise DataError(
            f"this model reads token features {of}; name the folder of that language model, which computes those of "
            "any query: --text-model DIR (in Python, text_model=)"
        )
    return tokens


def _encoder(text_model: str, size: int, trained: LanguageModel | None) -> TextEncoder:
    """Returns a language model; raises `DataError` if it is not the one that was trained with, as far as is known."""
    encoder = TextEncoder(text_model)
    found = encoder.model
    if found.size != size or (trained and found.digest != trained.digest):
        name = trained.name if trained else "another"
        raise DataError(
            f"{text_model}: token features of size {found.size} by other weights than those of {name}, size {size}, "
            "that this model was trained with; name the folder of these"
        )
    return encoder


def open_lexicon(config: DataConfig, word_vectors: Path | None = None) -> Lexicon:
    """Returns the lexicon of the word vectors that a model was trained with.

    Args:
        config: Of the model's experiment.
        word_vectors: Their path now, if no longer that of the experiment.

    Raises:
        DataError: If they are missing, cannot be read, or are of another size.
    """
    path = word_vectors or locate(Path(config.root).expanduser(), config.word_vectors)
    if not path.is_file() and not Path(f"{path}.pt").is_file():
        raise DataError(
            f"{path}: no such word vectors, nor {path.name}.pt; name the file with --word-vectors FILE "
            "(in Python, word_vectors=)"
        )
    vectors = load_vectors(path)
    if vectors.dim != config.word_size:
        raise DataError(
            f"{path}: word vectors of size {vectors.dim}, but this model was trained on size {config.word_size}; "
            "name the file it was trained with"
        )
    return Lexicon(str(path), config.tokenizer, config.unknown_words, vectors.stoi, vectors.vectors)
