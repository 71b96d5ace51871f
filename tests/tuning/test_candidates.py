"""Candidates: points become experiments, and are judged before anything starts."""

from collections.abc import Callable
from typing import Any

import optuna
import pytest

from cdn_tune.config import Experiment, SearchSpace
from cdn_tune.tuning.study import costs as module
from cdn_tune.tuning.study.candidates import INVALID, Candidates, cost

Tiny = Callable[..., Experiment]
LAYERS = {"type": "int", "low": 1, "high": 3}
KERNELS = {"type": "categorical", "choices": [3, 5], "per_layer": True}
POOLS = {"type": "categorical", "choices": ["attention", "mean"]}
STEPS = {"type": "int", "low": 1, "high": 3, "when": {"model.clip_pool": "attention"}}


def candidates_of(base: Experiment, parameters: dict[str, Any], **more: Any) -> Candidates:
    space = SearchSpace.model_validate({"name": "s", "experiment": "x", "parameters": parameters, **more})
    return Candidates(space, base)


def test_a_point_becomes_an_experiment(tiny: Tiny) -> None:
    candidates = candidates_of(tiny(), {"model.map.kernel_size": KERNELS, "model.map.layers": LAYERS})
    trial = optuna.trial.FixedTrial(
        {"model.map.layers": 2, "model.map.kernel_size[0]": 3, "model.map.kernel_size[1]": 5}
    )
    params = candidates.suggest(trial)
    assert candidates.experiment(params).model.map.kernel_sizes == (3, 5)
    assert candidates.is_complete(params)
    assert not candidates.is_complete({"model.map.layers": 3, **{key: params[key] for key in list(params)[1:]}})


def test_names_follow_conditions_and_layers(tiny: Tiny) -> None:
    parameters = {"model.clip_pool": POOLS, "model.attention_steps": STEPS, "model.map.kernel_size": KERNELS}
    candidates = candidates_of(tiny(**{"model.map.layers": 2}), parameters)
    assert candidates.names("model.attention_steps", {"model.clip_pool": "attention"}) == ["model.attention_steps"]
    assert candidates.names("model.attention_steps", {"model.clip_pool": "mean"}) == []
    assert candidates.names("model.map.kernel_size", {}) == ["model.map.kernel_size[0]", "model.map.kernel_size[1]"]


def test_verdicts(tiny: Tiny) -> None:
    parameters = {"model.map.layers": LAYERS, "model.attention_steps": {"type": "int", "low": 1, "high": 3}}
    limits = ["1 / (model.map.layers - 2) <= 1", "attention_steps <= 2"]
    candidates = candidates_of(tiny(), parameters, constraints=limits)
    assert candidates.judge({"model.map.layers": 3, "model.attention_steps": 2}).reason is None
    failed = candidates.judge({"model.map.layers": 2, "model.attention_steps": 3})
    assert failed.violations == {limits[0]: 1.0, limits[1]: 0.5}  # no value is no permission
    assert "division by zero" in (failed.reason or "")
    assert "attention_steps <= 2 does not hold (attention_steps=3)" in (failed.reason or "")
    left = candidates.judge({"model.map.layers": 3, "model.attention_steps": 3}, leave_out=("attention_steps",))
    assert left.reason is None
    assert limits[1] not in left.violations
    nothing = candidates_of(tiny(), {"model.map.layers": {"type": "int", "low": 0, "high": 3}})
    assert nothing.judge({"model.map.layers": 0}).violations == {INVALID: 1.0}


def test_what_ran_out_of_memory_is_not_tried_again(tiny: Tiny) -> None:
    candidates = candidates_of(tiny(), {"model.map.layers": LAYERS})
    need = cost("memory_gb", tiny(**{"model.map.layers": 2}))
    assert candidates.judge({"model.map.layers": 1}, memory_limit=need).reason is None
    assert "ran out of memory" in (candidates.judge({"model.map.layers": 3}, memory_limit=need).reason or "")


def test_sizes_are_estimated_once_for_points_that_share_them(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    estimated = []
    estimate = module.estimate
    monkeypatch.setattr(module, "estimate", lambda *given: estimated.append(given) or estimate(*given))
    module._memory.cache_clear()
    small = cost("memory_gb", tiny(**{"optim.lr": 1e-3, "train.batch_size": 8}))
    large = cost("memory_gb", tiny(**{"optim.lr": 1e-2, "train.batch_size": 32, "loss.min_iou": 0.3}))
    assert len(estimated) == 1
    assert large > small
    assert cost("memory_gb", tiny(**{"train.batch_size": 32, "train.micro_batch": 8})) == small
    cost("memory_gb", tiny(**{"train.ema": 0.9}))
    assert len(estimated) == 2
