"""The final word: the best checkpoint on the test split, beside what needs no model."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from cdn_tune.config import EvalConfig, override, recall_name
from cdn_tune.data.dataset import MomentDataset, load_splits
from cdn_tune.data.fingerprint import fingerprint
from cdn_tune.errors import ConfigError
from cdn_tune.evaluation.best import choose_best
from cdn_tune.moments.baselines import best_constant, constant_top, random_top
from cdn_tune.moments.metrics import measure
from cdn_tune.training.evaluation import evaluate_split, name_metrics
from cdn_tune.training.files import write_json
from cdn_tune.training.precision import resolve_precision
from cdn_tune.training.run_folder import changed_files, locked, read_manifest
from cdn_tune.training.world import this_world

SCHEMA = 1
EVALUATION = "evaluation.json"
# Where the data lie and what is reported; anything else would be another model, another choice, or other data.
CHANGEABLE = ("data.root", "data.features", "data.word_vectors", "eval.batch_size", "eval.recalls", "eval.ious")


def evaluate_run(run: Path, overrides: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Evaluates a run's best checkpoint on the test split and writes ``evaluation.json``.

    Args:
        run: Folder of a train or search run.
        overrides: Dotted keys of the experiment, e.g. ``data.root`` where the data have moved. Only `CHANGEABLE` keys.

    Returns:
        What ``evaluation.json`` holds.

    Raises:
        CdnTuneError: If run, checkpoint or data are at fault.
    """
    choice = choose_best(run)
    checkpoint = choice.checkpoint
    for key, value in (overrides or {}).items():
        if key not in CHANGEABLE:
            raise ConfigError(f"override {key}={value}: after training only {', '.join(CHANGEABLE)} can change")
    experiment = override(checkpoint.experiment.plain(), overrides or {}, str(checkpoint.path))
    with locked(run):
        looks = len(list(run.glob("evaluation*.json")))
        splits = load_splits(experiment.data, ("train", "test"))
        facts = fingerprint(experiment.data)
        world = this_world()
        model = checkpoint.model.to(world.device)
        dtype = resolve_precision(experiment.train.precision, world.device)
        metrics = evaluate_split(model, splits["test"], experiment.eval, world, dtype).metrics
        result = {
            "schema": SCHEMA,
            "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "dataset": experiment.data.dataset,
            "planted": bool(facts["planted"]) or checkpoint.planted,
            "split": "test",
            "looks": looks + 1,
            "queries": len(splits["test"]),
            "recalls": list(experiment.eval.recalls),
            "ious": list(experiment.eval.ious),
            "nms_threshold": experiment.eval.nms_threshold,
            "metrics": metrics,
            "baselines": baselines(splits["train"], splits["test"], experiment.eval, experiment.seed),
            "chosen_by": {"split": "val", "metric": checkpoint.experiment.eval.metric, "value": checkpoint.value},
            "val": checkpoint.val,
            "epoch": checkpoint.epoch,
            "checkpoint": str(checkpoint.path.relative_to(run)),
            "data_changed": changed_files(read_manifest(run).get("data", {}), facts),
            "damaged_checkpoints": list(choice.damaged),
            "experiment": experiment.plain(),
            "data": facts,
        }
        if (run / EVALUATION).exists():  # every look is kept; the first is the one to report
            (run / EVALUATION).replace(run / f"evaluation-look-{looks}.json")
        write_json(run / EVALUATION, result)
    return result


def baselines(train: MomentDataset, test: MomentDataset, config: EvalConfig, seed: int) -> dict[str, dict[str, Any]]:
    """Measures on test what needs no model.

    Args:
        train: Where the constant answer is chosen.
        test: Where both are measured.
        config: Recalls and IoUs.
        seed: Of the random answers.

    Returns:
        ``best_constant``: the same share of every video, chosen for R1@0.5 on train (where 0.5 is not measured, for the
        middle IoU); it is one answer, so it has R1 and mIoU only. ``random``: moments with uniform ends.
    """
    iou = 0.5 if 0.5 in config.ious else config.ious[len(config.ious) // 2]
    answer = best_constant(train.durations, train.moments, iou)
    one = config.model_copy(update={"recalls": (1,)})  # it has one answer, so R1 and mIoU are all it has
    constant = measure(constant_top(test.durations, answer), test.moments, one.recalls, one.ious)
    generator = torch.Generator().manual_seed(seed)
    guesses = random_top(test.durations, max(config.recalls), generator)
    return {
        "best_constant": {
            "answer": list(answer),
            "chosen_for": recall_name(1, iou),
            "metrics": name_metrics(constant, one),
        },
        "random": {"metrics": name_metrics(measure(guesses, test.moments, config.recalls, config.ious), config)},
    }
