"""One contract for every sampler with every early stopping, on a fake objective that costs nothing.

A search is played through Optuna's ask and tell. What happens next depends on the study alone, so it can be cut after
any event and taken up by a process that knows nothing but the study, as a real search can.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
import torch
from optuna.storages import BaseStorage, InMemoryStorage, RDBStorage
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import event

from cdn_tune.config import Experiment, SearchSpace
from cdn_tune.config.tables import SAMPLERS as TABLE
from cdn_tune.config.tables import STOPPING_RULES
from cdn_tune.training.reports import pack_ious
from cdn_tune.tuning.study.candidates import Candidates
from cdn_tune.tuning.study.filtered_study import stored_study
from cdn_tune.tuning.study.ranking import PROMOTED, REFUSED, ROLE, own, role_of, value_of
from cdn_tune.tuning.study.rungs import Rungs
from cdn_tune.tuning.study.samplers import Proposal, build_sampler, is_exhausted
from cdn_tune.tuning.study.stopping_rules import QUERY_IOUS, build_pruner, should_prune

optuna.logging.set_verbosity(optuna.logging.WARNING)

SAMPLERS = tuple(TABLE)
ENUMERATING = tuple(name for name, row in TABLE.items() if row.enumerates)
EARLY_STOPPING = tuple(STOPPING_RULES)
GP_WITH = ("none", "asha")
EPOCHS, SLOTS, TRIALS = 6, 2, 12
BASE = Experiment.model_validate({"name": "fake", "data": {"dataset": "charades_sta", "root": "nowhere"}})

LR = {"type": "float", "low": 1e-4, "high": 1e-1, "log": True}
POOL = {"type": "categorical", "choices": ["mean", "attention"]}
STEPS = {"type": "int", "low": 1, "high": 2, "when": {"model.clip_pool": "attention"}}
KERNEL = {"type": "categorical", "choices": [3, 5]}
PARAMETERS: dict[str, Any] = {
    "optim.lr": LR,
    "optim.weight_decay": {"type": "float", "low": 0.0, "high": 0.5, "step": 0.125},
    "model.clip_pool": POOL,
    "model.attention_steps": {**STEPS, "high": 4},
    "model.map.layers": {"type": "int", "low": 2, "high": 5},
    "model.map.kernel_size": {"type": "int", "low": 3, "high": 9, "step": 2, "per_layer": True},
    "train.ema": {"type": "float", "low": 0.5, "high": 0.5},  # a single value
}
GRID: dict[str, Any] = {
    "model.clip_pool": POOL,
    "model.map.layers": {"type": "int", "low": 2, "high": 4},
    "model.map.kernel_size": KERNEL,
    "train.ema": {"type": "float", "low": 0.5, "high": 0.5},
}  # 12 points
TREE: dict[str, Any] = {
    "model.clip_pool": POOL,
    "model.attention_steps": STEPS,
    "model.map.layers": {"type": "int", "low": 1, "high": 2},
    "model.map.kernel_size": {**KERNEL, "per_layer": True},
    "train.ema": {"type": "float", "low": 0.5, "high": 0.5},
}  # (1 + 2) * (2 + 4) = 18 points
START = {"optim.lr": 1e-2, "model.clip_pool": "attention", "model.attention_steps": 3, "model.map.layers": 2}


class Play:
    """A search on the fake objective.

    Trials report the best of a learning curve so far. Some proposals are refused, some trials fail.
    """

    def __init__(
        self,
        sampler: str,
        stopping: str,
        storage: BaseStorage,
        seed: int = 0,
        objectives: int = 1,
        trials: int = TRIALS,
    ) -> None:
        parameters = {"grid": GRID, "brute_force": TREE}.get(sampler, PARAMETERS)
        self.space = SearchSpace.model_validate(
            {
                "name": "fake",
                "experiment": "fake.yaml",
                "parameters": parameters,
                "objectives": ["R1@0.5", "parameters"][:objectives] if objectives > 1 else [],
                "sampler": {"name": sampler, "seed": seed, "startup_trials": 6, "population": 4},
                "early_stopping": {
                    "name": stopping,
                    "startup_trials": 3,
                    "patience": 1,
                    "reduction_factor": 2,
                    "chance": 0.3,
                },
            }
        )
        self.limit = 100 if sampler in ENUMERATING else trials
        self.candidates = Candidates(self.space, BASE)
        directions = ["maximize", "minimize"][:objectives]
        self.study = stored_study(storage, "fake", directions, pruner=optuna.pruners.NopPruner())
        self.pruner = build_pruner(self.space)
        self.rungs = Rungs(self.space, EPOCHS, self.study)
        if sampler not in ENUMERATING and not self.study.trials:
            self.study.enqueue_trial(START)

    def trials(self) -> list[FrozenTrial]:
        return [trial for trial in self.study.get_trials(deepcopy=False) if trial.state != TrialState.WAITING]

    def step(self) -> bool:
        """Lets one thing happen: a proposal, or a report of the running trial that is furthest behind."""
        trials = self.trials()
        running = [trial for trial in trials if trial.state == TrialState.RUNNING]
        if len(running) < SLOTS and len(own(trials)) < self.limit:
            sampler = build_sampler(self.space, self.candidates, len(trials))
            if not is_exhausted(sampler, self.study):
                self.study.sampler = sampler
                self.propose()
                return True
        if running:
            self.advance(min(running, key=lambda trial: (len(trial.intermediate_values), trial.number)))
        return bool(running)

    def propose(self) -> None:
        trial = self.study.ask()
        params = self.candidates.suggest(trial)
        excess = params["model.map.layers"] - 4  # a constraint; in the tree of points, on something else
        if self.space.sampler.name == "brute_force":
            excess = params.get("model.attention_steps", 0) * params["model.map.layers"] - 3
        self.study.set_constraint(trial.number, "size", float(excess))
        if excess > 0:
            trial.set_user_attr(ROLE, REFUSED)
            self.study.tell(trial, state=(TrialState.PRUNED, TrialState.FAIL)[trial.number % 2])

    def advance(self, trial: FrozenTrial) -> None:
        epoch, number = len(trial.intermediate_values) + 1, trial.number
        worth = quality(trial.params)
        if number % 7 == 5 and epoch == 2:
            self.study.tell(number, state=TrialState.FAIL)
            self.rungs.remove(number)
            return
        learnt = [min(each, 2) if number % 3 == 1 else each for each in range(1, epoch + 1)]  # some learn no more
        best = max(worth * (1 - 0.5**each) + 0.02 * math.sin(number + each) for each in learnt)
        queries = np.clip(worth + 0.3 * np.sin(np.arange(32)) + 0.1 * np.sin(number * np.arange(32)), 0, 1)
        self.study.set_attributes(number, {f"{QUERY_IOUS}:{epoch}": pack_ious(torch.from_numpy(queries))})
        values = [best, float(trial.params["model.map.layers"])][: len(self.study.directions)]
        self.rungs.note_objectives(trial, epoch, values)
        self.study.report(number, epoch, best)
        if self.lags(number, epoch):
            self.study.tell(number, state=TrialState.PRUNED)
        elif epoch == EPOCHS:
            self.study.tell(number, values)

    def lags(self, number: int, epoch: int) -> bool:
        """Decides on a trial that has reported an epoch, as `Study.report` does."""
        if self.rungs.decide:
            return self.rungs.lags(number, epoch, is_last=epoch == EPOCHS)
        return should_prune(self.study, self.pruner, self.study.trial(number), self.space, is_last=epoch == EPOCHS)

    def run(self, events: int = 10**6) -> Play:
        for _ in range(events):
            if not self.step():
                break
        return self

    def record(self) -> list[tuple[Any, ...]]:
        """All that the search has decided."""
        return [
            (trial.number, trial.state.name, trial.params, sorted(trial.intermediate_values.items()))
            for trial in self.trials()
        ]


def quality(params: dict[str, Any]) -> float:
    """What a configuration is worth, in [0, 1]; the best has lr 1e-2, attention and few layers."""
    worth = 0.9 - 0.15 * abs(math.log10(params.get("optim.lr", 1e-2)) + 2) - 0.05 * params["model.map.layers"]
    return worth - 0.2 * (params["model.clip_pool"] == "mean") + 0.02 * params.get("model.attention_steps", 0)


def expected_names(params: dict[str, Any], space: SearchSpace) -> set[str]:
    """The parameters that a point has, by the rules of the space."""
    layers = [f"model.map.kernel_size[{index}]" for index in range(params["model.map.layers"])]
    names = set(space.parameters)
    if space.parameters["model.map.kernel_size"].per_layer:
        names = names - {"model.map.kernel_size"} | set(layers)
    return names if params["model.clip_pool"] == "attention" else names - {"model.attention_steps"}


def check(play: Play) -> None:
    """What every search must satisfy."""
    trials = play.trials()
    assert not any(trial.state == TrialState.RUNNING for trial in trials)
    for trial in trials:
        assert trial.params.keys() == expected_names(trial.params, play.space)
        for name, value in trial.params.items():
            parameter = play.space.parameters[name.partition("[")[0]]
            assert parameter.has(value)
            if parameter.values is not None and not isinstance(value, str):
                assert np.isclose(np.array(parameter.values, float), value).any()
        if trial.state == TrialState.PRUNED and role_of(trial) == "trial" and len(play.study.directions) == 1:
            assert trial.value == value_of(trial) == max(trial.intermediate_values.values())
    if play.space.sampler.name in ENUMERATING:
        points = [json.dumps(trial.params, sort_keys=True) for trial in trials]
        assert len(points) == len(set(points)) == {"grid": 12, "brute_force": 18}[play.space.sampler.name]
    else:
        assert START.items() <= trials[0].params.items()
        assert len(own(trials)) == play.limit


def pairs(samplers: Iterable[str]) -> list[Any]:
    """Returns every sampler with every early stopping; most of those that fit Gaussian processes are slow."""
    return [
        pytest.param(sampler, stopping, marks=[pytest.mark.slow] if sampler == "gp" and stopping not in GP_WITH else [])
        for sampler in samplers
        for stopping in EARLY_STOPPING
    ]


@pytest.mark.parametrize(("sampler", "stopping"), pairs(SAMPLERS))
def test_contract(sampler: str, stopping: str, capfd: pytest.CaptureFixture[str]) -> None:
    whole = Play(sampler, stopping, InMemoryStorage()).run()
    check(whole)
    restarted = Play(sampler, stopping, whole.study.storage)
    assert rungs_of(restarted) == rungs_of(whole)
    assert bool(rungs_of(whole)[1]) == (stopping in ("asha", "hyperband"))
    again = InMemoryStorage()
    cut = 3 + 5 * SAMPLERS.index(sampler) + 7 * EARLY_STOPPING.index(stopping)  # another event for every pair
    Play(sampler, stopping, again).run(cut)
    assert Play(sampler, stopping, again).run().record() == whole.record()
    pruned = [trial for trial in own(whole.trials()) if trial.state == TrialState.PRUNED]
    assert bool(pruned) == (stopping != "none")
    captured = capfd.readouterr()
    assert captured.out == captured.err == ""


@pytest.mark.parametrize(("sampler", "stopping"), pairs(sampler for sampler in SAMPLERS if sampler != "cmaes"))
def test_contract_of_several_objectives(sampler: str, stopping: str) -> None:
    whole = Play(sampler, stopping, InMemoryStorage(), objectives=2, trials=9).run()
    check(whole)
    assert Play(sampler, stopping, InMemoryStorage(), objectives=2, trials=9).run().record() == whole.record()
    assert whole.study.best_trials
    assert any(trial.state == TrialState.PRUNED for trial in own(whole.trials())) == (stopping != "none")


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_another_seed_proposes_something_else(sampler: str) -> None:
    one, other = (Play(sampler, "none", InMemoryStorage(), seed=seed).run().record() for seed in (0, 1))
    assert one != other


@pytest.mark.slow
def test_a_new_process_decides_the_same(tmp_path: Path) -> None:
    pairs = dict(zip(SAMPLERS, ("hyperband", "asha") * 5, strict=False))
    for place, (sampler, stopping) in enumerate(pairs.items()):
        Play(sampler, stopping, sqlite(tmp_path, sampler), trials=10).run(20 + place)
    root = str(Path(__file__).resolve().parents[2])
    command = [sys.executable, "-W", "error", __file__, str(tmp_path), *(f"{s}:{e}" for s, e in pairs.items())]
    environment = {**os.environ, "PYTHONPATH": root, "PYTHONHASHSEED": "7"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    for sampler, stopping in pairs.items():
        whole = Play(sampler, stopping, InMemoryStorage(), trials=10).run()
        resumed = Play(sampler, stopping, sqlite(tmp_path, sampler), trials=10)
        assert resumed.record() == whole.record(), sampler
        assert rungs_of(resumed) == rungs_of(whole) != ([], {})


def rungs_of(play: Play) -> tuple[list[tuple[int, int]], dict[tuple[int, int], dict[int, list[float]]]]:
    """Returns past how many rungs each trial was let, and what is compared at each rung."""
    promoted = [(trial.number, trial.user_attrs[PROMOTED]) for trial in play.trials() if PROMOTED in trial.user_attrs]
    return promoted, {rung: values for rung, values in play.rungs._values.items() if values}


def sqlite(folder: Path, name: str) -> RDBStorage:
    storage = RDBStorage(f"sqlite:///{folder / name}.db")
    event.listen(storage.engine, "connect", lambda connection, _: connection.execute("PRAGMA synchronous=OFF"))
    storage.engine.dispose()  # connections opened before that
    return storage


@pytest.mark.parametrize("sampler", ["tpe", "nsga2", "nsga3"])
def test_samplers_learn_though_most_trials_are_pruned(sampler: str) -> None:
    def mean(name: str) -> float:
        plays = [Play(name, "asha", InMemoryStorage(), seed=seed, trials=30).run() for seed in range(3)]
        return float(np.mean([quality(trial.params) for play in plays for trial in own(play.trials())[15:]]))

    assert mean(sampler) > mean("random") + 0.1


@pytest.mark.parametrize("sampler", ["gp", "cmaes", "nsga2"])
def test_pruned_trials_count_with_what_they_reached(sampler: str) -> None:
    play = Play(sampler, "asha", InMemoryStorage()).run()
    play.study.ask()
    proposal = build_sampler(play.space, play.candidates, 100)
    assert isinstance(proposal, Proposal)
    shown = proposal._seen(play.study).get_trials(deepcopy=False)
    values = {trial.number: trial.value for trial in play.trials() if trial.value is not None}
    assert all(each.state == TrialState.COMPLETE for each in shown)
    assert {each.number: each.value for each in shown if each.number in values} == values
    refused = {trial.number for trial in play.trials() if role_of(trial) == REFUSED}
    worst = {number: min(values.values()) for number in refused} if sampler == "gp" else {}
    assert {each.number: each.value for each in shown if each.number in refused} == worst
    assert refused or sampler == "cmaes"
    assert any(trial.state == TrialState.PRUNED for trial in own(play.trials()))


@pytest.mark.parametrize("state", [TrialState.PRUNED, TrialState.FAIL])
@pytest.mark.parametrize("sampler", ["tpe", "gp"])
def test_proposals_come_to_satisfy_the_constraints(sampler: str, state: TrialState) -> None:
    """Refused proposals teach the sampler, whichever state they are told in."""
    parameters = {
        "model.map.layers": {"type": "int", "low": 2, "high": 10},
        "model.map.kernel_size": {"type": "int", "low": 3, "high": 9, "step": 2},
        "optim.lr": LR,
    }
    proposals = 60 if sampler == "tpe" else 30

    def share(name: str, seed: int) -> float:
        settings = {"name": name, "seed": seed, "startup_trials": 5}
        space = SearchSpace.model_validate(
            {"name": "s", "experiment": "x", "parameters": parameters, "sampler": settings}
        )
        study, candidates = stored_study(InMemoryStorage(), "s"), Candidates(space, BASE)
        feasible = []
        for asked in range(proposals):
            study.sampler = build_sampler(space, candidates, asked)
            trial = study.ask()
            params = candidates.suggest(trial)
            size = params["model.map.layers"] * params["model.map.kernel_size"]
            study.set_constraint(trial.number, "layers * kernel_size <= 12", size / 12 - 1)
            feasible.append(size <= 12)
            if size <= 12:
                study.tell(trial, 0.5 + params["model.map.layers"] / 20)  # the best ones lie at the border
            else:
                trial.set_user_attr(ROLE, REFUSED)
                study.tell(trial, state=state)
        return float(np.mean(feasible[proposals // 2 :]))

    seeds = range(3) if sampler == "tpe" else range(1)
    assert np.mean([share(sampler, s) for s in seeds]) > np.mean([share("random", s) for s in seeds]) + 0.15


def test_libraries_are_imported_when_their_sampler_is_chosen() -> None:
    code = (
        "import sys, cdn_tune.tuning.study.stopping_rules, cdn_tune.tuning.study.filtered_study, optuna\n"
        "assert not {'cmaes', 'scipy.stats', 'optuna._gp.gp'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60, cwd=Path(__file__).resolve().parents[2])


if __name__ == "__main__":  # the new process
    for pair in sys.argv[2:]:
        Play(*pair.split(":"), sqlite(Path(sys.argv[1]), pair.partition(":")[0]), trials=10).run()
