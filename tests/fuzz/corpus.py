"""Files of every format that cdn-tune reads, damaged in many ways: `FORMATS` makes a good one, reads and mutates it.

A case is a format and a number, and comes out the same each time: ``python -m tests.fuzz.corpus FORMAT FIRST COUNT
FOLDER`` runs some, one JSON line each, as `tests/fuzz/test_fuzz.py` does within limits of time and memory. To add a
format, write how a good file is made, what reads it, and add its line to `FORMATS`.
"""

from __future__ import annotations

import contextlib
import copy
import io
import json
import logging
import random
import re
import resource
import shutil
import signal
import sqlite3
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import optuna
import torch
import typer
from optuna.storages import InMemoryStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend

import cdn_tune
from cdn_tune.cli.machine import machine_lines
from cdn_tune.cli.show.output import one_line_errors, print_line
from cdn_tune.config import Categorical, DataConfig, Float, load_experiment, load_space, override
from cdn_tune.config.yaml import dump, parse
from cdn_tune.data.charades import LAYOUT
from cdn_tune.data.doctor import examine
from cdn_tune.data.planted import plant
from cdn_tune.data.tokens import LanguageModel, write_tokens
from cdn_tune.data.vectors import word_table
from cdn_tune.data.videos.decode import VideoFile
from cdn_tune.data.videos.rows import row_times
from cdn_tune.errors import DataError
from cdn_tune.evaluation.export import export_run
from cdn_tune.evaluation.predictions import score_predictions
from cdn_tune.evaluation.probe_file import PROBE, TITLES, read_probe, share
from cdn_tune.evaluation.runs import summarise_run
from cdn_tune.training.kernels.card import Card
from cdn_tune.training.kernels.store import read_choices
from cdn_tune.training.reports import EpochReport
from cdn_tune.training.runs.checkpoint import BEST, DIGEST, build_model, digest, save_checkpoint
from cdn_tune.training.runs.kept import RECORD, KeptRecord, kept_folder
from cdn_tune.training.runs.records import METRICS
from cdn_tune.training.runs.run_folder import claim, locked
from cdn_tune.training.train_trial import open_data
from cdn_tune.tuning.layout import DATABASE, JOURNAL, trial_folder
from cdn_tune.tuning.results.leaderboard import LEADERBOARD_JSON, csv_text, json_text
from cdn_tune.tuning.results.record import read_record
from cdn_tune.tuning.results.status import status_of
from cdn_tune.tuning.simulation.curves import Header, Recorded, line_of, read_table
from cdn_tune.tuning.simulation.landscape import Landscape
from tests.data.videos.clips import write_video

MANY_LINES = 6  # an experiment's findings, and how many there are besides
LONGEST = 1500  # characters of a line
SECONDS, BYTES = 20, 2 << 30  # that a case may take; address space, beyond what the libraries take

# What stands where another value was expected.
ODD: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2**31, 2**63, 10**30, 0.5, -0.0, 1e300, -1e300, 1e-320, float("inf"), float("nan")),
    *(
        "",
        " ",
        "x",
        "0",
        "-1",
        "nan",
        "1,5",
        "a" * 5000,
        "a\0b",
        "\ud800",
        "\x1b[2J",
        "\x9b2J",
        "a\nb",
        "‮",
        "../..",
        "~x",
    ),
    *([], {}, [[]], [None], {"": {}}, {"x": 1}, [1] * 500, list(range(30)), [["a"]], {"a\nb": 1}),
)
# Pieces of YAML in place of a value.
YAML_PIECES = (
    *("2020-99-99", "!!int abc", "!!binary x", "!!python/name:os.system", "? [a, b]\n: 1", "1,5e-4", "2026-11-28"),
    *(
        ".inf",
        "1e999",
        "9" * 5000,
        "0x" + "f" * 5000,
        "*x",
        "&x [*x]",
        "[" * 500,
        "{a: " * 200,
        "<<",
        "=",
        "1:30",
        "off",
    ),
    *("&a [1,1,1,1,1,1,1,1,1]", "{a: 1, a: 2}", "!!float x", "!!set {a}", "'", '"\\ud800"', '"\\x1b[2J"', "|", "- a"),
)
_HOLE = "@@piece@@"


@dataclass(frozen=True)
class Format:
    """A format that cdn-tune reads."""

    good: Callable[[Path], Path]  # makes a good file, with all that is read beside it, in a folder
    read: Callable[[Path], object]  # reads it as commands do
    mutate: Callable[[Path, random.Random], None]  # damages it


@dataclass(frozen=True)
class Outcome:
    """How the reading of a damaged file ended."""

    code: int
    lines: tuple[str, ...]  # of standard error

    @property
    def fault(self) -> str | None:
        """What is wrong with it; None if it is a success, or one clear line and exit code 2."""
        if self.code == 0:
            return None
        whole = "\n".join(self.lines)
        if self.code != 2 or "internal error" in whole:
            return f"exit code {self.code}: {whole[:LONGEST]}"
        if not 1 <= len(self.lines) <= MANY_LINES or not all(line.startswith("error: ") for line in self.lines):
            return f"{len(self.lines)} lines: {whole[:LONGEST]}"
        if any(len(line) > LONGEST for line in self.lines):
            return f"a line of {max(map(len, self.lines))} characters: {whole[:LONGEST]}"
        return None


def run_case(name: str, number: int | None, folder: Path) -> Outcome:
    """Damages a good file as the case's number has it, in a folder of its own, and reads it as a command does.

    Without a number the good file is read.
    """
    form = FORMATS[name]
    good = _good(name, folder)
    case = folder / f"{name}-{number}"
    shutil.copytree(good.parent, case, symlinks=True)
    path = case / good.name
    if number is not None:
        form.mutate(path, random.Random(f"{name} {number}"))
    told = io.StringIO()
    code = 0
    remarks = logging.StreamHandler(told)  # Optuna's own handler writes past what is redirected
    logging.getLogger("optuna").addHandler(remarks)
    with contextlib.redirect_stderr(told), contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with one_line_errors():
                form.read(path)
        except typer.Exit as left:
            code = left.exit_code
    logging.getLogger("optuna").removeHandler(remarks)
    shutil.rmtree(case, ignore_errors=True)
    return Outcome(code, tuple(line for line in told.getvalue().splitlines() if not line.startswith("warning: ")))


@cache
def _good(name: str, folder: Path) -> Path:
    root = folder / f"good-{name}"
    root.mkdir(parents=True)
    return FORMATS[name].good(root)


# Mutations.


def damage_bytes(path: Path, rng: random.Random) -> None:
    """Cuts, doubles, turns and inserts bytes."""
    content = bytearray(path.read_bytes())
    for _ in range(rng.choice([1, 1, 3, 10])):
        place = rng.randrange(len(content) + 1)
        kind = rng.randrange(7)
        if kind == 0:
            del content[place:]
        elif kind == 1:
            del content[place : place + rng.choice([1, 2, 16, 200])]
        elif kind == 2:
            content[place:place] = content[place : place + rng.choice([1, 16, 200])]
        elif kind == 3 and place < len(content):
            content[place] ^= 1 << rng.randrange(8)
        elif kind == 4:
            content[place:place] = rng.choice([b"\0", b"\xff", b"\n", b"\r\n", b"\x1b[2J", b"\xed\xa0\x80", b"9" * 400])
        elif kind == 5:
            content = bytearray(rng.choice([b"", b"\n", b"\0" * 64, b"[", b"null", b"{}", b"\xff\xfe\x00"]))
        else:
            content[:0] = rng.choice([b"\xef\xbb\xbf", b"\xff\xfe", b"\0", b"#", b"["])
    path.write_bytes(content)


def damage_text(path: Path, rng: random.Random) -> None:
    """Changes lines and numbers of a text, or its bytes or encoding."""
    if rng.random() < 0.3:
        damage_bytes(path, rng)
        return
    lines = path.read_text(encoding="utf-8").split("\n")
    for _ in range(rng.choice([1, 1, 2, 5])):
        place, kind = rng.randrange(len(lines)), rng.randrange(6)
        if kind == 0:
            lines[place] = ""
        elif kind == 1:
            lines.insert(place, lines[rng.randrange(len(lines))])
        elif kind == 2:
            odd = rng.choice(["nan", "inf", "-1", "1e308", "9" * 400, "x", "", "0x10", "1,5", "\uff11"])
            lines[place] = re.sub(r"\d+(\.\d+)?", odd, lines[place], count=1)
        elif kind == 3:
            words = lines[place].split(" ")
            words[rng.randrange(len(words))] = rng.choice(["", "\0", "\x1b[2J", "‮", "a" * 5000, "##", "\t"])
            lines[place] = " ".join(words)
        elif kind == 4:
            lines[place] = lines[place] * rng.choice([2, 200])
        else:
            lines[place] = lines[place][: rng.randrange(len(lines[place]) + 1)]
    text = "\n".join(lines)
    path.write_bytes(text.encode(rng.choice(["utf-8"] * 8 + ["utf-16", "utf-8-sig"])))


def damage_json_lines(path: Path, rng: random.Random) -> None:
    """Changes the values of some lines, or the text."""
    if rng.random() < 0.3:
        damage_text(path, rng)
        return
    lines = path.read_text(encoding="utf-8").splitlines()
    for _ in range(rng.choice([1, 1, 3])):
        place = rng.randrange(len(lines))
        lines[place] = json.dumps(odd_tree(json.loads(lines[place]), rng))
    path.write_text("\n".join(lines) + "\n")


def damage_json(path: Path, rng: random.Random) -> None:
    """Changes a value of a JSON file, or the text."""
    if rng.random() < 0.3:
        damage_text(path, rng)
        return
    text = json.dumps(odd_tree(json.loads(path.read_text(encoding="utf-8")), rng))
    path.write_text(text if rng.random() < 0.95 else "[" * 3000 + text)


def damage_yaml(path: Path, rng: random.Random) -> None:
    """Changes a value of a YAML file to another, or to a piece of YAML, or the text."""
    kind = rng.randrange(10)
    if kind < 2:
        damage_text(path, rng)
        return
    tree = parse(path.read_text(encoding="utf-8"))
    if kind < 6:
        path.write_text(json.dumps(odd_tree(tree, rng), indent=1).replace("Infinity", ".inf").replace("NaN", ".nan"))
        return
    place = rng.choice([place for place in places(tree) if place])
    parts = dump(replaced(tree, place, _HOLE)).partition(_HOLE)
    if kind == 6:
        bomb = "".join(
            f"k{each}: &k{each} [{', '.join(9 * [f'*k{each - 1}' if each else 'x'])}]\n" for each in range(9)
        )
        path.write_text(bomb + parts[0] + "*k8" + parts[2])
    else:
        path.write_text(parts[0] + rng.choice(YAML_PIECES) + parts[2])


def places(tree: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yields where values are in nested dicts and lists, as keys and indices from the top."""
    yield at
    inner = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list | tuple) else ()
    for key, value in inner:
        yield from places(value, (*at, key))


def replaced(tree: Any, place: tuple[Any, ...], value: Any) -> Any:
    """Returns a copy with another value in one place."""
    if not place:
        return value
    changed = copy.copy(tree) if not isinstance(tree, tuple) else list(tree)
    changed[place[0]] = replaced(tree[place[0]], place[1:], value)
    return changed


def odd_tree(tree: Any, rng: random.Random) -> Any:
    """Returns a copy in which a value is replaced, left out, renamed, repeated or wrapped."""
    for _ in range(rng.choice([1, 1, 1, 3])):
        found = list(places(tree))
        shallow = [place for place in found if len(place) <= 1]
        place = rng.choice(shallow if rng.random() < 0.3 else found)
        parent: Any = tree
        for key in place[:-1]:
            parent = parent[key]
        kind = rng.randrange(8)
        if kind <= 3 or not place:
            tree = replaced(tree, place, rng.choice(ODD))
        elif kind == 4 and isinstance(parent, dict):
            tree = replaced(tree, place[:-1], {key: value for key, value in parent.items() if key != place[-1]})
        elif kind == 5 and isinstance(parent, dict):
            name = rng.choice(["x", f"{place[-1]}s", f"{place[-1]}\n", "\ud800", "", str(place[-1]).upper()])
            tree = replaced(tree, place[:-1], {name if key == place[-1] else key: parent[key] for key in parent})
        elif kind == 6 and isinstance(parent, list):
            tree = replaced(tree, place[:-1], parent * rng.choice([0, 2, 50]))
        else:
            tree = replaced(tree, place, [parent[place[-1]]])
    return tree


# Good files, and what reads them.

TINY: dict[str, Any] = {
    "name": "tiny",
    "data": {"dataset": "charades_sta", "root": "", "feature_size": 16, "frames": 16, "word_size": 12},
    "model": {
        "clips": 8,
        "hidden": 8,
        "query": {"layers": 1},
        "attention_steps": 2,
        "map": {"layers": 2, "kernel_size": [3, 3], "dynamic_layers": 1, "experts": 2},
    },
    "loss": {"min_iou": 0.4},
    "optim": {"lr": 3e-3, "schedule": "cosine"},
    "train": {"epochs": 3, "batch_size": 8},
    "eval": {"recalls": [1, 5], "ious": [0.3, 0.5], "batch_size": 16},
}
SPACE: dict[str, Any] = {
    "name": "space",
    "experiment": "experiment.yaml",
    "overrides": {"train.epochs": 4},
    "parameters": {
        "optim.lr": {"type": "float", "low": 1e-4, "high": 1e-1, "log": True},
        "model.clip_pool": {"type": "categorical", "choices": ["mean", "attention"]},
        "model.attention_steps": {"type": "int", "low": 1, "high": 3, "when": {"model.clip_pool": "attention"}},
        "model.map.layers": {"type": "int", "low": 1, "high": 3},
        "model.map.kernel_size": {"type": "categorical", "choices": [3, 5], "per_layer": True},
    },
    "constraints": ["model.map.layers <= 4 or clips % 8 == 0", "max(kernel_size) <= 2 ** 3"],
    "start_with": [{"optim.lr": 1e-3, "model.clip_pool": "mean"}],
    "objectives": ["R1@0.5", {"metric": "parameters", "direction": "minimize"}],
    "trials": 8,
    "budget": {"hours": 2.0, "target": 0.4},
    "sampler": {"name": "tpe", "seed": 1},
    "early_stopping": {"name": "asha", "min_resource": 1},
    "resources": {"workers": 1},
}
VECTORS = "glove.planted.12d.txt"
FEATURES = "vgg_rgb_features.hdf5"


def tiny(folder: Path) -> dict[str, Any]:
    """Returns the plain values of an experiment on the data of a folder."""
    data = {"data.root": str(folder), "data.word_vectors": VECTORS, "data.val_fraction": 0.3}
    space_free = {**TINY, "model": {**TINY["model"], "map": {**TINY["model"]["map"], "kernel_size": 3}}}
    return override(space_free, data, "tiny").plain()


def make_experiment(folder: Path) -> Path:
    path = folder / "experiment.yaml"
    path.write_text(dump({**TINY, "data": {**TINY["data"], "root": "/data"}}))
    return path


def make_space(folder: Path) -> Path:
    path = make_experiment(folder)
    path.write_text(path.read_text().replace("kernel_size:\n    - 3\n    - 3\n", "kernel_size: 3\n"))
    (folder / "space.yaml").write_text(dump(SPACE))
    return folder / "space.yaml"


def make_data(folder: Path) -> Path:
    """Plants a dataset in the folder; its annotations of the train split are what is damaged."""
    plant(folder / "planted", videos=8, feature_size=16, word_size=12, frame_rate=2.0, seed=1)
    for path in (folder / "planted").iterdir():
        path.rename(folder / path.name)
    (folder / "planted").rmdir()
    return folder / "charades_sta_train.txt"


def make_features(folder: Path) -> Path:
    make_data(folder)
    return folder / FEATURES


def make_vectors(folder: Path) -> Path:
    make_data(folder)
    for cached in folder.glob(f"{VECTORS}.*"):
        cached.unlink()
    return folder / VECTORS


def make_jsonl(folder: Path) -> Path:
    def text(items: Any) -> str:
        keys = ("video", "duration", "start", "end", "query")
        return "\n".join(json.dumps(dict(zip(keys, _facts(item), strict=True))) for item in items)

    _as_layout(folder, "features.hdf5", ".jsonl", text)
    return folder / "train.jsonl"


def make_tacos(folder: Path) -> Path:
    return _make_videos(folder, "tall_c3d_features.hdf5", 10.0)


def make_activitynet(folder: Path) -> Path:
    return _make_videos(folder, "sub_activitynet_v1-3.c3d.hdf5", None)


def _make_videos(folder: Path, features: str, fps: float | None) -> Path:
    def text(items: Any) -> str:
        videos: dict[str, Any] = {}
        for item in items:
            video, duration, start, end, query = _facts(item)
            timing = {"duration": duration} if fps is None else {"fps": fps, "num_frames": round(duration * fps)}
            entry = videos.setdefault(video, {**timing, "timestamps": [], "sentences": []})
            entry["timestamps"].append([start, end] if fps is None else [int(start * fps), int(end * fps)])
            entry["sentences"].append(query)
        return json.dumps(videos)

    _as_layout(folder, features, ".json", text)
    shutil.copy(folder / "test.json", folder / "val.json")
    return folder / "train.json"


def _facts(item: Any) -> tuple[Any, ...]:
    return item.video, item.duration, item.start, item.end, item.query


def _as_layout(folder: Path, features: str, suffix: str, text: Callable[[Any], str]) -> None:
    """Makes the planted annotations those of another layout."""
    make_data(folder)
    for split in ("train", "test"):
        items = LAYOUT.load(folder, split).annotations
        (folder / f"{split}{suffix}").write_text(text(items) + "\n")
    for path in (*folder.glob("charades*"), *folder.glob("Charades*")):
        path.unlink()
    (folder / FEATURES).rename(folder / features)


def make_tokens(folder: Path) -> Path:
    make_data(folder)
    texts = {item.query for split in ("train", "test") for item in LAYOUT.load(folder, split).annotations}
    features = ((text, np.ones((len(text.split()), 12), np.float32)) for text in sorted(texts))
    write_tokens(folder / "tokens.hdf5", LanguageModel("model", "digest", 12), features)
    return folder / "tokens.hdf5"


def damage_tokens(path: Path, rng: random.Random) -> None:
    """Changes an attribute of the file or of a text's features, or damages it as other features."""
    if rng.random() < 0.5:
        damage_hdf5(path, rng)
        return
    with h5py.File(path, "r+") as file:
        held = file if rng.random() < 0.5 else file[rng.choice(sorted(file))]
        name = rng.choice(sorted(held.attrs))
        del held.attrs[name]
        odd: list[Any] = [None, 0, -1, 2**63, 1.5, np.nan, "x", "", b"\xff", "\x1b[2J" * 99, [1, 2], h5py.Empty("f4")]
        if (value := rng.choice(odd)) is not None:
            held.attrs[name] = value


def read_data(dataset: str, path: Path, text: str = "words") -> None:
    """Examines a data folder as `data doctor` does, and opens it as training does."""
    examine(path.parent, dataset, word_vectors=VECTORS, text=text)
    data = {**TINY["data"], "root": str(path.parent), "dataset": dataset, "word_vectors": VECTORS, "val_fraction": 0.3}
    data["text"] = text
    train = open_data(DataConfig.model_validate(data))["train"]
    train.batch(range(min(2, len(train))))


def read_vectors(path: Path) -> None:
    word_table(path, ["a", "person", "the", "door"])


def damage_hdf5(path: Path, rng: random.Random) -> None:
    """Replaces a video's features, or changes bytes."""
    if rng.random() < 0.4:
        damage_bytes(path, rng)
        return
    with h5py.File(path, "r+") as file:
        for video in rng.sample(sorted(file), rng.choice([1, 1, 3])):
            del file[video]
            kind = rng.randrange(14)
            if kind == 0:
                file.create_group(video)
            elif kind == 1:
                file[video] = h5py.Empty("f4")
            elif kind == 2:
                file[video] = h5py.ExternalLink("/etc/passwd", "/x")
            elif kind == 3:
                file[video] = h5py.SoftLink("/nowhere")
            elif kind == 4:
                file.create_dataset(video, shape=(10**12, 16), dtype="f4", chunks=(1024, 16))
            elif kind == 5:
                file.create_dataset(video, shape=(0, 16), dtype="f4")
            elif kind == 6:
                file[video] = np.array([b"text"] * 4, dtype=h5py.string_dtype())
            elif kind == 7:
                file[video] = np.zeros((4, 16), dtype=rng.choice(["i1", "u8", "c8", "?", "S4", "f2"]))
            elif kind == 8:
                file[video] = np.zeros(rng.choice([(16,), (), (4, 16, 1, 1), (16, 4), (4, 15), (1, 1)]), dtype="f4")
            elif kind == 9:
                file[video] = np.full((4, 16), rng.choice([np.nan, np.inf, 1e38, 0.0]), dtype="f4")
            elif kind == 10:
                file.create_dataset(video, data=np.zeros((4, 16), dtype=np.dtype([("a", "f4"), ("b", "i4")])))
            elif kind == 11:
                file.create_dataset(
                    video, shape=(4, 16), dtype="f4", external=[("/nowhere/raw", 0, h5py.h5f.UNLIMITED)]
                )
            elif kind == 12:
                layout = h5py.VirtualLayout((4, 16), dtype="f4")
                layout[:] = h5py.VirtualSource("nowhere.h5", "x", shape=(4, 16))
                file.create_virtual_dataset(video, layout)
            else:
                file[video] = np.array([file.ref, file.ref], dtype=h5py.ref_dtype)


def make_predictions(folder: Path) -> Path:
    make_data(folder)
    items = LAYOUT.load(folder, "test").annotations
    moments = [[0.0, 1.0, 0.9], [1.0, 2.0, 0.3]]
    path = folder / "predictions.jsonl"
    path.write_text("".join(json.dumps({"id": item.id, "moments": moments}) + "\n" for item in items))
    return path


def read_predictions(path: Path) -> None:
    score_predictions(path, path.parent, resamples=10)


def _make_search(folder: Path, storage: Any) -> Path:
    (folder / "manifest.json").write_text(json.dumps({"kind": "search", "cdn_tune": "0", "data": {"planted": True}}))
    (folder / "experiment.yaml").write_text(dump(tiny(folder)))
    plain = {key: value for key, value in SPACE.items() if key not in ("objectives", "overrides", "experiment")}
    (folder / "search_space.yaml").write_text(dump({**plain, "experiment": "experiment"}))
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sampler = optuna.samplers.RandomSampler(seed=1)
    study = optuna.create_study(storage=storage, sampler=sampler, study_name="space", direction="maximize")
    study.set_user_attr("trials", 8)
    for number in range(3):
        trial = study.ask()
        trial.suggest_float("optim.lr", 1e-4, 1e-1, log=True)
        trial.suggest_categorical("model.clip_pool", ["mean"])
        layers = trial.suggest_int("model.map.layers", 1, 3)
        for layer in range(layers):
            trial.suggest_categorical(f"model.map.kernel_size[{layer}]", [3, 5])
        trial.report(0.1 * number, 1)
        notes = {"epoch": 1, "epochs": 3, "best_epoch": 1, "val": {"R1@0.5": 0.1, "mIoU": 0.2}, "seconds": 3.5}
        for key, value in {**notes, "segments": [["node", 1.0, 3.0]], "samples_per_second": 10.0}.items():
            trial.set_user_attr(key, value)
        if number < 2:
            study.tell(trial, 0.1 * number)
    return folder


def make_journal(folder: Path) -> Path:
    _make_search(folder, JournalStorage(JournalFileBackend(str(folder / JOURNAL))))
    return folder / JOURNAL


def _copy_search(folder: Path, storage: Any) -> None:
    """Makes one with few writes: each is flushed to disk."""
    memory = InMemoryStorage()
    _make_search(folder, memory)
    optuna.copy_study(from_study_name="space", from_storage=memory, to_storage=storage)


def make_manifest(folder: Path) -> Path:
    _copy_search(folder, JournalStorage(JournalFileBackend(str(folder / JOURNAL))))
    return folder / "manifest.json"


def make_database(folder: Path) -> Path:
    storage = RDBStorage(f"sqlite:///{folder / DATABASE}")
    _copy_search(folder, storage)
    storage.remove_session()
    storage.engine.dispose()
    return folder / DATABASE


def make_records(folder: Path) -> Path:
    """Makes a search without its study: a leaderboard, two trials' metrics and the record of a kept one are left."""
    make_manifest(folder)
    (folder / LEADERBOARD_JSON).write_text(json_text(read_record(folder).rows()))
    (folder / JOURNAL).unlink()
    values = {"loss": 1.0, "losses": {"match": 0.5}, "learning_rate": 1e-3, "gradient_norm": 1.0, "value": 0.1}
    times = {"samples_per_second": 10.0, "train_seconds": 2.0, "val_seconds": 1.0}
    for number in (0, 2):
        report = EpochReport(epoch=1, epochs=3, val={"R1@0.5": 0.1}, best_value=0.1, best_epoch=1, **values, **times)
        (_made(trial_folder(folder, number)) / METRICS).write_text(json.dumps(report.plain()) + "\n")
    kept = KeptRecord(trial=1, value=0.1, epoch=1, checkpoint_epoch=1, checkpoint_value=0.1)
    (_made(kept_folder(folder, 1)) / RECORD).write_text(json.dumps(asdict(kept)))
    return folder / LEADERBOARD_JSON


def damage_records(path: Path, rng: random.Random) -> None:
    """Damages one of them."""
    target = rng.choice([path, path, *sorted(path.parent.rglob(METRICS)), *sorted(path.parent.rglob(RECORD))])
    (damage_json_lines if target.suffix == ".jsonl" else damage_json)(target, rng)


def damage_database(path: Path, rng: random.Random) -> None:
    """Changes a value of a table, or bytes."""
    if rng.random() < 0.3:
        damage_bytes(path, rng)
        return
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("pragma synchronous = off")
        tables = [name for (name,) in connection.execute("select name from sqlite_master where type = 'table'")]
        filled = [name for name in tables if list(connection.execute(f"select 1 from {name} limit 1"))]  # noqa: S608
        table = rng.choice(filled)
        kind = rng.randrange(6)
        with contextlib.suppress(sqlite3.IntegrityError):
            if kind == 0:
                connection.execute(f"delete from {table}")  # noqa: S608
            elif kind == 1:
                connection.execute(f"drop table {table}")
            else:
                column = rng.choice([row[1] for row in connection.execute(f"pragma table_info({table})")])
                odd = rng.choice([None, -1, 2**40, 1.5, "nan", "x", b"\xff", "[[[", '"\\ud800"', "RUNNING", "9" * 500])
                connection.execute(f"update {table} set {column} = ?", (odd,))  # noqa: S608


def read_search(path: Path) -> None:
    """Reads a search as `runs`, `leaderboard`, its forms and `search status` do."""
    json.dumps(summarise_run(path.parent), allow_nan=False)
    record = read_record(path.parent)
    rows = record.rows()
    json_text(rows), csv_text(rows)
    json.dumps(status_of(path.parent).plain())
    for trial in record.entries[:3]:
        record.experiment(trial.number)


def make_curves(folder: Path) -> Path:
    """Makes a table of recorded learning curves, as text."""
    parameters = {"optim.lr": Float(low=1e-3, high=1e-1, log=True), "model.proposals": Categorical(choices=("a", "b"))}
    header = Header(about="made up", planted=True, metric="R1@0.5", epochs=2, parameters=parameters)
    lines = [line_of(header)]
    for seed in range(4):
        values: dict[str, Any] = {"val": {"R1@0.5": (0.1, 0.2)}, "test": {"R1@0.5": (0.1, 0.1)}, "loss": (2.0, 1.0)}
        values |= {"seconds": (1.0, 2.5), "steps": 3, "start_seconds": 0.5, "evaluation_seconds": 0.2}
        point = {"optim.lr": 0.01 * (1 + seed), "model.proposals": "ab"[seed % 2]}
        lines.append(line_of(Recorded(parameters=point, seed=seed, **values)))
    path = folder / "curves.jsonl"
    path.write_text("\n".join(lines) + "\n")
    return path


def make_video(folder: Path) -> Path:
    """Makes a small video, its index in front, so that one that is cut can be opened."""
    return write_video(folder / "video.mp4", [0.0, 0.1, 0.2, 0.5, 0.6, 1.5, 1.6, 2.0], fast_start=True)


CARD = Card(name="A", capability="9.0", driver="1", torch="2", cuda="13", cudnn="9", triton="3", source="0")


def make_kernels(folder: Path) -> Path:
    """Makes a file of what was measured on a GPU."""
    times, dropped = {"published": 2.0, "rows": 1.5}, {"triton": "RuntimeError: no C compiler"}
    choices = {f"bf16 B{batch} C8 K3 E2 S8": {"product": "rows", "milliseconds": times} for batch in (1, 2, 4)}
    choices["fp32 B8 C8 K3 E2 S8"] = {"product": "published", "dropped": dropped}
    path = folder / "card.json"
    path.write_text(json.dumps({"format": 1, "card": CARD.model_dump(), "choices": choices}))
    return path


def read_kernels(path: Path) -> None:
    """Reads what was measured, and prints it as the doctor does; a file that is ignored is an error here."""
    choices = {case: choice.model_dump() for case, choice in read_choices(CARD, path).items()}
    if not choices:
        raise DataError(f"{path}: is not used")
    found = {"card": CARD.model_dump(), "triton": {"version": None, "fault": None}, "choices": choices}
    for line in machine_lines(found):
        print_line(line)


def make_probe(folder: Path) -> Path:
    """Makes a ``probe.json``."""
    names, ends = ("R1@0.5", "mIoU"), [0.2, 0.4]
    values, intervals = dict.fromkeys(names, 0.3), dict.fromkeys(names, ends)
    left = {"queries": 9, "metrics": values, "kept": values, "kept_intervals": intervals, "verdict": "lost"}
    content = {"checkpoint": "checkpoints/best.pt", "epoch": 2, "metric": "R1@0.5", "queries": 9, "of": 9, "videos": 3}
    content |= {"metrics": values, "advantage": {"difference": values, "intervals": intervals}, "data_changed": []}
    path = folder / PROBE
    path.write_text(json.dumps(content | {"probes": dict.fromkeys(TITLES, left)}))
    return path


def read_probe_file(path: Path) -> None:
    """Reads what a run was found to rest on, and prints what to beware of."""
    found = read_probe(path.parent)
    for line in (
        () if found is None else (*found.warnings(), *(share(each, found.metric) for each in found.known.values()))
    ):
        print_line(line)


def read_curves(path: Path) -> None:
    """Reads a table, and predicts from it."""
    curves = read_table(path)
    landscape = Landscape(curves, [curves.header.metric])
    landscape.predict(dict(curves.records[0].parameters), np.random.default_rng(0))
    landscape.rank_correlation()


def read_video(path: Path) -> None:
    """Decodes a video at some times."""
    with VideoFile(path) as video:
        for _ in video.frames(row_times(video.duration, 4)[:, 0].tolist()[:100], size=24):
            pass


def make_checkpoint(folder: Path) -> Path:
    make_data(_made(folder / "data"))
    experiment = override(tiny(folder / "data"), {}, "tiny")
    content = {"model": build_model(experiment).state_dict(), "epoch": 1, "val": {"R1@0.5": 0.5}, "planted": True}
    save_checkpoint(folder / "model.pt", experiment, content)
    return folder / "model.pt"


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder


def damage_checkpoint(path: Path, rng: random.Random) -> None:
    """Changes a value and makes the digest that of the changed content; or changes bytes."""
    if rng.random() < 0.3:
        damage_bytes(path, rng)
        return
    content = torch.load(path, weights_only=True)
    content.pop(DIGEST)
    names = [name for name in content if name != "model"]
    if rng.random() < 0.3:
        weight = rng.choice(sorted(content["model"]))
        odd = rng.choice([torch.zeros(1), torch.zeros(0), torch.full((3, 3), torch.nan), 3, None, "x", {}])
        content["model"] = {**content["model"], weight: odd}
    else:
        rest = odd_tree({name: content[name] for name in names}, rng)
        content = {**rest, "model": content["model"]} if isinstance(rest, dict) else rest
    if isinstance(content, dict):
        content[DIGEST] = digest(content)
    torch.save(content, path)


def read_model(path: Path) -> None:
    cdn_tune.load(path, device="cpu")


def make_export(folder: Path) -> Path:
    checkpoint, run = make_checkpoint(folder), folder / "run"
    with locked(run):
        claim(run, {"kind": "train"}, {"experiment.yaml": tiny(folder / "data")})
    checkpoint.rename(_made((run / BEST).parent) / BEST.name)
    export_run(run, folder / "exported")
    for path in (folder / "exported").iterdir():
        path.rename(folder / path.name)
    return folder / "config.json"


def damage_export(path: Path, rng: random.Random) -> None:
    """Damages a file of an exported folder; where its digest is recorded, that is made right again."""
    from cdn_tune.data.files import sha256

    target = path.parent / rng.choice(
        ["config.json", "config.json", "experiment.yaml", "words.json", "model.safetensors"]
    )
    damage = {".json": damage_json, ".yaml": damage_yaml}.get(target.suffix, damage_bytes)
    damage(target, rng)
    if target != path:
        config = json.loads(path.read_text())
        config["files"][target.name] = sha256(target)
        path.write_text(json.dumps(config))


def read_export(path: Path) -> None:
    cdn_tune.load(path.parent, device="cpu")


FORMATS = {
    "experiment": Format(make_experiment, load_experiment, damage_yaml),
    "space": Format(make_space, load_space, damage_yaml),
    "charades": Format(make_data, partial(read_data, "charades_sta"), damage_text),
    "jsonl": Format(make_jsonl, partial(read_data, "jsonl"), damage_json_lines),
    "tacos": Format(make_tacos, partial(read_data, "tacos"), damage_json),
    "activitynet": Format(make_activitynet, partial(read_data, "activitynet"), damage_json),
    "vectors": Format(make_vectors, read_vectors, damage_text),
    "features": Format(make_features, partial(read_data, "charades_sta"), damage_hdf5),
    "tokens": Format(make_tokens, partial(read_data, "charades_sta", text="tokens"), damage_tokens),
    "predictions": Format(make_predictions, read_predictions, damage_json_lines),
    "manifest": Format(make_manifest, read_search, damage_json),
    "journal": Format(make_journal, read_search, damage_json_lines),
    "records": Format(make_records, read_search, damage_records),
    "database": Format(make_database, read_search, damage_database),
    "kernels": Format(make_kernels, read_kernels, damage_json),
    "probe": Format(make_probe, read_probe_file, damage_json),
    "curves": Format(make_curves, read_curves, damage_json_lines),
    "checkpoint": Format(make_checkpoint, read_model, damage_checkpoint),
    "video": Format(make_video, read_video, damage_bytes),
    "export": Format(make_export, read_export, damage_export),
}


def main(name: str, first: int, count: int, folder: Path) -> None:
    """Runs cases within limits, and prints a line when each begins and how it ended; SIGALRM ends the process."""
    _good(name, folder)  # with the libraries that it needs
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    most = pages * resource.getpagesize() + BYTES
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    for number in range(first, first + count):
        print(json.dumps({"case": number}), flush=True)  # noqa: T201
        signal.alarm(SECONDS)
        outcome = run_case(name, number, folder)
        signal.alarm(0)
        print(json.dumps({"case": number, "code": outcome.code, "fault": outcome.fault}), flush=True)  # noqa: T201


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))
