from __future__ import annotations

from pathlib import Path

import pytest
import torch

from cdn_tune.data.annotations import Annotation
from cdn_tune.data.vocabulary import build_vocabulary
from cdn_tune.errors import DataError


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "glove.txt"
    path.write_text("the 1 2 3\nknife 4 5 6\nunused 9 9 9\n's 0 0 1\nbroken 1 nan 1\n")
    return path


def asked(*queries: str) -> list[Annotation]:
    return [Annotation(f"train.txt:{n}", "v", 9, 0, 5, query) for n, query in enumerate(queries, start=1)]


def test_only_words_that_occur_are_kept(path: Path) -> None:
    vocabulary = build_vocabulary(path, 3, "words", asked("The knife's blade.", "the blade", "the blade"))
    assert set(vocabulary.rows) == {"the", "knife", "'s"}
    assert vocabulary.unknown == {"blade": 3}
    assert vocabulary.vectors.shape == (4, 3)
    assert not vocabulary.vectors[0].any()


def test_encode_gives_a_vector_per_word_and_zero_for_unknown_ones(path: Path) -> None:
    vocabulary = build_vocabulary(path, 3, "words", asked("the knife"))
    encoded = vocabulary.encode("Knife, the unseen knife!")
    assert torch.equal(encoded, torch.tensor([[4.0, 5, 6], [1, 2, 3], [0, 0, 0], [4, 5, 6]]))
    assert vocabulary.encode("?").shape == (0, 3)


@pytest.mark.parametrize("query", ["chop", "..."])
def test_a_query_without_a_known_word_is_named(path: Path, query: str) -> None:
    with pytest.raises(DataError) as error:
        build_vocabulary(path, 3, "words", asked("the knife", query), Path("root"))
    message = str(error.value)
    assert all(part in message for part in ("root/train.txt:2", repr(query), "glove.txt", "correct or remove"))


def test_legacy_keeps_such_queries_as_published_and_counts_them(path: Path) -> None:
    vocabulary = build_vocabulary(path, 3, "legacy", asked("the knife", "Knife.", "Knife."))
    assert vocabulary.unknown_queries == 2
    assert not vocabulary.encode("Knife.").any()


def test_legacy_refuses_vectors_that_cover_no_query(path: Path) -> None:
    with pytest.raises(DataError, match=r"'Knife\.' has a vector .* set data\.tokenizer=words"):
        build_vocabulary(path, 3, "legacy", asked("Knife.", "chop"))


def test_another_size_is_refused_with_the_right_one(path: Path) -> None:
    with pytest.raises(DataError, match=r"size 3 but data\.word_size=300; set data\.word_size=3 or"):
        build_vocabulary(path, 300, "words", asked("the knife"))


def test_a_vector_that_is_not_finite_is_named(path: Path) -> None:
    build_vocabulary(path, 3, "words", asked("the knife"))
    with pytest.raises(DataError, match=r"the vector of 'broken' is not finite"):
        build_vocabulary(path, 3, "words", asked("the broken knife"))
