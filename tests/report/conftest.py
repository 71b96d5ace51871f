"""Runs made up for the report: a study of any size, predictions, an evaluation, a tiny checkpoint."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from datetime import datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from cdn_tune.config import Experiment
from cdn_tune.config.yaml import dump
from cdn_tune.data.dataset import load_split
from cdn_tune.data.mark import Mark
from cdn_tune.training.runs.checkpoint import build_model, save_checkpoint

HOSTILE = "<script>alert('x')</script> </script><img src=x onerror=alert(1)> opens a \u2028 door & \"quotes\""
KEYS = {
    "model.map.kernel_size": CategoricalDistribution((3, 5, 7)),
    "model.map.layers": IntDistribution(2, 8),
    "model.proposals": CategoricalDistribution(("pool", "conv")),
    "optim.lr": FloatDistribution(1e-4, 1e-2, log=True),
    "train.batch_size": CategoricalDistribution((8, 16, 32)),
}
SPACE = {
    "model.map.kernel_size": {"type": "categorical", "choices": [3, 5, 7]},
    "model.map.layers": {"low": 2, "high": 8, "type": "int"},
    "model.proposals": {"type": "categorical", "choices": ["pool", "conv"]},
    "optim.lr": {"low": 1e-4, "high": 1e-2, "log": True, "type": "float"},
    "train.batch_size": {"type": "categorical", "choices": [8, 16, 32]},
}
BEGUN = datetime(2026, 5, 4, 9, 0)
MakeRun = Callable[..., Path]


def made_trial(number: int, objectives: int = 1) -> FrozenTrial:
    """A trial whose parameters, course and end follow from its number alone."""
    kernel, layers = (3, 5, 7)[number % 3], 2 + number % 7
    lr = 1e-4 * 100 ** ((number * 0.37) % 1)
    goal = 0.85 - 0.25 * abs(math.log10(lr) + 3) - 0.02 * abs(layers - 5) + 0.001 * (number % 13)
    state = TrialState.FAIL if number % 11 == 7 else TrialState.PRUNED if number % 3 == 1 else TrialState.COMPLETE
    epochs = {TrialState.FAIL: 1, TrialState.PRUNED: 3}.get(state, 12)
    values = {epoch: goal * (1 - math.exp(-epoch / 3)) for epoch in range(1, epochs + 1)}
    start = BEGUN + timedelta(minutes=3 * number)
    end = start + timedelta(minutes=epochs)
    cut = start + (end - start) / 2
    places = [
        [f"node-{number % 3}", start.timestamp(), cut.timestamp()],
        [f"node-{(number + number % 2) % 3}", cut.timestamp(), end.timestamp()],
    ]
    note: dict[str, Any] = {
        "best_epoch": epochs,
        "epoch": epochs,
        "epochs": 12,
        "seconds": 60.0 * epochs,
        "val": {"R1@0.3": min(1.0, values[epochs] * 1.1), "R1@0.5": values[epochs], "mIoU": values[epochs] * 0.8},
        "segments": places,
        "parameters": 100_000 * layers,
        "latency_ms": 2.0 * layers + kernel,
    }
    if state == TrialState.FAIL:
        note |= {"reason": f"loss is not finite at step {number}: <b>lr</b> too large", "failure": "not_finite"}
    if state == TrialState.PRUNED:
        note["reason"] = "stopped early after epoch 3"
    complete = state == TrialState.COMPLETE
    trial = create_trial(
        state=state,
        values=([values[epochs], float(note["parameters"])][:objectives] if complete else None),
        params={
            "model.map.kernel_size": kernel,
            "model.map.layers": layers,
            "model.proposals": ("pool", "conv")[number % 2],
            "optim.lr": lr,
            "train.batch_size": (8, 16, 32)[number // 3 % 3],
        },
        distributions=KEYS,
        user_attrs=note,
        intermediate_values=values,
    )
    trial.datetime_start, trial.datetime_complete = start, end
    return trial


def made_evaluation(checkpoint: str | None, planted: Mark) -> dict[str, Any]:
    """An evaluation with everything that the report may meet."""
    metrics = {"R1@0.3": 0.7123, "R1@0.5": 0.6011, "mIoU": 0.5004}
    intervals = {name: [value - 0.05, value + 0.05] for name, value in metrics.items()}
    whole = {"metrics": metrics, "intervals": intervals}
    return {
        "schema": 2,
        "protocol": "honest",
        "label": None,
        "dataset": "charades_sta",
        "planted": planted,
        "split": "test",
        "looks": 2,
        "queries": 198,
        "videos": 60,
        "reported": "mean over 2 seeds",
        **whole,
        "std": dict.fromkeys(metrics, 0.012),
        "models": [{"checkpoint": "best/trial-0003/checkpoint.pt", "seed": 0, "epoch": 9, "val": {}, **whole}],
        "seeds": {"trained_on": "train", "runs": [{"seed": 0, **whole}, {"seed": 1, **whole}]},
        "groups": {
            "length_share": [
                {
                    "label": "under 10 %",
                    "queries": 40,
                    "videos": 9,
                    "metrics": {"R1@0.5": 0.4},
                    "intervals": {"R1@0.5": None},
                },
                {"label": "over 10 %", "queries": 158, "videos": 58, "metrics": {"R1@0.5": 0.65}, "intervals": {}},
            ]
        },
        "baselines": {
            "best_constant": {"answer": [0.0, 0.6], "metrics": {"R1@0.3": 0.5, "R1@0.5": 0.3535, "mIoU": 0.3}},
            "random": {"metrics": {"R1@0.5": 0.13}, "intervals": {"R1@0.5": [0.1, 0.16]}},
        },
        "advantage": {
            "over": "query_blind",
            "difference": {"R1@0.5": 0.25},
            "intervals": {"R1@0.5": [0.2, 0.3]},
            "p_values": {"R1@0.5": 0.0001},
        },
        "bootstrap": {"level": 0.95, "resamples": 10_000, "seed": 0, "clusters": 60},
        "published": [{"method": "2D-TAN, pool", "features": "VGG", "metrics": {"R1@0.5": 0.4094}}],
        "chosen_by": {"split": "val", "metric": "R1@0.5", "value": 0.66},
        "epoch": 9,
        **({"checkpoint": checkpoint} if checkpoint else {}),
    }


@pytest.fixture(scope="session")
def make_run(tmp_path_factory: pytest.TempPathFactory) -> MakeRun:
    """Makes a run folder: ``make_run(experiment, trials=40, queries=30)``."""

    @cache  # a trial takes a dozen commits to write
    def database(trials: int, objectives: int) -> Path:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        path = tmp_path_factory.mktemp("study") / "study.db"
        directions = ["maximize", "minimize"][:objectives]
        study = optuna.create_study(study_name="made-up", storage=f"sqlite:///{path}", directions=directions)
        study.set_user_attr("gpus_per_trial", 0.5)
        if objectives > 1:
            study.set_user_attr("objectives", ["R1@0.5", "parameters"])
        study.add_trials([made_trial(number, objectives) for number in range(trials)])
        return path

    def make(
        experiment: Experiment,
        trials: int = 24,
        queries: int = 0,
        evaluated: bool = False,
        checkpoint: bool = False,
        objectives: int = 1,
        planted: Mark = True,
    ) -> Path:
        run = tmp_path_factory.mktemp("run <i>of") / "a & b"
        run.mkdir()
        plain = experiment.plain()
        space = {"name": "made-up", "experiment": "experiment.yaml", "trials": trials or 1, "parameters": SPACE}
        space |= {"objectives": ["R1@0.5", "parameters"]} if objectives > 1 else {}
        manifest = {
            "schema": 1,
            "kind": "search",
            "created": "2026-05-04T09:00:00+00:00",
            "experiment": plain,
            "data": {"planted": planted},
            "command": ["cdn-tune", "search", "--storage", "postgresql://me:hush@host/db"],
        }
        (run / "manifest.json").write_text(json.dumps(manifest))
        (run / "experiment.yaml").write_text(dump(plain))
        (run / "search_space.yaml").write_text(dump(space))
        shutil.copyfile(database(trials, objectives), run / "study.db")
        if checkpoint:
            path = run / "best" / "trial-0003" / "checkpoint.pt"
            content = {"model": build_model(experiment).state_dict(), "epoch": 9, "val": {"R1@0.5": 0.6}}
            save_checkpoint(path, experiment, {**content, "planted": planted})
        if evaluated:
            named = "best/trial-0003/checkpoint.pt" if checkpoint else None
            (run / "evaluation.json").write_text(json.dumps(made_evaluation(named, planted)))
        if queries:
            write_predictions(run, experiment, queries)
        return run

    return make


def write_predictions(run: Path, experiment: Experiment, count: int) -> None:
    """Predictions for `count` queries over the test annotations; the first query is hostile."""
    items = load_split(experiment.data, "test").annotations
    lines = []
    for at in range(count):
        item = items[at % len(items)]
        shift = item.duration * (0.03 * (at % 30)) * 0.5
        start, end = min(item.start + shift, item.duration - 0.5), min(item.end + shift, item.duration)
        moments = [[max(0.0, start - rank), min(item.duration, end + rank), 0.9 - 0.15 * rank] for rank in range(5)]
        line = {
            "id": item.id if at < len(items) else f"{item.id}:{at}",
            "video": item.video,
            "query": HOSTILE if at == 0 else f"{item.query} ({at})",
            "duration": item.duration,
            "truth": [item.start, item.end],
            "moments": moments,
            "iou": max(0.0, 1 - 0.03 * (at % 30)),
            "split": "test",
        }
        lines.append(json.dumps(line, ensure_ascii=False) + "\n")
    (run / "predictions.jsonl").write_text("".join(lines), encoding="utf-8")
