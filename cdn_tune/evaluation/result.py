"""evaluation.json: what an evaluation found, and all that it rests on. docs/evaluation.md describes each key."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np

from cdn_tune.config import Experiment
from cdn_tune.data.splits import split_annotations
from cdn_tune.evaluation.choose_checkpoint import Choices
from cdn_tune.evaluation.literature import published_rows
from cdn_tune.evaluation.nms import NmsChoice
from cdn_tune.evaluation.queries import PREDICTIONS
from cdn_tune.evaluation.request import Request
from cdn_tune.evaluation.retrain import Retrained
from cdn_tune.evaluation.scoring import Retrieved, open_split
from cdn_tune.evaluation.summary import summarise
from cdn_tune.moments.metrics import Measures, mean_measures, measure
from cdn_tune.training.memory.estimate import count_parameters

SCHEMA = 2
PUBLISHED = "published protocol: the epoch was chosen on the test split itself, as the published code does"


@dataclass(frozen=True)
class Basis:
    """What a result rests on.

    Attributes:
        run: The run folder.
        request: What was asked.
        choices: The chosen checkpoints.
        experiment: The winner's, with its data where they are now.
        facts: Fingerprint of the data.
        changed: Names of data files that have changed since the run.
        nms: The NMS threshold.
        retrained: The winner under other seeds.
        looks: How often the test split was opened.
    """

    run: Path
    request: Request
    choices: Choices
    experiment: Experiment
    facts: dict[str, Any]
    changed: list[str]
    nms: NmsChoice
    retrained: Sequence[Retrained]
    looks: int

    def name(self, path: Path) -> str:
        """Returns a path as the result names it: relative to the run folder, if it is in it."""
        return str(path.relative_to(self.run)) if path.is_relative_to(self.run) else str(path)


def describe_result(basis: Basis, mine: Sequence[Retrieved], theirs: Sequence[Retrieved]) -> dict[str, Any]:
    """Returns what ``evaluation.json`` holds.

    Args:
        basis: What it rests on.
        mine: What the chosen checkpoints retrieved on test, best on val first; none with the published protocol.
        theirs: What those under other seeds retrieved.
    """
    request, experiment = basis.request, basis.experiment
    settings, winner = experiment.eval, basis.choices.checkpoints[0]
    test = open_split(experiment.data, "test")
    published = request.protocol == "published"

    def measured(each: Retrieved) -> Measures:
        return measure(each.answers(test), settings.test_metrics)

    seeds = {f"seed {trial.seed}": measured(each) for trial, each in zip(basis.retrained, theirs, strict=True)}
    chosen = () if published else basis.choices.checkpoints
    models = {basis.name(model.path): measured(each) for model, each in zip(chosen, mine, strict=True)}
    reported = f"mean over {len(seeds)} seeds" if len(seeds) > 1 else "one seed" if seeds else "checkpoint"
    every = {"mean": mean_measures(list(seeds.values())), **models, **seeds} if seeds else models
    train = split_annotations(experiment.data, "train").annotations
    summary = summarise(every, test.annotations, train, settings.ious, experiment.seed, request.resamples)
    each_one = summary.pop("models")
    return {
        "schema": SCHEMA,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "protocol": request.protocol,
        "label": PUBLISHED if published else None,
        "dataset": experiment.data.dataset,
        "planted": bool(basis.facts["planted"]) or winner.planted,
        "split": "test",
        "looks": basis.looks,
        "queries": len(test),
        "videos": summary["bootstrap"]["clusters"],
        "recalls": list(settings.recalls),
        "ious": list(settings.ious),
        "nms_threshold": basis.nms.threshold,
        "nms": basis.nms.plain(),
        "reported": reported,
        "metrics": summary.pop("metrics"),
        "intervals": summary.pop("intervals"),
        "std": spread(list(seeds.values())),
        "models": [
            {
                "checkpoint": basis.name(model.path),
                "seed": model.experiment.seed,
                "epoch": model.epoch,
                "parameters": count_parameters(model.experiment),
                "val": model.val,
                **each_one[basis.name(model.path)],
            }
            for model in chosen
        ],
        "seeds": _seeds(basis, each_one),
        **summary,
        "published": published_rows(experiment.data, basis.facts),
        "chosen_by": {
            "split": "test" if published else "val",
            "metric": winner.experiment.eval.metric,
            "value": None if published else winner.value,
        },
        "val": winner.val,
        "epoch": winner.epoch,
        "checkpoint": basis.name(winner.path),
        "data_changed": basis.changed,
        "damaged_checkpoints": list(basis.choices.damaged),
        "experiment": experiment.plain(),
        "data": basis.facts,
    }


def spread(seeds: Sequence[Measures]) -> dict[str, float] | None:
    """Returns each metric's standard deviation over seeds (n - 1 in the denominator); None for fewer than two."""
    if len(seeds) < 2:
        return None
    means = [each.means for each in seeds]
    return {name: float(np.std([each[name] for each in means], ddof=1)) for name in seeds[0].names}


def _seeds(basis: Basis, each_one: Mapping[str, Any]) -> dict[str, Any] | None:
    if not basis.retrained:
        return None
    published = basis.request.protocol == "published"
    return {
        "trained_on": basis.retrained[0].trained_on,
        "epoch_chosen_on": "test" if published else "val",
        "runs": [
            {
                "seed": trial.seed,
                "checkpoint": basis.name(trial.checkpoint),
                "predictions": basis.name(trial.folder / PREDICTIONS),
                **each_one[f"seed {trial.seed}"],
            }
            for trial in basis.retrained
        ],
    }
