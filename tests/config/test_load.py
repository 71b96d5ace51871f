"""Configuration files and overrides: what is accepted, and how a mistake is told."""

import os
from pathlib import Path

import pytest
from pydantic import ValidationError

from cdn_tune.config import Experiment, SearchSpace, build, load_experiment, load_space, override, parse_overrides
from cdn_tune.config.keys import SYNONYMS, dotted_keys, flatten, nearest_key, set_key
from cdn_tune.config.yaml import dump, parse, read_mapping
from cdn_tune.errors import ConfigError
from cdn_tune.model.cdn.config import derive_scale_layers

ROOT = Path(__file__).resolve().parents[2]
EXPERIMENTS = sorted((ROOT / "experiments").rglob("*.yaml"))
SPACES = sorted((ROOT / "search_spaces").rglob("*.yaml"))
POOL = ROOT / "experiments/charades/CDN-16x16-K5L8-pool.yaml"


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_shipped_experiment_loads_and_survives_a_round_trip(path: Path) -> None:
    experiment = load_experiment(path)
    again = override(parse(dump(experiment.plain())), {}, "round trip")
    assert again == experiment


@pytest.mark.parametrize("path", EXPERIMENTS + SPACES, ids=lambda path: path.stem)
def test_shipped_yaml_opens_with_its_command(path: Path) -> None:
    assert path.read_text().startswith("# cdn-tune ")


@pytest.mark.parametrize("path", SPACES, ids=lambda path: path.stem)
def test_shipped_space_loads(path: Path) -> None:
    space, experiment = load_space(path)
    assert set(space.parameters) <= set(dotted_keys(Experiment))
    assert experiment.eval.metric in experiment.eval.metrics


def test_published_settings() -> None:
    pool = load_experiment(POOL)
    assert (pool.data.frames, pool.model.clips, pool.train.batch_size, pool.train.epochs) == (256, 16, 32, 20)
    assert (pool.optim.lr, pool.optim.clip_norm, pool.model.attention_steps) == (1e-4, 10.0, 3)
    conv = load_experiment("experiments/tacos/CDN-128x128-K5L8-conv")
    assert conv.model.scales == (16, 8, 8, 8)
    assert (conv.train.batch_size, conv.train.epochs, conv.eval.nms_threshold) == (12, 100, 0.4)


def test_override_values_are_yaml() -> None:
    overrides = parse_overrides(["optim.lr=3e-4", "eval.recalls=[1, 10]", "model.map.residual=false", "seed=7"])
    experiment = load_experiment(POOL, overrides)
    assert experiment.optim.lr == 3e-4
    assert experiment.eval.recalls == (1, 10)
    assert experiment.model.map.residual is False
    assert experiment.seed == 7


@pytest.mark.parametrize(
    ("argument", "told"),
    [
        ("lr=1e-3", "lr: unknown key; did you mean optim.lr?"),
        ("optim.learning_rate=1e-3", "optim.learning_rate: unknown key; did you mean optim.lr?"),
        ("learning_rate=1e-3", "did you mean optim.lr?"),
        ("model.hidden_size=8", "did you mean model.hidden?"),
        ("train.batch=8", "did you mean train.batch_size?"),
        ("model.optimizer=adam", "did you mean optim.name?"),
        ("train.num_epochs=3", "did you mean train.epochs?"),
        ("data.metric=mIoU", "did you mean eval.metric?"),
        (
            "optim.lr=1,5e-4",
            "optim.lr: '1,5e-4' is wrong: input should be a valid number; the decimal sign is a point: 1.5e-4",
        ),
        ("seed=2020-99-99", "seed: '2020-99-99' is wrong"),
        ("seed=!!int abc", "column 1: 'abc' is not a whole number"),
        ("model.map.layers=" + "9" * 31, "is too large; whole numbers go up to"),
        (
            "model.map.layers=1000000000",
            "model.map.layers: 1000000000 is wrong: input should be less than or equal to 1000",
        ),
        ("train.epochs=1000000000", "train.epochs: 1000000000 is wrong"),
        ("eval.recalls=[" + "1," * 99 + "1]", "eval.recalls: "),
        ("data.root=~no-such-user/x", "root '~no-such-user/x' begins with the name of no user"),
        ("model.name=[cdn]", "is no model family; known are cdn"),
        ("model.map.kernal_size=3", "did you mean model.map.kernel_size?"),
        ("model.map.kernel_size=4", "kernel_size 4 is even"),
        ("model.map.kernel_size=[3, 3]", "lists 2 sizes for layers=8"),
        ("model.map.dynamic_layers=9", "dynamic_layers=9 exceeds layers=8"),
        ("model.clips=48", "clips=48 has no derived scale_layers"),
        ("data.frames=100", "model.clips=16 does not divide data.frames=100; choose data.frames=96"),
        ("model.scale_layers=[8, 8]", "reach moments of 24 clips, but clips=16"),
        ("optim.lr=fast", "optim.lr: 'fast' is wrong"),
        ("optim.lr=.nan", "optim.lr"),
        ("train.epochs=true", "train.epochs: True is wrong"),
        ("train.epochs=2.5", "train.epochs: 2.5 is wrong"),
        ("loss.min_iou=0.95", "min_iou=0.95 must be below max_iou=0.9"),
        ("eval.metric=R1@90", "metric 'R1@90' is unknown; write one such as R1@0.5, mIoU"),
        ("data=3", "a section with keys of its own is expected"),
        ("name=a/b", "name: 'a/b' is wrong"),
        ("epochs", "write it as key=value"),
        ("seed=[", "not valid YAML"),
    ],
)
def test_wrong_override_is_one_line_with_key_value_and_remedy(argument: str, told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_experiment(POOL, parse_overrides([argument]))
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "is empty"),
        ("- 1", "holds a list"),
        ("name: a\nname: b", "line 2, column 1: key 'name' appears twice"),
        ("name: [", "not valid YAML"),
        ("? [a, b]\n: 1", "line 1, column 3: key ['a', 'b'] is no text; put it in quotes"),
        ("on: 1", "key True is no text; put it in quotes"),
        ("a: &a [*a]", "line 1, column 8: an alias within what it stands for; write the value out"),
        ("a: " + "[" * 500, "column 53: nested more than 50 deep; write it flatter"),
        ("name: !!binary aGVsbG8=", "the tag 'tag:yaml.org,2002:binary' is not understood; write plain values"),
        ("name: !!python/name:os.system", "is not understood; write plain values"),
        ('name: x\n"a\\nb": 1', "line 2, column 1: key 'a\\nb' holds a line break or the like; write it in one line"),
        ('name: "a\\0b"', "'a\\x00b' holds a control character; remove it"),
        ('name: "\\ud800"', "holds a control character; remove it"),
        ("a: 0x" + "f" * 9000, "is too large; whole numbers go up to"),
        ("# " + "a" * 300_000, "is larger than 256 KiB, so no file of settings"),
        ("".join(f"k{place}: 1\n" for place in range(9)), "and 6 more like these"),
        ("name: x\ndata: {dataset: tacos, rot: y}", "data.rot: unknown key; did you mean data.root?"),
        ("name: x\ndata: {dataset: tacos}", "data.root: missing"),
        ("name: x\ndata: {dataset: kinetics, root: y}", "data.dataset: 'kinetics' is wrong"),
    ],
)
def test_wrong_file_names_itself(tmp_path: Path, text: str, told: str) -> None:
    path = tmp_path / "experiment.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_experiment(path)
    assert told in str(caught.value)
    assert str(path) in str(caught.value)
    assert all(len(line) < len(str(path)) + 400 for line in str(caught.value).splitlines())


BOMB = "".join(f"k{place}: &{place} [{', '.join(9 * ([f'*{place - 1}'] if place else ['x']))}]\n" for place in range(9))


@pytest.mark.parametrize("place", ["", "data: ", "name: ", "parameters: ", "overrides: ", "start_with: "])
def test_aliases_that_stand_for_more_values_than_memory_holds_are_refused(tmp_path: Path, place: str) -> None:
    """Nine levels of nine: 400 million values in 500 bytes."""
    path = tmp_path / "bomb.yaml"
    path.write_text(place + ("\n  " if place else "") + BOMB.replace("\n", "\n  " if place else "\n"))
    for load in (load_experiment, load_space):
        with pytest.raises(ConfigError, match=r"holds more than 10,000 values, repeated ones included; shorten it"):
            load(path)


def test_an_alias_is_fine_where_it_repeats_little() -> None:
    assert parse("a: &a [1, 2]\nb: [*a, *a]") == {"a": [1, 2], "b": [[1, 2], [1, 2]]}


@pytest.mark.parametrize("name", ["2026-11-28", "2020-99-99", "=", "<<", "12:30:x", "null x"])
def test_what_yaml_takes_for_something_rare_is_a_text(name: str) -> None:
    assert parse(f"name: {name}") == {"name": name}


def test_what_is_no_regular_file_is_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo.yaml")
    for path in (tmp_path / "fifo.yaml", tmp_path):
        with pytest.raises(ConfigError, match=r"is no regular file|is a folder"):
            read_mapping(path)


def test_missing_file_names_the_shipped_ones() -> None:
    with pytest.raises(ConfigError, match=r"nowhere: no such file; shipped are experiments/"):
        load_experiment("nowhere")
    with pytest.raises(ConfigError, match="is a folder"):
        load_experiment(ROOT / "experiments")


def test_binary_file_is_told(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    for content in (b"\xff\xfe\x00", "name: x".encode("utf-16")):
        path.write_bytes(content)
        with pytest.raises(ConfigError, match="save it as UTF-8"):
            read_mapping(path)


def test_configuration_is_frozen() -> None:
    experiment = load_experiment(POOL)
    with pytest.raises(ValidationError):
        experiment.seed = 3  # type: ignore[misc]


def test_root_becomes_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_experiment(POOL, {"data.root": "here"}).data.root == str(tmp_path / "here")


@pytest.mark.parametrize(("clips", "scales"), [(4, (4,)), (16, (16,)), (32, (16, 8)), (64, (16, 8, 8))])
def test_derived_scale_layers(clips: int, scales: tuple[int, ...]) -> None:
    assert derive_scale_layers(clips) == scales
    assert sum(count * 2**level for level, count in enumerate(scales)) == clips


def test_keys() -> None:
    assert nearest_key(Experiment, "model.map.layer") == "model.map.layers"
    assert nearest_key(Experiment, "zzzzzzzz") is None
    assert nearest_key(SearchSpace, "n_trials") == "trials"
    assert nearest_key(SearchSpace, "pruner") == "early_stopping"
    known = {key.rpartition(".")[2] for model in (Experiment, SearchSpace) for key in dotted_keys(model)}
    assert {name.rpartition(".")[2] for name in SYNONYMS.values()} <= known
    assert not known & SYNONYMS.keys()
    nested: dict[str, object] = {}
    set_key(nested, "a.b", 1)
    assert nested == {"a": {"b": 1}}
    assert flatten({"a": {"b": 1, "c": {"d": 2}}, "e": 3}) == {"a.b": 1, "a.c.d": 2, "e": 3}
    with pytest.raises(ConfigError, match=r"a\.b is a value"):
        set_key(nested, "a.b.c", 2)


@pytest.mark.parametrize(("text", "value"), [("1e-4", 1e-4), ("3E5", 3e5), ("1.5e3", 1.5e3), ("1", 1), ("e5", "e5")])
def test_numbers_are_numbers(text: str, value: object) -> None:
    assert parse(text) == value
    assert type(parse(text)) is type(value)


@pytest.mark.parametrize(("former", "present"), [(30.0, "auto"), (0, "epoch"), (7.5, 7.5)])
def test_a_former_name_is_read_as_the_present_one(former: float, present: object) -> None:
    plain = load_experiment("demo/small").plain()
    train = {key: value for key, value in plain["train"].items() if key != "checkpoint"}
    old = {**plain, "train": {**train, "checkpoint_minutes": former}}
    assert build(Experiment, old, "old").train.checkpoint == present
    assert load_experiment("demo/small", {"train.checkpoint_minutes": former}).train.checkpoint == present
    both = {**plain, "train": {**plain["train"], "checkpoint_minutes": former}}
    with pytest.raises(ConfigError, match=r"checkpoint='auto', checkpoint_minutes=.* former name; leave it out"):
        build(Experiment, both, "both")


@pytest.mark.parametrize("wrong", ["often", 0, -3, True])
def test_a_wrong_pace_of_checkpoints_is_one_line(wrong: object) -> None:
    with pytest.raises(ConfigError, match=r"train\.checkpoint: .* is wrong: .*'auto' or 'epoch', or ") as told:
        load_experiment("demo/small", {"train.checkpoint": wrong})
    assert "\n" not in str(told.value)
