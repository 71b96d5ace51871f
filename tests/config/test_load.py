"""Configuration files and overrides: what is accepted, and how a mistake is told."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from cdn_tune.config import Experiment, load_experiment, load_space, override, parse_overrides
from cdn_tune.config.keys import dotted_keys, flatten, nearest_key, set_key
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


def test_missing_file_names_the_shipped_ones() -> None:
    with pytest.raises(ConfigError, match=r"nowhere: no such file; shipped are experiments/"):
        load_experiment("nowhere")
    with pytest.raises(ConfigError, match="is a folder"):
        load_experiment(ROOT / "experiments")


def test_binary_file_is_told(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="UTF-8"):
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
