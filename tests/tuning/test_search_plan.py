"""The plan of a search: it counts, judges and times what the search would do, and touches nothing."""

import json
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.trial import TrialState
from rich.console import Console
from typer.testing import CliRunner

from cdn_tune.cli import app
from cdn_tune.cli.show.plan import plan_plain, search_plan_table
from cdn_tune.config import Experiment, SearchSpace, load_experiment, load_space
from cdn_tune.config.keys import flatten
from cdn_tune.config.yaml import dump
from cdn_tune.model.layers.map_config import MapModelConfig
from cdn_tune.training.memory.estimate import written_bytes
from cdn_tune.tuning.planning.plan import SearchPlan, expected_epochs, plan_search
from cdn_tune.tuning.planning.random_points import count_points, draw
from cdn_tune.tuning.search import SearchOptions, open_study
from cdn_tune.tuning.study.candidates import INVALID, Candidates, cost

Tiny = Callable[..., Experiment]
SPACES = sorted((Path(__file__).resolve().parents[2] / "search_spaces").glob("*.yaml"))
LR = {"type": "float", "low": 1e-4, "high": 1e-2, "log": True}
LAYERS = {"type": "int", "low": 1, "high": 3}
POOLS = {"type": "categorical", "choices": ["attention", "mean"]}
STEPS = {"type": "int", "low": 1, "high": 3, "when": {"model.clip_pool": "attention"}}
KERNELS = {"type": "categorical", "choices": [3, 5], "per_layer": True}


def space_of(parameters: dict[str, Any], **more: Any) -> SearchSpace:
    return SearchSpace.model_validate({"name": "s", "experiment": "x", "parameters": parameters, **more})


def shown(plan: SearchPlan) -> str:
    console = Console(width=160, highlight=False)
    with console.capture() as capture:
        console.print(search_plan_table(plan))
    return capture.get()


@pytest.mark.parametrize(
    ("parameters", "count"),
    [
        ({"optim.lr": LR}, 1),
        ({"model.map.layers": LAYERS, "optim.lr": LR}, 3),
        ({"model.clip_pool": POOLS, "model.attention_steps": STEPS}, 3 + 1),
        ({"model.attention_steps": STEPS, "model.clip_pool": POOLS, "model.map.layers": LAYERS}, 4 * 3),
        ({"model.map.layers": LAYERS, "model.map.kernel_size": KERNELS}, 2 + 4 + 8),
        ({"model.map.kernel_size": KERNELS}, 4),  # the base has two layers
        ({"loss.min_iou": {"type": "float", "low": 0.1, "high": 0.5, "step": 0.1}}, 5),
    ],
)
def test_points_are_counted_under_their_conditions(tiny: Tiny, parameters: dict[str, Any], count: int) -> None:
    space = space_of(parameters)
    candidates = Candidates(space, tiny())
    assert count_points(candidates) == count
    if space.is_finite:  # every one of them can be drawn, and no other
        points = {tuple(sorted(point.params.items())) for point in draw(candidates, 40 * count)}
        assert len(points) == count


def test_draws_repeat_and_differ_by_seed(tiny: Tiny) -> None:
    candidates = Candidates(space_of({"optim.lr": LR, "model.map.layers": LAYERS}), tiny())
    first, again, other = (draw(candidates, 5, seed) for seed in (1, 1, 2))
    assert [point.params for point in first] == [point.params for point in again]
    assert [point.params for point in first] != [point.params for point in other]


def test_refusals_are_the_share_of_points_that_break_a_constraint(tiny: Tiny, tmp_path: Path) -> None:
    limit = cost("memory_gb", tiny(**{"model.hidden": 8})) * 1.0001
    parameters = {
        "model.map.layers": LAYERS,
        "model.map.dynamic_layers": {"type": "int", "low": 0, "high": 3},
        "model.hidden": {"type": "categorical", "choices": [8, 16]},
    }
    space = space_of(parameters, constraints=["model.map.layers <= 2", f"memory_gb <= {limit}"])
    plan = plan_search(space, tiny(), tmp_path / "run", "sqlite:///x.db", proposals=120)
    pairs = list(product(range(1, 4), range(4)))
    invalid = sum(dynamic > layers for layers, dynamic in pairs) / len(pairs)
    assert plan.reasons[INVALID] == pytest.approx(invalid, abs=0.12)
    assert plan.reasons["model.map.layers <= 2"] == pytest.approx(1 / 3, abs=0.12)
    assert plan.reasons[f"memory_gb <= {limit}"] > 0
    held = [pair for pair in pairs if pair[1] <= pair[0] <= 2]
    assert plan.refused > 1 - len(held) / len(pairs) - 0.12
    assert "exceeds layers" in plan.example[INVALID]
    assert plan.costs["memory_gb"].high <= limit
    assert plan.costs["parameters"].low <= plan.costs["parameters"].middle <= plan.costs["parameters"].high
    plain = json.loads(json.dumps(plan_plain(plan)))
    assert (plain["space"]["name"], plain["base"]["name"]) == (space.name, "tiny")
    assert plain["costs"]["memory_gb"]["high"] == plan.costs["memory_gb"].high


def played(space: SearchSpace, length: int, trials: int, seed: int) -> int:
    """Epochs that Optuna's own pruner lets trials of constant random values train."""
    rule = space.early_stopping
    options = {"min_resource": rule.min_resource, "reduction_factor": rule.reduction_factor}
    pruner = (
        optuna.pruners.SuccessiveHalvingPruner(**options)
        if rule.name == "asha"
        else optuna.pruners.HyperbandPruner(max_resource=length, **options)
    )
    study = optuna.create_study(study_name=f"played-{seed}", direction="maximize", pruner=pruner)  # brackets go by name
    generator = np.random.default_rng(seed)
    epochs = 0
    for _ in range(trials):
        trial, value = study.ask(), float(generator.random())
        state = TrialState.COMPLETE
        for epoch in range(1, length + 1):
            epochs += 1
            trial.report(value, epoch)
            if trial.should_prune():
                state = TrialState.PRUNED
                break
        study.tell(trial, value if state == TrialState.COMPLETE else None, state=state)
    return epochs


@pytest.mark.parametrize(
    ("name", "least", "factor", "length", "trials"),
    [("asha", 1, 3, 20, 60), ("asha", 3, 3, 20, 60), ("asha", 3, 2, 12, 10), ("hyperband", 1, 3, 27, 60)],
)
@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_expected_epochs_are_what_the_pruner_lets_train(
    tiny: Tiny, name: str, least: int, factor: int, length: int, trials: int
) -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    rule = {"name": name, "min_resource": least, "reduction_factor": factor}
    space = space_of({"optim.lr": LR}, early_stopping=rule)
    expected = expected_epochs(space, {"cdn": tiny(**{"train.epochs": length})}, trials)
    assert expected is not None
    measured = np.mean([played(space, length, trials, seed) for seed in range(12)])
    assert expected["cdn"] == pytest.approx(measured, rel=0.1)
    assert measured < 0.9 * trials * length


def test_expected_epochs_of_the_other_rules(tiny: Tiny) -> None:
    experiment = tiny(**{"train.epochs": 10})
    median = space_of({"optim.lr": LR}, early_stopping={"name": "median"})
    assert expected_epochs(median, {"cdn": experiment}, 7) == {"cdn": 70}
    steps = space_of({"optim.lr": LR}, early_stopping={"unit": "step", "min_resource": 40})
    epochs = space_of({"optim.lr": LR}, early_stopping={"unit": "epoch", "min_resource": 2})
    assert expected_epochs(steps, {"cdn": experiment}, 30) is None

    def expected(space: SearchSpace, experiment: Experiment, trials: int, **more: Any) -> float:
        return (expected_epochs(space, {"cdn": experiment}, trials, **more) or {})["cdn"]

    assert expected(steps, experiment, 30, steps={"cdn": 20}) == expected(epochs, experiment, 30)
    rare = tiny(**{"train.epochs": 10, "train.eval_every": 4})  # compared after epochs 1, 5 and 9 only
    assert expected(epochs, rare, 30) > expected(epochs, experiment, 30)
    some, many = (expected(epochs, experiment, count) for count in (1000, 1_000_000))
    assert many == pytest.approx(1000 * some)  # not played one by one


@pytest.mark.parametrize("name", ["asha", "hyperband", "median"])
def test_every_family_trains_its_own_length(tiny: Tiny, name: str) -> None:
    """In steps one of half the length is compared half as early; what is not stopped trains its family's epochs."""
    families = {"cdn": tiny(**{"train.epochs": 16}), "tan": tiny(**{"train.epochs": 32})}
    rule = {"name": name, "unit": "step", "min_resource": 40, "reduction_factor": 2}
    space = space_of({"optim.lr": LR}, early_stopping=rule)
    found = expected_epochs(space, families, 400, {"cdn": 20, "tan": 10})
    assert found is not None
    assert found["tan"] == pytest.approx(2 * found["cdn"], rel=0.15)
    assert (found["cdn"] < 0.8 * 200 * 16) == (name != "median")
    same = expected_epochs(space, families, 400, {"cdn": 20, "tan": 20})
    assert name == "median" or (same is not None and same["tan"] < 0.8 * found["tan"])


def test_a_family_that_never_starts_is_told(tiny: Tiny, tmp_path: Path) -> None:
    space = space_of(
        {"model.name": {"type": "categorical", "choices": ["cdn", "tan"]}, "optim.lr": LR},
        constraints=["model.query.hidden < 4"],  # which `cdn` does not have
        family_overrides={"tan": {"model.hidden": 8, "model.query.hidden": 8, "model.clips": 8, "model.map.layers": 2}},
    )
    plan = plan_search(space, tiny(), tmp_path / "run", "sqlite:///x.db", nodes=[{"CPU": 5.0}], proposals=40)
    [line] = [each for each in plan.warnings if "may start" in each]
    assert line.startswith("model.name=tan: none of its ")
    assert "model.query.hidden < 4 does not hold" in line


def test_a_family_is_measured_where_its_trials_start(tiny: Tiny) -> None:
    layers = {"type": "int", "low": 1, "high": 3, "when": {"model.name": "tan"}}
    parameters = {"model.name": {"type": "categorical", "choices": ["cdn", "tan"]}, "model.map.layers": layers}
    points = [{"model.name": name, "model.map.layers": count} for name, count in (("tan", 3), ("tan", 1))]
    found = Candidates(space_of(parameters, start_with=points), tiny()).by_family()
    assert found["cdn"] == tiny()
    assert found["tan"].model.plain()["map"]["layers"] == 3
    halves = {
        "model.video.levels": {"type": "int", "low": 6, "high": 10, "when": {"model.name": "snag"}},
        "model.video.length": {"type": "categorical", "choices": [256, 512], "when": {"model.name": "snag"}},
    }
    parameters = {"model.name": {"type": "categorical", "choices": ["cdn", "snag"]}, **halves}
    part = [{"model.name": "snag", "model.video.levels": 10}]  # which 256, the default length, does not go with
    found = Candidates(space_of(parameters, start_with=part), tiny()).by_family()
    assert found["snag"].model.plain()["video"]["levels"] == 6


SNAG: dict[str, Any] = {
    "train.batch_size": 2,
    "train.epochs": 5,
    "data.sequence.length": 16,
    "data.sequence.queries": 1,
    "model.text.hidden": 8,
    "model.text.layers": 1,
    "model.video.hidden": 8,
    "model.video.length": 16,
    "model.video.levels": 2,
}


def test_families_are_measured_and_counted_each_by_its_own_batches(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CDN's batches are of queries, SnAG's of videos; Hyperband's brackets go by the longer one, in its own steps."""
    space = space_of(
        {"model.name": {"type": "categorical", "choices": ["cdn", "snag"]}, "optim.lr": LR},
        family_overrides={"snag": SNAG},
        early_stopping={"name": "hyperband", "unit": "step", "min_resource": 2},
    )
    base = tiny()
    plan = plan_search(space, base, tmp_path / "run", "sqlite:///x.db", nodes=[{"CPU": 5.0}], proposals=4)
    assert (plan.errors, plan.missing) == ([], None)
    assert plan.full_epochs == round(plan.trials * (3 + 5) / 2)
    assert plan.duration is not None
    measured = plan.duration.measured
    own = {name: each.train for name, each in Candidates(space, base).by_family().items()}
    assert {name: (train.epochs, train.batch_size) for name, train in own.items()} == {"cdn": (3, 8), "snag": (5, 2)}
    queries = measured["cdn"].queries["train"]
    steps = {"cdn": -(-queries // 8), "snag": queries // 2}  # one query of a video at a time
    assert {name: each.steps_per_epoch for name, each in measured.items()} == steps
    expected = expected_epochs(space, Candidates(space, base).by_family(), plan.trials, steps) or {}
    hours = sum(expected[name] * measured[name].seconds_per_epoch for name in measured) / 3600
    assert plan.duration.trial_hours == pytest.approx(hours)
    assert "snag's base experiment" in shown(plan)
    longest: list[int | None] = []
    monkeypatch.setattr("cdn_tune.tuning.study.study.Rungs", lambda _, steps, __: longest.append(steps))
    open_study(space, base, tmp_path / "run", SearchOptions(), time.monotonic)
    assert longest == [5 * steps["snag"]]


def test_times_with_data(tiny: Tiny, tmp_path: Path) -> None:
    space = space_of({"optim.lr": LR, "model.map.layers": LAYERS}, trials=9, resources={"cpus_per_worker": 2})
    plan = plan_search(space, tiny(), tmp_path / "run", "sqlite:///x.db", nodes=[{"CPU": 5.0}], proposals=20)
    assert (plan.slots, plan.missing, plan.errors) == (2, None, [])
    duration = plan.duration
    assert duration is not None
    assert duration.trial_hours == pytest.approx(plan.epochs * duration.measured["cdn"].seconds_per_epoch / 3600)
    assert duration.wall_hours == pytest.approx(duration.trial_hours / 2)
    assert plan.epochs < plan.full_epochs == 27
    assert not (tmp_path / "run").exists()
    text = shown(plan)
    for words in (
        "wall clock",
        "3 combinations of the others, and 1 continuous parameter",
        "base experiment on one CPU",
    ):
        assert words in text
    curve = space_of({"optim.lr": LR}, early_stopping={"name": "curve", "chance": 0.05})
    assert "early stopping curve once 19 trials are complete" in shown(replace(plan, space=curve))


def test_a_small_val_split_is_told_in_the_plan_and_at_the_start(
    tiny: Tiny, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    space, told = space_of({"optim.lr": LR}), "too coarse to choose by"
    plan = plan_search(space, tiny(), tmp_path / "run", "sqlite:///x.db", nodes=[{"CPU": 5.0}], proposals=4)
    assert [line for line in plan.warnings if told in line]
    open_study(space, tiny(), tmp_path, SearchOptions(), time.monotonic)
    assert [line for line in caplog.messages if told in line]


def test_budgets_and_finite_spaces(tiny: Tiny, tmp_path: Path) -> None:
    space = space_of(
        {"model.map.layers": LAYERS},
        sampler={"name": "grid"},
        early_stopping={"name": "none"},
        resources={"gpus_per_worker": 0.5},
        budget={"hours": 1e-9, "gpu_hours": 2.0},
    )
    machine = {"CPU": 4.0, "GPU": 1.0}
    plan = plan_search(space, tiny(), tmp_path / "run", "sqlite:///x.db", nodes=[machine], proposals=10)
    assert (plan.points, plan.endless, plan.trials, plan.slots) == (3, (), 3, 2)
    assert plan.duration is not None
    assert plan.duration.gpu_hours == pytest.approx(plan.duration.trial_hours / 2)
    text = shown(plan)
    assert "budget.hours=1e-09 ends it earlier" in text
    assert "budget.gpu_hours=2" in text


@pytest.mark.parametrize("checkpoint", ["auto", "epoch", 2.0])
def test_what_checkpoints_ask_of_the_disk(tiny: Tiny, tmp_path: Path, checkpoint: Any) -> None:
    """Of as many trials as run at once, by a timed write; nothing of that is left."""
    base = tiny(**{"train.checkpoint": checkpoint})
    nodes = [{"CPU": 3.0}]
    plan = plan_search(space_of({"optim.lr": LR}), base, tmp_path / "run", "sqlite:///x.db", nodes=nodes, proposals=4)
    assert plan.writes is not None
    assert plan.duration is not None
    size, epoch = written_bytes(base), plan.duration.measured["cdn"].seconds_per_epoch
    write = size / (1e9 * plan.writes.disk_gb_per_second)
    pause = {"auto": max(epoch, 21 * write), "epoch": epoch, 2.0: 120.0}[checkpoint]
    assert plan.writes.gb_per_second == pytest.approx(3 * size / pause / 1e9)
    assert f"{plan.writes.gb_per_second:.2g} GB/s" in shown(plan)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("path", SPACES, ids=lambda path: path.stem)
def test_shipped_spaces_pass(path: Path, tmp_path: Path) -> None:
    space, experiment = load_space(path, {"data.root": str(tmp_path / "absent")})
    machine = {"CPU": 8.0, "GPU": 2.0}
    plan = plan_search(space, experiment, tmp_path / "run", "sqlite:///x.db", nodes=[machine], proposals=4)
    assert [error for error in plan.errors if "GB free" not in error] == []
    assert plan.warnings == [] or "GB free" in plan.warnings[0]
    assert plan.duration is None
    assert "absent" in (plan.missing or "")
    assert plan.refused < 0.9
    assert plan.points > 1
    text = shown(plan)
    assert all(key.rpartition(".")[2] in text for key in space.parameters)
    assert "not measured" in text
    candidates = Candidates(space, experiment)
    for point in candidates.points():  # the points to try first may start
        assert candidates.is_complete(point)
        assert candidates.judge(point).reason is None
    if space.name.endswith("-core"):  # the published settings, exactly
        [first] = candidates.points()
        assert candidates.experiment(first) == experiment
    if space.name.endswith("-wide"):
        assert len(space.parameters) <= 25


@pytest.mark.parametrize(
    ("name", "published", "beside"),
    [
        (
            "charades-wide",
            ["CDN-16x16-K5L8-pool", "2D-TAN-16x16-K5L8-conv", "MMN-16x16-K5L8-pool", "SnAG-256-L6-C3D"],
            ("data.sequence.clip_size", "data.sequence.clip_stride", "data.sequence.fps"),  # of C3D features, not VGG
        ),
        (
            "tacos-wide",
            ["CDN-128x128-K5L8-pool", "2D-TAN-128x128-K5L8-pool", "MMN-128x128-K5L8-pool", "SnAG-2304-L8-C3D"],
            ("eval.ious", "eval.metric"),  # in SnAG's R1@0.5
        ),
        (
            "activitynet-wide",
            ["CDN-64x64-K9L4-pool", "2D-TAN-64x64-K9L4-pool", "MMN-64x64-K9L4-pool", "SnAG-256-L7-C3D"],
            ("eval.ious",),
        ),
    ],
)
def test_wide_spaces_begin_with_every_family_as_published(
    name: str, published: list[str], beside: tuple[str, ...]
) -> None:
    space, base = load_space(name)
    candidates = Candidates(space, base)
    points = candidates.points()
    assert [point["model.name"] for point in points] == ["cdn", "tan", "mmn", "snag"]
    snag = {*beside, "eval.nms_threshold"}  # which its own suppression does not read
    for point, stem in zip(points, published, strict=True):
        mine = candidates.experiment(point)
        theirs = load_experiment(f"{name.removesuffix('-wide')}/{stem}")
        ours, wanted = flatten(mine.plain()), flatten(theirs.plain())
        assert ours.keys() == wanted.keys()
        differing = {key for key in ours if ours[key] != wanted[key]} - {"name", "model.scale_layers"}
        assert differing <= (snag if mine.model.name == "snag" else set()), (stem, differing)
        if isinstance(mine.model, MapModelConfig) and isinstance(theirs.model, MapModelConfig):
            assert mine.model.scales == theirs.model.scales


def test_command_prints_and_tells_what_would_be_refused(tiny: Tiny, tmp_path: Path) -> None:
    base = tmp_path / "base.yaml"
    base.write_text(dump(tiny().plain()))
    path = tmp_path / "space.yaml"
    plain: dict[str, Any] = {
        "name": "s",
        "experiment": str(base),
        "parameters": {"optim.lr": LR},
        "budget": {"gpu_hours": 1.0},
    }
    plain["resources"] = {"cpus_per_worker": 10000}
    path.write_text(dump(plain))
    before = sorted(tmp_path.rglob("*"))
    command = ["search", str(path), "--run", str(tmp_path / "run"), "--plan"]
    refused = CliRunner().invoke(app, command)
    assert refused.exit_code == 2
    assert "would be refused: budget.gpu_hours=1" in refused.stderr
    assert "would be refused: resources: a trial needs 1 x 10000 CPUs" in refused.stderr
    assert sorted(tmp_path.rglob("*")) == before
    path.write_text(dump({**plain, "budget": {}, "resources": {}}))
    assert "wall clock" in CliRunner().invoke(app, [*command, "--trials", "4"]).stdout
