"""Searches against each other: ours, random search and plain Ray Tune, over recorded curves and once for real."""

from __future__ import annotations

import json
import math
import statistics
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from optuna.samplers import TPESampler

from benchmarks._measure import mean
from benchmarks._plain import plain_real, plain_search, tested
from benchmarks.curves import EPOCHS, PARAMETERS, PRESETS
from cdn_tune.config import Experiment, SearchSpace, load_experiment
from cdn_tune.config.load_search import with_min_resource
from cdn_tune.data.planted import plant
from cdn_tune.evaluation.evaluate import evaluate_run
from cdn_tune.evaluation.request import Request
from cdn_tune.tuning.progress import SearchState
from cdn_tune.tuning.search import SearchOptions, search
from cdn_tune.tuning.simulation.curves import Curves, read_table
from cdn_tune.tuning.simulation.landscape import Landscape
from cdn_tune.tuning.simulation.simulate import Reached, landscape_of, simulate_many
from cdn_tune.tuning.study import samplers


class Epochs:
    """Ends a search when its trials have trained so many epochs together."""

    def __init__(self, limit: int) -> None:
        self.limit, self.spent = limit, 0

    def look(self, state: SearchState) -> None:
        """Counts the epochs on record."""
        self.spent = sum(int(row["epochs"] or 0) for row in state.rows)

    def __call__(self) -> bool:
        """Whether the budget is spent."""
        return self.spent >= self.limit


SEARCHES: dict[str, dict[str, Any]] = {
    "ours": {"sampler": {"name": "tpe"}, "early_stopping": {"name": "asha"}},
    "random": {"sampler": {"name": "random"}, "early_stopping": {"name": "none"}},
}
OURS, PLAIN = "ours", "plain Ray Tune"
# One change at a time of our search: by section of a space, what is set otherwise; `tpe` is what Optuna's is given.
CHANGES: dict[str, dict[str, dict[str, Any]]] = {
    "as it is": {},
    "sampler random": {"sampler": {"name": "random"}},
    "sampler qmc": {"sampler": {"name": "qmc"}},
    "sampler nsga2": {"sampler": {"name": "nsga2"}},
    "constant_liar off": {"tpe": {"constant_liar": False}},
    "startup_trials 5": {"sampler": {"startup_trials": 5}},
    "startup_trials 20": {"sampler": {"startup_trials": 20}},
    "startup_trials 40": {"sampler": {"startup_trials": 40}},
    "min_resource 1": {"early_stopping": {"min_resource": 1}},
    "min_resource 2": {"early_stopping": {"min_resource": 2}},
    "min_resource 3": {"early_stopping": {"min_resource": 3}},
    "min_resource 4": {"early_stopping": {"min_resource": 4}},
    "min_resource 5": {"early_stopping": {"min_resource": 5}},
    "min_resource 7": {"early_stopping": {"min_resource": 7}},
    "reduction_factor 2": {"early_stopping": {"reduction_factor": 2}},
    "reduction_factor 4": {"early_stopping": {"reduction_factor": 4}},
    "mode promote": {"early_stopping": {"mode": "promote"}},
    "mode promote, min_resource 1": {"early_stopping": {"mode": "promote", "min_resource": 1}},
    "hyperband": {"early_stopping": {"name": "hyperband", "min_resource": 1}},
    "median": {"early_stopping": {"name": "median"}},
    "curve": {"early_stopping": {"name": "curve"}},
    "none": {"early_stopping": {"name": "none"}},
}


def space_of(
    search: str, parameters: dict[str, Any], seed: int = 0, changes: Mapping[str, Mapping[str, Any]] | None = None
) -> SearchSpace:
    """Returns the space of one of `SEARCHES` over some parameters, with changes by section."""
    values: dict[str, Any] = {"name": search, "experiment": "demo/small", "parameters": parameters, "start_with": []}
    for section, given in SEARCHES[search].items():
        values[section] = {**given, **(changes or {}).get(section, {})}
    values["sampler"]["seed"] = seed
    return with_min_resource(SearchSpace.model_validate(values, strict=False), EPOCHS)


def base_of(curves: Curves, space: SearchSpace) -> Experiment:
    """Returns a space's base experiment, of the length and metric of recorded curves."""
    return load_experiment(
        space.experiment, {"train.epochs": curves.header.epochs, "eval.metric": curves.header.metric}
    )


def changed(path: Path, slots: int, seeds: int, budgets: Sequence[int], only: str) -> list[list[str]]:
    """Returns a row for each of `CHANGES`: the test regret within each budget of epochs, against our search as it is.

    Both are of the same seeds; the differences are means with 95 % intervals. Of the changes, those with `only` in
    their names.
    """
    changes = [name for name in CHANGES if only in name or not CHANGES[name]]
    curves = read_table(path)
    parameters = curves.header.plain()["parameters"]
    space = space_of(OURS, parameters)
    landscape = landscape_of(space, base := base_of(curves, space), curves)
    work = [(change, budget) for change in changes for budget in budgets]
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
        jobs = [
            pool.submit(_regrets, base, landscape, parameters, CHANGES[each], seeds, slots, to) for each, to in work
        ]
        regrets = {key: job.result() for key, job in zip(work, jobs, strict=True)}
    rows = []
    for change in changes:
        cells = []
        for budget in budgets:
            found, plain = regrets[change, budget], regrets["as it is", budget]
            cells.append(f"{100 * statistics.mean(found):.2f}")
            more = [100 * (mine - theirs) for mine, theirs in zip(found, plain, strict=True)]
            cells.append(mean(more, "+", 2) if CHANGES[change] else "")
        rows.append([f"{path.name.partition('.')[0]}, {slots} slots", change, *cells])
    return rows


def _regrets(
    base: Experiment,
    landscape: Landscape,
    parameters: dict[str, Any],
    changes: Mapping[str, Mapping[str, Any]],
    seeds: int,
    slots: int,
    epochs: int,
) -> list[float]:
    """Returns the test regret of our search with changes, a value a seed."""
    space = space_of(OURS, parameters, changes=changes)

    def changed_tpe(**given: Any) -> TPESampler:
        return TPESampler(**{**given, **changes.get("tpe", {})})

    with mock.patch.object(samplers, "TPESampler", changed_tpe):
        found, _ = simulate_many(space, base, landscape, seeds, slots, epochs, epochs)
    return [landscape.best_truth - each.truth for each in found]


def simulated(path: Path, slots: int, seeds: int, epochs: int) -> list[list[str]]:
    """Returns the rows of a table of curves: what our search finds, random search, and plain Ray Tune."""
    curves = read_table(path)
    parameters = curves.header.plain()["parameters"]
    courses: dict[str, list[list[Reached]]] = {}
    truths: dict[str, list[float]] = {}
    landscape: Landscape | None = None
    for name in SEARCHES:
        space = space_of(name, parameters)
        base = base_of(curves, space)
        landscape = landscape or landscape_of(space, base, curves)
        found, _ = simulate_many(space, base, landscape, seeds, slots, epochs, epochs)
        courses[name], truths[name] = [each.course for each in found], [each.truth for each in found]
        if name == OURS:
            plain = [plain_search(space, landscape, seed, slots, epochs) for seed in range(seeds)]
            courses[PLAIN], truths[PLAIN] = ([*each] for each in zip(*plain, strict=True))
    assert landscape is not None
    rows = []
    regret = {name: landscape.best_truth - statistics.mean(values) for name, values in truths.items()}
    for name in (OURS, PLAIN, "random"):
        shares = []
        for course, goal in zip(courses[name], courses["random"], strict=True):
            reached = (each.epochs for each in course if each.best >= goal[-1].best)
            shares.append(next(reached, math.inf) / epochs)
        spread = statistics.stdev(truths[name]) / math.sqrt(seeds)
        rows.append(
            [
                f"{path.name.partition('.')[0]}, {slots} slots, {name}",
                *(share_text(float(np.quantile(shares, share, method="higher"))) for share in (0.5, 0.95)),
                f"{statistics.mean(course[-1].best for course in courses[name]):.4f}",
                f"{statistics.mean(truths[name]):.4f}",
                f"{regret[name]:.4f} ± {spread:.4f}",
                f"{regret[name] / regret[PLAIN]:.2f}x",
            ]
        )
    return rows


def share_text(share: float) -> str:
    """Returns a share of the epochs in words."""
    return "not reached" if math.isinf(share) else f"{share:.0%}"


def real(folder: Path, record: Path, seeds: int, epochs: int) -> list[list[str]]:
    """Returns what searches take and find for real, ours and plain Ray Tune's by turns: a row per seed, and the means.

    Both train what the table of `planted-medium` records, two trials at a time on two cores, for so many epochs. Each
    seed is on record, a line of JSON, once both have ended: the same call goes on.
    """
    recorded = PRESETS["planted-medium"]
    plant(folder / "data", seed=0, **recorded.planted)
    base = load_experiment(recorded.experiment, {**recorded.overrides, "data.root": str(folder / "data")})
    rule = space_of(OURS, PARAMETERS).early_stopping
    what = {"epochs": epochs, "rule": f"{rule.name}, {rule.min_resource}, {rule.reduction_factor}"}
    lines = record.read_text("utf-8").splitlines(keepends=True) if record.exists() else []
    on_record = [json.loads(line) for line in lines if line.endswith("\n")]  # else a killed process has left a part
    found = [each for each in on_record if each["seed"] < seeds and all(each[key] == what[key] for key in what)]
    for seed in sorted(set(range(seeds)) - {each["seed"] for each in found}):
        found.append({**what, "seed": seed, **_real(base, folder, seed, epochs)})
        on_record.append(found[-1])
        record.write_text("".join(json.dumps(each) + "\n" for each in on_record), "utf-8")
        print(json.dumps(found[-1]), flush=True)
    rows = [[str(each["seed"]), *_cells(each)] for each in sorted(found, key=lambda each: int(each["seed"]))]
    columns = {name: [each[name] for each in found] for name in found[0]}
    ours, plain = columns["ours"], columns["plain"]
    ratios = [mine / theirs for mine, theirs in zip(columns["ours_seconds"], columns["plain_seconds"], strict=True)]
    ahead = [mine - theirs for mine, theirs in zip(ours, plain, strict=True)]
    seconds = [mean(columns["ours_seconds"]), mean(columns["plain_seconds"]), mean(ratios, digits=2)]
    return [*rows, ["mean", *seconds, mean(ours), mean(plain), mean(ahead, "+")]]


def _real(base: Experiment, folder: Path, seed: int, epochs: int) -> dict[str, float]:
    """Returns seconds, and the test metric of the chosen model in percent, of both searches under a seed."""
    experiment, metric = base.model_copy(update={"seed": seed}), base.eval.metric
    space = space_of(OURS, PARAMETERS, seed)
    seconds: dict[str, float] = {}
    for name in (OURS, PLAIN) if seed % 2 == 0 else (PLAIN, OURS):
        began = time.monotonic()
        if name == OURS:
            spent = Epochs(epochs)
            options = SearchOptions(trials=epochs, stop=spent)
            search(space, experiment, folder / f"ours-{seed}", spent.look, options)
        else:
            chosen = plain_real(space, experiment, seed, folder / f"plain-{seed}", epochs)
        seconds[name] = time.monotonic() - began
    ours = evaluate_run(folder / f"ours-{seed}", request=Request(resamples=2))["metrics"][metric]
    return {
        "ours_seconds": seconds[OURS],
        "ours": 100 * ours,
        "plain_seconds": seconds[PLAIN],
        "plain": 100 * tested(chosen),
    }


def _cells(each: dict[str, float]) -> list[str]:
    ours, plain = each["ours_seconds"], each["plain_seconds"]
    seconds = [f"{ours:.0f}", f"{plain:.0f}", f"{ours / plain:.2f}"]
    return [*seconds, f"{each['ours']:.1f}", f"{each['plain']:.1f}", f"{each['ours'] - each['plain']:+.1f}"]
