"""Scoring anybody's predictions against a split: annotations alone are needed, no features."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from cdn_tune.config import DataConfig
from cdn_tune.data.annotations import Split
from cdn_tune.data.doctor.recognise import recognise
from cdn_tune.data.files import sha256
from cdn_tune.data.layouts import LAYOUTS
from cdn_tune.data.splits import split_annotations
from cdn_tune.errors import ConfigError, DataError
from cdn_tune.evaluation.formats import read_predictions
from cdn_tune.evaluation.per_query_metrics import depth, measures
from cdn_tune.evaluation.queries import pad_moments
from cdn_tune.evaluation.summary import summarise
from cdn_tune.moments.bootstrap import RESAMPLES

SCHEMA = 1
# The IoUs that each dataset's papers report.
IOUS: dict[str, tuple[float, ...]] = {
    "charades_sta": (0.3, 0.5, 0.7),
    "tacos": (0.1, 0.3, 0.5),
    "activitynet": (0.3, 0.5, 0.7),
    "jsonl": (0.3, 0.5, 0.7),
}


def score_predictions(
    path: Path,
    root: Path,
    dataset: str | None = None,
    split: Split = "test",
    val_fraction: float | None = None,
    recalls: Sequence[int] = (1, 5),
    ious: Sequence[float] | None = None,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> dict[str, Any]:
    """Scores a file of predictions.

    Args:
        path: The file, in a format of `formats.read_predictions`.
        root: Folder with the annotations.
        dataset: Their layout; recognised by the files if None.
        split: The split the predictions are of.
        val_fraction: Share of the training videos that is val, where the dataset has no val split; as in experiments
            if None.
        recalls: The n of R@n.
        ious: IoU thresholds; those of the dataset's papers if None.
        seed: Of random answers and resamples.
        resamples: Of intervals and tests.

    Returns:
        The keys of ``evaluation.json`` that need no model (see docs/evaluation.md), and ``predictions``, the file.

    Raises:
        DataError: If annotations or predictions are wrong.
    """
    if not root.is_dir():
        raise DataError(f"--data {root}: no such folder; name the folder with the annotations")
    name = dataset or next(iter(recognise(root)), None)
    if name is None:
        raise DataError(f"--data {root}: no annotation files of a known dataset; name it with --dataset")
    if name not in LAYOUTS:
        raise ConfigError(f"--dataset {name}: unknown; choose one of {', '.join(LAYOUTS)}")
    settings = {} if val_fraction is None else {"val_fraction": val_fraction}
    config = DataConfig.model_validate({"dataset": name, "root": str(root), **settings})
    annotations = split_annotations(config, split).annotations
    train = split_annotations(config, "train").annotations
    thresholds = tuple(ious or IOUS[name])
    listed = read_predictions(path, annotations)
    top = pad_moments(listed, max(depth(recalls), *map(len, listed)))
    truth = torch.tensor([(item.start, item.end) for item in annotations], dtype=torch.float64)
    found = measures(top, truth, recalls, thresholds)
    summary = summarise({path.name: found}, annotations, train, recalls, thresholds, seed, resamples)
    summary.pop("models")
    return {
        "schema": SCHEMA,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "predictions": {
            "file": str(path),
            "sha256": sha256(path),
            "moments": sum(map(len, listed)),
        },
        "dataset": name,
        "root": str(root.absolute()),
        "split": split,
        "queries": len(annotations),
        "videos": summary["bootstrap"]["clusters"],
        "recalls": list(recalls),
        "ious": list(thresholds),
        **summary,
    }
