"""Each mistake in a search space is one line that names file, key, value and remedy, before anything starts."""

from pathlib import Path
from typing import Any

import pytest

from cdn_tune.config import Experiment, check, load_space, override_space
from cdn_tune.config.check import COMPARED, resolve_name, without_effect
from cdn_tune.config.keys import leaf_keys
from cdn_tune.config.yaml import dump
from cdn_tune.errors import ConfigError
from cdn_tune.tuning.study.candidates import Candidates

BASE = Path(__file__).resolve().parents[2] / "experiments/demo/small.yaml"
LR = {"type": "float", "low": 1e-4, "high": 1e-2, "log": True}
LAYERS = {"type": "int", "low": 2, "high": 4}
STEPS = {"type": "int", "low": 1, "high": 3}
POOLS = {"type": "categorical", "choices": ["attention", "mean"]}
KERNELS = {"type": "categorical", "choices": [3, 5]}


def write(folder: Path, parameters: dict[str, Any] | None = None, **more: Any) -> Path:
    path = folder / "space.yaml"
    space = {"name": "s", "experiment": str(BASE), "parameters": parameters or {"optim.lr": LR}, **more}
    path.write_text(dump(space))
    return path


def told(path: Path, overrides: dict[str, Any] | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        load_space(path, overrides)
    line = str(caught.value)
    assert "\n" not in line
    assert str(path) in line
    return line


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"model.map": {"type": "int", "low": 1, "high": 2}}, "parameters.model.map: is a section; name a key in it"),
        ({"data.feature_size": LAYERS}, "parameters.data.feature_size: trials that differ in it cannot be compared"),
        ({"train.eval_queries": LAYERS}, "cannot be compared; put it in overrides"),
        ({"optim.lr": {**LR, "when": {"model.clip_pol": "mean"}}}, "when.model.clip_pol: unknown key; did you mean"),
        ({"optim.lr": {**LR, "when": {"model": 1}}}, "parameters.optim.lr.when.model: is a section"),
        ({"optim.lr": {**LR, "when": {"optim.lr": 1e-3}}}, "optim.lr cannot depend on itself; drop the condition"),
        ({"optim.lr": {**LR, "when": {"model.clip_pool": "attn"}}}, "model.clip_pool: 'attn' is wrong"),
        (
            {"model.clip_pool": POOLS, "model.attention_steps": {**STEPS, "when": {"model.clip_pool": "max"}}},
            "model.clip_pool: 'max' is never sampled, parameters.model.clip_pool does not allow it",
        ),
        (
            {
                "model.map.kernel_size": {**KERNELS, "per_layer": True},
                "optim.lr": {**LR, "when": {"model.map.kernel_size": 3}},
            },
            "has a value per layer, so no condition can name it",
        ),
        ({"optim.lr": {**LR, "per_layer": True}}, "optim.lr takes no list; only model.map.kernel_size and"),
        (
            {"model.map.dynamic_layers": {"type": "int", "low": 0, "high": 1, "per_layer": True}},
            "the value of a layer is true or false; write type: categorical, choices: [true, false]",
        ),
        (
            {
                "model.clip_pool": POOLS,
                "model.map.layers": {**LAYERS, "when": {"model.clip_pool": "mean"}},
                "model.map.kernel_size": {**KERNELS, "per_layer": True},
            },
            "needs model.map.layers in every trial, and that has a `when`",
        ),
        ({"model.map.kernel_size": {**KERNELS, "choices": [3, 4], "per_layer": True}}, "kernel_size 4 is even"),
        ({"optim.lr": {"low": 1.0, "high": 2.0}}, "optim.lr: type is missing; write type: float, int or categorical"),
        (
            {"optim.lr": {**LR, "type": "integer"}},
            "parameters.optim.lr.type: 'integer' is wrong: no such type; did you mean int?",
        ),
        ({"optim.lr": {**LR, "type": "xyz"}}, "'xyz' is wrong: no such type; write float, int or categorical"),
        ({"optim.lr": {**LR, "type": [1]}}, "no such type; write float, int or categorical"),
        ({"model.map.layers": {**LAYERS, "high": 1_000_000}}, "less than or equal to 1000"),
        ({"optim.warmup_steps": {**LAYERS, "high": 10**30}}, "is too large; whole numbers go up to"),
        ({"data.dataset": {"type": "categorical", "choices": list(range(1001))}}, "at most 1000 items"),
        ({"optim.lr": {"type": "float", "low": 0.1, "high": 1.0, "step": 1e-300}}, "makes more than 100,000 values"),
        (
            {"optim.lr": {**LR, "when": {"seed": 1}}, "seed": {"type": "int", "low": 0, "high": 2**31}},
            "what seed can be is too much for conditions: more than 100,000 combinations of values",
        ),
        ({"optim.lr": {**LR, "stp": 3}}, "parameters.optim.lr.stp: unknown key; did you mean step?"),
        ({"optim.lr": {**LR, "zzz": 3}}, "parameters.optim.lr.zzz: unknown key; float takes when, per_layer, type"),
        ({"model.map.layers": {**LAYERS, "high": 5, "step": 2}}, "high=5 is not reached from low=2 in steps of 2; use"),
        (
            {"loss.min_iou": {"type": "float", "low": 0.1, "high": 0.55, "step": 0.1}},
            "high=0.55 is not reached from low=0.1 in steps of 0.1; use high=0.5",
        ),
    ],
)
def test_wrong_parameter(tmp_path: Path, parameters: dict[str, Any], words: str) -> None:
    assert words in told(write(tmp_path, parameters))


FAMILIES = {"model.name": {"type": "categorical", "choices": ["cdn", "tan"]}}


def test_what_is_fixed_for_the_whole_search_is_fixed_in_every_family(tmp_path: Path) -> None:
    parameters = {"optim.lr": LR, "model.name": {"type": "categorical", "choices": ["cdn", "tan", "snag"]}}
    wholly = {"model.hidden": 16, "loss.min_iou": 0.2, "model.attention_size": 8, "train.epochs": 3}
    fixed = {"tan": {"model.hidden": 32, "loss.min_iou": 0.4, "optim.clip_norm": 1.0}}
    path = write(tmp_path, parameters, overrides=wholly, family_overrides=fixed)
    space, base = load_space(path, {"loss.min_iou": 0.3, "model.query.layers": 1})
    assert (base.loss.min_iou, base.model.hidden) == (0.3, 16)  # type: ignore[attr-defined]
    found = space.family_overrides["tan"]
    assert found == {"model.hidden": 32, "optim.clip_norm": 1.0, "loss.min_iou": 0.3, "model.query.layers": 1}
    assert list(space.family_overrides) == ["tan"]  # SnAG has none of these keys, and CDN is the base


def test_what_is_fixed_for_a_family(tmp_path: Path) -> None:
    depth = {**LAYERS, "when": {"model.name": "cdn"}}
    rate = {**LR, "when": {"model.query.hidden": 32}}  # which is fixed, and only `tan` has
    parameters = {**FAMILIES, "model.map.layers": depth, "optim.lr": rate}
    fixed = {"tan": {"model.map.layers": 6, "model.query.hidden": 32, "train.epochs": 30, "train.batch_size": 4}}
    space, base = load_space(write(tmp_path, parameters, family_overrides=fixed), {"train.batch_size": 8})
    candidates = Candidates(space, base)
    mine, theirs = (candidates.experiment({"model.name": name}) for name in ("cdn", "tan"))
    assert mine == base
    assert (theirs.model.plain()["map"]["layers"], theirs.train.epochs) == (6, 30)
    assert theirs.train.batch_size == 8  # fixed for the whole search, which goes first
    assert candidates.names("optim.lr", {"model.name": "tan"}) == ["optim.lr"]
    assert candidates.names("optim.lr", {"model.name": "cdn", "model.map.layers": 2}) == []


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"overrides": {"optim.lrs": 3}}, "overrides.optim.lrs: unknown key; did you mean optim.lr?"),
        ({"overrides": {"optim": {}}}, "overrides.optim: is a section; name a key in it, such as optim.name"),
        (
            {"family_overrides": {"cdn": {"optim.lrs": 3}}},
            "family_overrides.cdn.optim.lrs: unknown key; did you mean op",
        ),
        (
            {"family_overrides": {"cdn": {"optim.lr": 3}}},
            "cdn.optim.lr: is in parameters too, and sampled in these tri",
        ),
        (
            {"family_overrides": {"cdn": {"eval.metric": "mIoU"}}},
            "cdn.eval.metric: must be the same in all trials; put",
        ),
        (
            {"family_overrides": {"cdn": {"train.epochs": 0}}},
            "family_overrides.cdn with model.name=cdn train.epochs=0: ",
        ),
        (
            {
                "family_overrides": {"snag": {"train.epochs": 3}},
                "parameters": {"model.name": {"type": "categorical", "choices": ["cdn", "snagg"]}},
            },
            "'snagg' is no model family; known are cdn, mmn, snag, tan; did you mean snag",
        ),
        ({"family_overrides": {"tan": {"train.epochs": 3}}}, "family_overrides.tan: trials are of cdn; drop it, or se"),
        (
            {"constraints": ["parametrs <= 4e8"]},
            "'parametrs <= 4e8': parametrs is no key and no cost; did you mean par",
        ),
        ({"constraints": ["name <= size"]}, "size is no key and no cost"),
        ({"constraints": ["layers <= 4"]}, "layers may be model.cross_attention.layers or "),
        ({"constraints": ["model.map <= 4"]}, "model.map is a section; name a key in it"),
        ({"constraints": ["clip_pool <= 4"]}, "cannot be evaluated: '<=' not supported"),
        ({"constraints": ["zzzz <= 4"]}, "costs are parameters, memory_gb, checkpoint_gb"),
        ({"constraints": ["parameters"]}, "compares nothing; write it like 'parameters <= 4e8'"),
        ({"trials": 10**12}, "trials: 1000000000000 is wrong: input should be less than or equal to 1000000"),
        ({"constraints": ["clips <= 4"] * 101}, "constraints: "),
        ({"resources": {"gpus_per_worker": float("inf")}}, "resources.gpus_per_worker: inf is wrong"),
        (
            {"sampler": {"name": "grid"}, "parameters": {"seed": {"type": "int", "low": 0, "high": 2**31}}},
            "sampler grid goes through all values of seed, which are too many; narrow it",
        ),
        ({"objectives": ["R1@0.7"]}, "must be eval.metric, which is R1@0.5; put R1@0.5 first, or overrides: {eval.me"),
        ({"objectives": ["parameters"]}, "objectives[0]: the first objective, by which epochs are chosen"),
        ({"objectives": ["R1@0.5", "R1@0.5"]}, "objectives[1]: R1@0.5 is named twice; drop one"),
        ({"objectives": ["R1@0.5", "R1@0.9"]}, "objectives[1]: 'R1@0.9' is neither measured on val nor a cost; did"),
        ({"objectives": ["R1@0.5", "flops"]}, "choose one of R1@0.3, R1@0.5"),
        (
            {"objectives": [{"metric": "R1@0.5", "direction": "minimize"}]},
            "objectives[0]: R1@0.5 is better the higher it is; drop direction: minimize",
        ),
        ({"budget": {"target": 45}}, "budget.target=45: R1@0.5 is a share above 0 and up to 1"),
        (
            {"early_stopping": {"name": "asha", "min_resource": 13}},
            "early_stopping.min_resource=13 is above train.epochs=12, so no trial would ever be stopped",
        ),
        ({"resources": {"workers": 20}}, "a batch of train.batch_size=16 cannot be shared among them"),
        ({"sampler": {"name": "cmaes"}, "parameters": {"model.clip_pool": POOLS}}, "all here are categorical; use tpe"),
        (
            {
                "parameters": {
                    "model.clip_pool": POOLS,
                    "model.attention_steps": {**STEPS, "when": {"model.clip_pool": "attention"}},
                },
                "start_with": [{"model.clip_pool": "mean", "model.attention_steps": 2}],
            },
            "start_with[0]: model.attention_steps is not sampled where model.clip_pool is mean; drop it",
        ),
        (
            {"parameters": {"model.map.layers": LAYERS, "optim.lr": LR}, "start_with": [{"optim.lr": 1e-1}]},
            "start_with sets optim.lr to 0.1, which parameters.optim.lr does not allow",
        ),
    ],
)
def test_wrong_space(tmp_path: Path, more: dict[str, Any], words: str) -> None:
    rest = {key: value for key, value in more.items() if key != "parameters"}
    assert words in told(write(tmp_path, more.get("parameters"), **rest))


def test_a_value_is_of_use_in_every_family_that_samples_it(tmp_path: Path) -> None:
    crop = {"type": "categorical", "choices": [0.0, 0.5]}
    parameters = {"model.name": {"type": "categorical", "choices": ["cdn", "snag", "tan"]}, "train.augment.crop": crop}
    line = told(write(tmp_path, parameters))
    assert "train.augment changes frame features of a fixed length, which model.name=snag does not read" in line
    when = {"model.name": ["cdn", "tan"]}
    assert line.endswith(
        "; or sample it elsewhere alone: in parameters.train.augment.crop.when set {model.name: [cdn, tan]}"
    )
    load_space(write(tmp_path, {**parameters, "train.augment.crop": {**crop, "when": when}}))


def test_settings_of_sequences_need_a_family_that_reads_them(tmp_path: Path) -> None:
    length = {"type": "categorical", "choices": [16, 32]}
    both = {"model.name": {"type": "categorical", "choices": ["cdn", "snag"]}}
    line = told(write(tmp_path, {**both, "data.sequence.length": length}))
    assert "parameters.data.sequence.length: is of use to snag, but sampled where model.name is cdn" in line
    assert line.endswith("; add to it: when: {model.name: snag}")
    assert "model.name: {type: categorical" in told(write(tmp_path, {"data.sequence.length": length}))
    load_space(write(tmp_path, {**both, "data.sequence.length": {**length, "when": {"model.name": "snag"}}}))
    fixed = {"data.sequence.form": "variable"}
    line = told(write(tmp_path, both, family_overrides={"cdn": fixed}))
    assert line.endswith("cdn.data.sequence.form='variable': without effect, cdn reads no sequences; drop it")
    space, base = load_space(write(tmp_path, both, family_overrides={"snag": fixed}), {"data.sequence.queries": 2})
    assert without_effect(base, space) is None  # it is SnAG's
    space, base = load_space(write(tmp_path), {"data.sequence.queries": 2, "data.sequence.fps": 24.0})
    line = without_effect(base) or ""
    assert line == without_effect(base, space)
    assert line.startswith("data.sequence.fps=24.0, data.sequence.queries=2: without effect, model.name=cdn reads no")
    assert line.endswith("; leave it out, or choose model.name=snag")


def test_what_every_trial_gets_follows_from_its_length(tmp_path: Path) -> None:
    epochs = {"train.epochs": {"type": "int", "low": 5, "high": 30}}
    for more, overrides, changes, least in (
        ({}, {}, {}, 5),  # of 12 epochs
        ({}, {"train.epochs": 41}, {}, 17),
        ({"parameters": epochs}, {}, {}, 2),
        ({"early_stopping": {"name": "none"}}, {}, {}, None),
        ({"early_stopping": {"name": "median"}}, {}, {"trials": 3}, 5),
        ({"early_stopping": {"min_resource": 1}}, {}, {}, 1),
        ({}, {}, {"early_stopping.min_resource": 2}, 2),
        ({}, {}, {"early_stopping.unit": "step"}, None),  # reports come at epochs: the first one
    ):
        space, _ = load_space(write(tmp_path, **more), overrides, changes)
        assert space.early_stopping.min_resource == least
    assert space.early_stopping.least == 1


def test_what_was_changed_is_told_in_whole_words(tmp_path: Path) -> None:
    fixed = {"train.epochs": 3, "data.word_vectors": "v" * 120, "optim.weight_decay": 0.125, "model.map.kernel_size": 4}
    with pytest.raises(ConfigError) as caught:
        load_space(write(tmp_path, overrides=fixed))
    assert "v optim.weight_decay=0.125 …: model.map: " in str(caught.value)


def test_start_point_that_fits_nothing_names_its_place(tmp_path: Path) -> None:
    parameters = {
        "loss.min_iou": {"type": "float", "low": 0.1, "high": 0.7},
        "loss.max_iou": {"type": "float", "low": 0.5, "high": 1.0},
    }
    points = [{"loss.min_iou": 0.3}, {"loss.min_iou": 0.7, "loss.max_iou": 0.6}]
    line = told(write(tmp_path, parameters, start_with=points))
    assert "start_with[1] with loss.min_iou=0.7 loss.max_iou=0.6" in line
    assert "must be below max_iou=0.6" in line


@pytest.mark.parametrize(
    ("parameters", "more"),
    [
        ({"train.epochs": {"type": "int", "low": 5, "high": 20}}, {"early_stopping": {"min_resource": 15}}),
        ({"optim.lr": LR}, {"early_stopping": {"min_resource": 500, "unit": "step"}}),
        ({"optim.lr": LR}, {"early_stopping": {"name": "none", "min_resource": 500}}),
        ({"optim.lr": LR}, {"objectives": ["R1@0.5", "mIoU", {"metric": "latency_ms"}]}),
        ({"optim.lr": LR}, {"constraints": ["max(kernel_size) <= clips", "parameters <= 4e8 or memory_gb < 3"]}),
        (
            {"model.map.layers": LAYERS, "model.map.kernel_size": {**KERNELS, "per_layer": True}},
            {"constraints": ["sum(kernel_size) <= 12", "kernel_size <= clips", "dynamic_layers <= model.map.layers"]},
        ),
        (
            {
                "model.map.layers": LAYERS,
                "model.map.dynamic_layers": {"type": "categorical", "choices": [True, False], "per_layer": True},
            },
            {},
        ),
        (
            {
                "model.clip_pool": POOLS,
                "model.attention_steps": {**STEPS, "when": {"model.clip_pool": "attention"}},
                "optim.lr": LR,
            },
            {"start_with": [{"model.clip_pool": "attention", "model.attention_steps": 2}, {"model.clip_pool": "mean"}]},
        ),
        (  # the end of one range needs the middle of the other
            {
                "loss.min_iou": {"type": "float", "low": 0.1, "high": 0.7},
                "loss.max_iou": {"type": "float", "low": 0.5, "high": 1.0},
            },
            {"start_with": [{"loss.min_iou": 0.7}]},
        ),
    ],
)
def test_right_space(tmp_path: Path, parameters: dict[str, Any], more: dict[str, Any]) -> None:
    space, _ = load_space(write(tmp_path, parameters, **more))
    assert set(space.parameters) == set(parameters)


def test_a_space_of_too_many_combinations_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each point is mended by the last of a thousand values alone."""
    monkeypatch.setattr(check, "_MOST_IN_ALL", 1500)
    low = {"type": "float", "low": 0.1, "high": 0.99}
    tops = {"type": "categorical", "choices": [*(round(0.2 + 0.0004 * step, 4) for step in range(999)), 1.0]}
    points = [{"loss.min_iou": round(0.95 + 0.001 * step, 3)} for step in range(10)]
    line = told(write(tmp_path, {"loss.min_iou": low, "loss.max_iou": tops}, start_with=points))
    assert "has more than 1,500 combinations of values to check; give it fewer" in line


def test_conditions_on_conditions_are_followed_once(tmp_path: Path) -> None:
    """Each of 24 parameters depends on all before it: millions of ways to follow."""
    others = (*COMPARED, "model.name", "data.sequence.")
    keys = [key for key in leaf_keys(Experiment) if not key.startswith(others)][:24]
    switch = {"type": "categorical", "choices": [True]}
    parameters = {key: {**switch, "when": dict.fromkeys(keys[:place], True)} for place, key in enumerate(keys)}
    assert "is wrong" in told(write(tmp_path, parameters))


def test_condition_on_a_fixed_key_is_no_mistake(tmp_path: Path) -> None:
    path = write(tmp_path, {"model.attention_steps": {**STEPS, "when": {"model.clip_pool": "attention"}}})
    load_space(path, {"model.clip_pool": "mean"})


def test_names_in_constraints() -> None:
    assert resolve_name("memory_gb") == "memory_gb"
    assert resolve_name("model.map.layers") == "model.map.layers"
    assert resolve_name("kernel_size") == "model.map.kernel_size"
    assert resolve_name("clips") == "model.clips"


def test_settings_of_the_space_itself(tmp_path: Path) -> None:
    space, experiment = load_space(write(tmp_path, resources={"gpus_per_worker": 1.0}))
    changed = override_space(space, {"resources.gpus_per_worker": 0.0, "sampler.seed": 3}, experiment)
    assert (changed.resources.gpus_per_worker, changed.sampler.seed) == (0.0, 3)
    assert space.resources.gpus_per_worker == 1.0
    assert changed.parameters == space.parameters
    assert override_space(space, {}, experiment) is space


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        (
            {"resources.gpus": 1},
            "--set resources.gpus=1: resources.gpus: unknown key; did you mean resources.gpus_per_wo",
        ),
        ({"sampler.name": "magic"}, "s with sampler.name=magic: sampler.name: 'magic' is wrong"),
        ({"parameters": {}}, "--set parameters={}: what is searched is written in the file; change parameters there"),
        ({"early_stopping.min_resource": 99}, "early_stopping.min_resource=99 is above train.epochs=12"),
        ({"budget.target": 45.0}, "s with budget.target=45.0: budget.target=45: R1@0.5 is a share"),
    ],
)
def test_wrong_setting_of_the_space(tmp_path: Path, setting: dict[str, Any], words: str) -> None:
    space, experiment = load_space(write(tmp_path))
    with pytest.raises(ConfigError) as caught:
        override_space(space, setting, experiment)
    assert words in str(caught.value)


def test_a_space_is_checked_as_it_was_changed() -> None:
    short = {"data.root": "/nowhere", "train.epochs": 1}
    with pytest.raises(ConfigError, match=r"early_stopping.min_resource=3 is above train.epochs=1"):
        load_space("charades-core", short)
    space, _ = load_space("charades-core", short, {"early_stopping.min_resource": 1})
    assert space.early_stopping.min_resource == 1
    with pytest.raises(ConfigError, match=r"min_resource=2 is above train.epochs=1"):
        load_space("charades-core", short, {"early_stopping.min_resource": 2})
