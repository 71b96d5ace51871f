from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdn_tune.data.tokenizer import legacy, tokenizer_of, words
from cdn_tune.errors import DataError


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("Cut the bread with a knife.", "cut the bread with a knife"),
        ("the person's phone", "the person 's phone"),
        ("they're done; he\N{RIGHT SINGLE QUOTATION MARK}s not", "they 're done he 's not"),
        ("doesn't, can't, won't", "does n't ca n't wo n't"),
        ("a half-eaten sandwich", "a half eaten sandwich"),
        ("laptop,after he/she", "laptop after he she"),
        ("quarters.(1/4)", "quarters 1/4"),
        ("2.5 cups, 2nd #1", "2.5 cups 2nd 1"),
        ("the 'scrambled' eggs", "the scrambled eggs"),
        ("smiling.the floor,.", "smiling the floor"),
        ("Crème brûlée", "crème brûlée"),
        ("...", ""),
    ],
)
def test_words(query: str, expected: str) -> None:
    assert words(query) == expected.split()


def test_legacy_splits_on_spaces_alone() -> None:
    assert legacy("He cut it with a knife.  Done") == ["he", "cut", "it", "with", "a", "knife.", "done"]


@given(st.text())
def test_words_of_words_are_the_same(query: str) -> None:
    once = words(query)
    assert words(" ".join(once)) == once
    assert all(token and not any(char.isspace() for char in token) for token in once)


@given(st.text(alphabet="ab n't's.,-/ 12"))
def test_words_lose_no_letter(query: str) -> None:
    kept = [char for char in "".join(words(query)) if char.isalnum()]
    assert kept == [char for char in query.lower() if char.isalnum()]


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(DataError, match=r"data\.tokenizer='bpe' is unknown; choose one of words, legacy"):
        tokenizer_of("bpe")
