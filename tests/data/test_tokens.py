from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from cdn_tune.config import AugmentConfig, DataConfig
from cdn_tune.data.augment import Augmented
from cdn_tune.data.dataset import Batch, load_split, load_splits
from cdn_tune.data.doctor import examine
from cdn_tune.data.fingerprint import fingerprint, is_planted
from cdn_tune.data.tokens import LanguageModel, TokenFeatures, name_of, write_tokens
from cdn_tune.errors import DataError
from cdn_tune.training.runs.run_folder import changed_files

from .conftest import Small

MODEL = LanguageModel("bert", "digest", 6)
OPENS, TAKES = "a person opens the door.", "person takes a cup."


def values_of(text: str, dtype: str = "float32") -> Any:
    rng = np.random.default_rng(len(text))
    return rng.standard_normal((len(text.split()) + 2, MODEL.size)).astype(dtype)


def write(path: Path, *texts: str, dtype: str = "float32") -> Path:
    write_tokens(path, MODEL, ((text, values_of(text, dtype)) for text in texts))
    return path


@pytest.fixture
def tokens(small: Small) -> Path:
    small.train[0] = "AAAA0 1.0 3.0##person takes a cup."
    small.save()
    (small.root / "glove.txt").unlink()  # no word vectors are needed
    return write(small.root / "tokens.hdf5", OPENS, TAKES)


@pytest.fixture
def config(small: Small, tokens: Path) -> DataConfig:
    return small.config(text="tokens", word_size=6, val_fraction=0.3)


@pytest.mark.parametrize("dtype", ["float32", "float16", "float64", ">f4"])
def test_a_batch_has_the_features_of_its_queries(config: DataConfig, tokens: Path, dtype: str) -> None:
    write(tokens, OPENS, TAKES, dtype=dtype)
    dataset = load_split(config, "train")
    batch = dataset.batch(range(len(dataset)))
    assert (batch.words.dtype, batch.words.shape) == (torch.float32, (len(dataset), 7, 6))
    for row, item in enumerate(dataset.annotations):
        expected = torch.from_numpy(values_of(item.query, dtype).astype(np.float32))
        assert torch.equal(batch.words[row, : len(expected)], expected)
        assert not batch.words[row, len(expected) :].any()
        assert batch.word_mask[row].tolist() == [place < len(expected) for place in range(7)]
    assert dataset.describe()["text_model"] == "bert"


def test_a_query_asked_in_anothers_place_has_its_own_features(config: DataConfig) -> None:
    dataset = load_split(config, "train")
    at = list(range(len(dataset)))
    plain, batch = dataset.batch(at), Augmented(dataset, AugmentConfig(negative=1), seed=0, epoch=1).batch(at)
    for row, item in enumerate(dataset.annotations):
        (asked,) = {OPENS, TAKES} - {item.query}
        place = [other.query for other in dataset.annotations].index(asked)
        assert torch.equal(batch.words[row], plain.words[place])
        assert torch.equal(batch.word_mask[row], plain.word_mask[place])
    assert not batch.moments.any()


def test_a_pickled_dataset_gives_the_same_batches(config: DataConfig) -> None:
    dataset = load_split(config, "train")
    wanted = dataset.batch([1, 0])
    content = pickle.dumps(dataset)
    assert len(content) < 20_000  # the map stays where it is
    for field in fields(Batch):
        assert torch.equal(getattr(pickle.loads(content).batch([1, 0]), field.name), getattr(wanted, field.name))


def test_splits_share_the_file(config: DataConfig) -> None:
    splits = load_splits(config, ("train", "val", "test"))
    assert len({id(part.vocabulary) for part in splits.values()}) == 1


def test_what_others_have_besides_is_written_too(tmp_path: Path) -> None:
    first = write(tmp_path / "first.hdf5", "one", "both")
    write_tokens(tmp_path / "all.hdf5", MODEL, [("both", np.zeros((1, 6), np.float32))], first)
    features = TokenFeatures(tmp_path / "all.hdf5")
    assert features.check(["one", "both"], tmp_path) == {}
    assert not features.encode("both")[0].any()
    assert torch.equal(features.encode("one")[0], torch.from_numpy(values_of("one")))


def test_any_text_is_stored(tmp_path: Path) -> None:
    texts = ["", "ein Kästchen\0\n", "\ud800", "x" * 40_000]
    features = TokenFeatures(write(tmp_path / "odd.hdf5", *texts))
    features.require(texts, tmp_path)
    with pytest.raises(DataError) as error:
        features.require(["y" * 40_000], tmp_path)
    assert len(str(error.value)) < 500


def replace(name: str, data: Any, text: str = OPENS, **options: Any) -> Callable[[Any], None]:
    def damage(file: Any) -> None:
        del file[name]
        file.create_dataset(name, data=data, **options).attrs["text"] = f'"{text}"'

    return damage


def rename(file: Any) -> None:
    file.move(name_of(OPENS), "opens")
    file.move(name_of(TAKES), name_of(OPENS))
    file.move("opens", name_of(TAKES))


def attribute(name: str, value: Any) -> Callable[[Any], None]:
    def damage(file: Any) -> None:
        if value is None:
            del file.attrs[name]
        else:
            file.attrs[name] = value

    return damage


def link(file: Any) -> None:
    del file[name_of(OPENS)]
    file[name_of(OPENS)] = h5py.ExternalLink("other.hdf5", "x")


GOOD = values_of(OPENS)
FAULTS: dict[str, tuple[Callable[[Any], None], str]] = {
    "missing": (lambda file: file.pop(name_of(OPENS)), "1 of 2 queries ('a person opens the door.'), which are new or "
                "have changed; add them with: cdn-tune data text"),
    "size": (attribute("size", 5), "token features of size 5 but data.word_size=6; set data.word_size=5"),
    "size of one": (replace(name_of(OPENS), np.ones((4, 5))), "shape [4, 5] of float64, expected floats [tokens, 6]"),
    "too many tokens": (replace(name_of(OPENS), np.ones((4097, 6))), "shape [4097, 6]"),
    "no token": (replace(name_of(OPENS), np.ones((0, 6))), "shape [0, 6]"),
    "integers": (replace(name_of(OPENS), np.ones((4, 6), int)), "of int64, expected floats"),
    "another text": (rename, "are those of another text"),
    "text without its attribute": (replace(name_of(OPENS), GOOD, "x"), "are those of another text"),
    "chunks": (replace(name_of(OPENS), GOOD, chunks=(2, 6)), "h5repack -l CONTI"),
    "another file": (link, "other files would be read"),
    "another kind of file": (attribute("cdn_tune_tokens", None), "is no file of token features"),
    "another format": (attribute("cdn_tune_tokens", 2), "of format '2', but this cdn-tune reads 1"),
    "no model": (attribute("model", None), "model, model_digest and size are damaged"),
    "size in words": (attribute("size", "six"), "model, model_digest and size are damaged"),
}  # fmt: skip


@pytest.mark.parametrize(("damage", "message"), FAULTS.values(), ids=FAULTS)
def test_what_does_not_fit_is_one_line(
    config: DataConfig, tokens: Path, damage: Callable[[Any], None], message: str
) -> None:
    with h5py.File(tokens, "r+") as file:
        damage(file)
    with pytest.raises(DataError) as error:
        load_split(config, "train").batch(range(4))
    assert message in str(error.value)
    assert str(tokens) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_file_that_is_absent_or_damaged_is_one_line(config: DataConfig, tokens: Path) -> None:
    tokens.write_bytes(tokens.read_bytes()[:3000])
    with pytest.raises(DataError, match=r"tokens\.hdf5: cannot be"):
        load_split(config, "train")
    tokens.unlink()
    with pytest.raises(DataError, match=r"data\.tokens=tokens\.hdf5: no file .* cdn-tune data text .* --model DIR"):
        load_split(config, "train")


def test_values_that_are_not_finite_and_a_file_that_changes_are_told(config: DataConfig, tokens: Path) -> None:
    with h5py.File(tokens, "r+") as file:
        file[name_of(OPENS)][1, 1] = np.nan
    dataset = load_split(config, "train")
    with pytest.raises(DataError, match=r"features of 'a person opens the door\.' have a value that is not finite"):
        dataset.batch(range(4))
    later = pickle.loads(pickle.dumps(dataset))
    write(tokens, OPENS, TAKES, "another")
    with pytest.raises(DataError, match="has changed since"):
        later.batch([0])


def test_the_file_is_the_datas(config: DataConfig, tokens: Path) -> None:
    before = fingerprint(config)
    assert set(before["files"]) == {"annotations", "features", "tokens"}
    assert not is_planted(config)
    tokens.rename(tokens.with_name("moved.hdf5"))
    moved = fingerprint(config.model_copy(update={"tokens": "moved.hdf5"}))
    assert changed_files(before, moved) == []
    write(tokens, OPENS, TAKES, "another")
    assert changed_files(before, fingerprint(config)) == ["tokens.hdf5"]


def test_the_doctor_reads_them(small: Small, tokens: Path) -> None:
    report = examine(small.root, text="tokens", val_fraction=0.3)
    assert not report.fails
    assert (report.words["model"], report.words["size"], report.words["with_features"]) == ("bert", 6, 2)
    assert not examine(small.root, text="tokens", val_fraction=0.3, word_size=6).fails
    (other,) = examine(small.root, text="tokens", val_fraction=0.3, word_size=300).findings[:1]
    assert other.level == "error"
    assert "token features of size 6 but data.word_size=300" in other.what
    assert other.remedy.startswith("set data.word_size=6")
    with h5py.File(tokens, "r+") as file:
        file[name_of(TAKES)][1, 1] = np.inf
        del file[name_of(OPENS)]
    (missing, infinite) = sorted(
        (finding for finding in examine(small.root, text="tokens").findings if finding.area == "words"),
        key=lambda finding: finding.what,
        reverse=True,
    )
    assert (missing.count, missing.remedy.split(" ROOT")[0][:33]) == (5, "add them with: cdn-tune data text")
    assert "not finite" in infinite.what
    assert infinite.examples[0] == "charades_sta_train.txt:1"
    tokens.unlink()
    assert "no token features" in examine(small.root, text="tokens").findings[0].what
