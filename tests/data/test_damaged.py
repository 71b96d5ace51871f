"""Data damaged in any way: success, or one line that names a file. Files are mutated from good ones by a seed."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from cdn_tune.config import DataConfig
from cdn_tune.data.dataset import load_splits
from cdn_tune.data.doctor import examine
from cdn_tune.data.fingerprint import fingerprint
from cdn_tune.errors import CdnTuneError

from .conftest import Small, config_of

FEW, MANY = range(5), range(5, 200)  # seeds: of every suite, of `make test-all`
VALUES = [
    "null",
    "true",
    "-1",
    "1e999",
    "NaN",
    "1" * 400,
    "1" * 5000,
    '""',
    '"\\ud800"',
    '"a\\u0000"',
    "[]",
    "{}",
    "[" * 2000,
]

Content = dict[str, bytes]


def charades(root: Path) -> DataConfig:
    return Small(root).config()


def lined(root: Path) -> DataConfig:
    Small(root)
    lines = [
        json.dumps(
            {"video": f"AAAA{n}", "duration": 20, "start": 1, "end": 4.5 + n, "query": "a person opens the door"}
        )
        for n in range(6)
    ]
    for split, some in (("train", lines), ("test", lines[:2])):
        (root / f"{split}.jsonl").write_text("\n".join(some) + "\n")
    return _only(root, "jsonl")


def videos(root: Path, dataset: str) -> DataConfig:
    Small(root)
    times = {"fps": 10.0, "num_frames": 200} if dataset == "tacos" else {"duration": 20.0}
    entry = {**times, "timestamps": [[1, 15], [2, 9]], "sentences": ["a person opens the door", "person takes a cup"]}
    for split, first in (("train", 0), ("val", 4), ("test", 5)):
        (root / f"{split}.json").write_text(json.dumps({f"AAAA{n}": entry for n in range(first, min(first + 4, 6))}))
    return _only(root, dataset)


def _only(root: Path, dataset: str) -> DataConfig:
    for path in [*root.glob("[Cc]harades_*")]:
        path.unlink()
    config = config_of(root, dataset=dataset, features="vgg_rgb_features.hdf5", feature_size=4, frames=8, word_size=3)
    return config.model_copy(update={"word_vectors": "glove.txt"})


LAYOUTS: dict[str, Callable[[Path], DataConfig]] = {
    "charades_sta": charades,
    "jsonl": lined,
    "tacos": lambda root: videos(root, "tacos"),
    "activitynet": lambda root: videos(root, "activitynet"),
}


def damage(content: bytes, generator: random.Random, text: bool) -> bytes:
    """Returns a file's content with one to three faults."""
    data = bytearray(content)
    for _ in range(generator.randint(1, 3)):
        at = generator.randrange(len(data) + 1)
        end = min(len(data), at + generator.choice([1, 2, 8, 64, 4096]))
        kind = generator.randrange(7 if text else 5)
        if kind == 0:
            del data[at:]
        elif kind == 1:
            del data[at:end]
        elif kind == 2:
            data[at:end] = generator.randbytes(end - at)
        elif kind == 3:
            data[at:at] = data[at:end] * generator.choice([1, 50])
        elif kind == 4 and at < len(data):
            data[at] = generator.choice([0, 0xFF, 0x7F, data[at] ^ 1 << generator.randrange(8)])
        elif kind == 5:
            data[at:end] = generator.choice(VALUES).encode()
        elif kind == 6:
            spots = [spot for spot, byte in enumerate(data) if 0x30 <= byte <= 0x39]
            spot = generator.choice(spots or [0])
            data[spot : spot + 1] = generator.choice(VALUES).encode()
    return bytes(data)


def refusal(read: Callable[[], object]) -> str:
    """Returns the error of something that reads data: one of ours, of exit code 2, on one line; "" if there is none."""
    try:
        read()
    except CdnTuneError as found:
        error = found
    else:
        return ""
    assert error.exit_code == 2
    assert "\n" not in str(error)
    str(error).encode()
    return str(error)


def use(config: DataConfig) -> list[str]:
    """Returns the errors of everything that reads a data folder."""
    errors = (
        refusal(lambda: load_splits(config, ("train", "val", "test"))),
        refusal(lambda: fingerprint(config)),
        refusal(lambda: examine(Path(config.root), config.dataset, config.features, config.word_vectors)),
    )
    return [error for error in errors if error]


def try_all(root: Path, layout: str, seeds: range) -> int:
    """Returns how many of the damaged folders were refused."""
    refused = 0
    good = root / "good"
    good.mkdir()
    config = LAYOUTS[layout](good)
    assert use(config) == []
    names = sorted(path.name for path in good.iterdir() if path.is_file() and path.suffix != ".lock")
    for seed in seeds:
        generator = random.Random(f"{layout} {seed}")
        bad = root / str(seed)
        shutil.copytree(good, bad)
        name = names[seed % len(names)]
        content = damage((bad / name).read_bytes(), generator, text=not name.endswith((".hdf5", ".pt")))
        (bad / name).write_bytes(content)
        refused += bool(use(config.model_copy(update={"root": str(bad)})))
        shutil.rmtree(bad)
    return refused


@pytest.mark.parametrize("layout", LAYOUTS)
def test_damaged_files_are_one_line_each(tmp_path: Path, layout: str) -> None:
    assert try_all(tmp_path, layout, FEW) > 0


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
def test_many_damaged_files_are_one_line_each(tmp_path: Path, layout: str) -> None:
    assert try_all(tmp_path, layout, MANY) > len(MANY) // 5


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("Charades_v1_train.csv", "20.00", "1e999"),
        ("Charades_v1_train.csv", "id,", '"' + "x" * 200_000 + '",id,'),
        ("Charades_v1_train.csv", "id,subject", "id,id\0,subject"),
        ("charades_sta_train.txt", "AAAA1 ", "AAAA\0 "),
        ("glove.txt", "door 1", "door " + "9" * 400),
        ("glove.txt", "a 1 0 0\n", "a\n"),
        ("glove.txt", "cup 1 1 1", "cup \0 1 1"),
    ],
)
def test_what_text_can_hold(small: Small, name: str, old: str, new: str) -> None:
    content = (small.root / name).read_text()
    assert old in content
    (small.root / name).write_text(content.replace(old, new))
    use(small.config())


@pytest.mark.parametrize("layout", ["jsonl", "tacos", "activitynet"])
@pytest.mark.parametrize("value", VALUES)
def test_any_value_in_any_place_of_json(tmp_path: Path, layout: str, value: str) -> None:
    config = LAYOUTS[layout](tmp_path)
    path = next(tmp_path.glob("train.json*"))
    text = path.read_text()
    first = json.loads(text.partition("\n")[0])
    entry = first if layout == "jsonl" else next(iter(first.values()))
    for key, held in entry.items():
        for part in {json.dumps(held), json.dumps(held[0]) if isinstance(held, list) else json.dumps(held)}:
            path.write_text(text.replace(f"{json.dumps(key)}: {part}", f"{json.dumps(key)}: {value}", 1))
            use(config)


@pytest.mark.parametrize("dtype", ["<f2", ">f8", "<i8", "S4", "V16"])
def test_stored_types(small: Small, dtype: str) -> None:
    with h5py.File(small.root / "vgg_rgb_features.hdf5", "a") as file:
        del file["AAAA1"]
        file["AAAA1"] = np.zeros((5, 4), dtype)
    assert bool(use(small.config())) == (dtype in ("S4", "V16"))


CACHES: dict[str, Any] = {
    "no table": (["a"], {"a": 0}, [1.0], 1),
    "a vector too few": (["a", "b"], {"a": 0, "b": 1}, torch.ones(1, 3), 3),
    "a row outside": (["a"], {"a": 7}, torch.ones(1, 3), 3),
    "no words": (3, {"a": 0}, torch.ones(1, 3), 3),
    "one axis": (["a"], {"a": 0}, torch.ones(1), 1),
    "another size": (["a"], {"a": 0}, torch.ones(1, 3), 4),
    "whole numbers": (["a"], {"a": 0}, torch.ones(1, 3, dtype=torch.int64), 3),
    "sparse": (["a"], {"a": 0}, torch.ones(1, 3).to_sparse(), 3),
    "no tuple": 5,
}


@pytest.mark.parametrize("name", CACHES)
def test_a_vector_cache_of_something_else(small: Small, name: str) -> None:
    (small.root / "glove.txt").unlink()
    torch.save(CACHES[name], small.root / "glove.txt.pt")
    assert all("not a torchtext vector cache" in error for error in use(small.config())[:1])
    assert use(small.config())
