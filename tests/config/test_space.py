"""Search spaces: parameters are checked against the experiment before anything runs."""

from pathlib import Path
from typing import Any

import pytest

from cdn_tune.config import load_space
from cdn_tune.config.yaml import dump
from cdn_tune.errors import ConfigError

BASE = Path(__file__).resolve().parents[2] / "experiments/demo/small.yaml"


def write(folder: Path, parameters: dict[str, Any], **more: Any) -> Path:
    path = folder / "space.yaml"
    path.write_text(dump({"name": "s", "experiment": str(BASE), "parameters": parameters, **more}))
    return path


def test_space_and_overrides(tmp_path: Path) -> None:
    path = write(tmp_path, {"optim.lr": {"type": "float", "low": 1e-4, "high": 1e-2, "log": True}}, trials=4)
    space, experiment = load_space(path, {"train.epochs": 2})
    assert space.trials == 4
    assert experiment.train.epochs == 2


@pytest.mark.parametrize(
    ("parameters", "told"),
    [
        (
            {"optim.rl": {"type": "float", "low": 0.1, "high": 1.0}},
            "parameters.optim.rl: unknown key; did you mean optim.lr?",
        ),
        ({"optim.lr": {"type": "float", "low": 1.0, "high": 0.1}}, "low=1.0 is above high=0.1"),
        ({"optim.lr": {"type": "float", "low": 0.0, "high": 0.1, "log": True}}, "low=0.0 must be above 0"),
        ({"optim.lr": {"type": "float", "low": -1.0, "high": 0.1}}, "optim.lr=-1.0"),
        ({"optim.lr": {"type": "uniform", "low": 0.0, "high": 0.1}}, "parameters.optim.lr"),
        ({"optim.lr": {"type": "float", "low": 0.1, "hi": 0.1}}, "parameters.optim.lr"),
        ({"model.map.kernel_size": {"type": "categorical", "choices": [3, 4]}}, "kernel_size 4 is even"),
        ({"model.proposals": {"type": "categorical", "choices": ["pool", "mean"]}}, "'mean' is wrong"),
        ({"model.map.layers": {"type": "categorical", "choices": []}}, "parameters.model.map.layers.choices"),
        ({}, "parameters"),
    ],
)
def test_wrong_parameter_is_told(tmp_path: Path, parameters: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_space(write(tmp_path, parameters))
    assert told in str(caught.value)


def test_value_that_another_parameter_mends_is_accepted(tmp_path: Path) -> None:
    layers = {"type": "int", "low": 1, "high": 3}
    with pytest.raises(ConfigError, match="dynamic_layers=2 exceeds layers=1"):
        load_space(write(tmp_path, {"model.map.layers": layers}), {"model.map.dynamic_layers": 2})
    load_space(write(tmp_path, {"model.map.layers": layers, "model.map.dynamic_layers": {**layers, "high": 2}}))


def test_override_of_a_searched_key_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, {"optim.lr": {"type": "float", "low": 0.1, "high": 1.0}})
    with pytest.raises(ConfigError, match=r"optim\.lr=0\.2: .*searches over this key"):
        load_space(path, {"optim.lr": 0.2})


def test_start_with_is_checked(tmp_path: Path) -> None:
    parameters = {"optim.lr": {"type": "float", "low": 0.1, "high": 1.0}}
    with pytest.raises(ConfigError, match=r"start_with names seed"):
        load_space(write(tmp_path, parameters, start_with=[{"seed": 3}]))


@pytest.mark.parametrize(
    ("value", "parameter"),
    [
        (7, {"type": "categorical", "choices": [3, 5]}),
        (9, {"type": "int", "low": 3, "high": 7, "step": 2}),
        (4, {"type": "int", "low": 3, "high": 7, "step": 2}),
    ],
)
def test_start_with_stays_inside_the_parameters(tmp_path: Path, value: int, parameter: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=rf"start_with sets model\.map\.kernel_size to {value}"):
        load_space(write(tmp_path, {"model.map.kernel_size": parameter}, start_with=[{"model.map.kernel_size": value}]))


def test_every_value_of_a_short_range_is_checked(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="kernel_size 4 is even"):
        load_space(write(tmp_path, {"model.map.kernel_size": {"type": "int", "low": 3, "high": 7}}))
    load_space(write(tmp_path, {"model.map.kernel_size": {"type": "int", "low": 3, "high": 7, "step": 2}}))


@pytest.mark.parametrize("key", ["eval.nms_threshold", "data.val_fraction"])
def test_what_trials_are_compared_by_cannot_vary(tmp_path: Path, key: str) -> None:
    with pytest.raises(ConfigError, match="cannot be compared"):
        load_space(write(tmp_path, {key: {"type": "float", "low": 0.1, "high": 0.5}}))
