"""Tokenizers: a query as the words that are looked up in the word vectors."""

import re
from collections.abc import Callable

from cdn_tune.errors import DataError

Tokenizer = Callable[[str], list[str]]

# In order: a fraction or decimal, a word before n't, n't itself, a clitic, a word.
_WORD = re.compile(
    r"""\d+(?:[./]\d+)+
      | [^\W_]+?(?=n't(?![^\W_]))
      | n't(?![^\W_])
      | '(?:s|re|ve|ll|d|m)(?![^\W_])
      | [^\W_]+""",
    re.VERBOSE,
)
_APOSTROPHES = str.maketrans({"\N{RIGHT SINGLE QUOTATION MARK}": "'", "\N{MODIFIER LETTER APOSTROPHE}": "'"})


def words(query: str) -> list[str]:
    """Returns the lower-cased words of a query as GloVe spells them, punctuation left out.

    ``knife.`` gives ``knife``; ``person's`` gives ``person 's`` and ``don't`` gives ``do n't``, all of which have
    vectors; ``half-eaten`` and ``he/she`` give their parts, since few compounds have a vector and nearly all parts
    have one; ``1/2`` stays whole. Tokenizing the joined words again changes nothing.
    """
    return _WORD.findall(query.lower().translate(_APOSTROPHES))


def legacy(query: str) -> list[str]:
    """Returns the lower-cased query split on white space alone, as the published loaders do.

    Punctuation stays on its word: ``knife.`` is one token, and has no word vector.
    """
    return query.lower().split()


TOKENIZERS: dict[str, Tokenizer] = {"words": words, "legacy": legacy}


def tokenizer_of(name: str) -> Tokenizer:
    """Returns a tokenizer by its name.

    Raises:
        DataError: If the name is unknown.
    """
    try:
        return TOKENIZERS[name]
    except KeyError:
        raise DataError(f"data.tokenizer={name!r} is unknown; choose one of {', '.join(TOKENIZERS)}") from None
