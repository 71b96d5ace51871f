"""Scoring anybody's predictions against a split: annotations alone are needed, no features."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from cdn_tune.config import DataConfig
from cdn_tune.config.tables import LAYOUTS, metric_names, metrics_depth
from cdn_tune.data.annotations import Split
from cdn_tune.data.files import sha256
from cdn_tune.data.layouts import layout_of, recognise
from cdn_tune.data.splits import split_annotations
from cdn_tune.errors import ConfigError, DataError
from cdn_tune.evaluation.formats import read_predictions
from cdn_tune.evaluation.queries import answers_of
from cdn_tune.evaluation.summary import summarise
from cdn_tune.moments.bootstrap import RESAMPLES
from cdn_tune.moments.metrics import measure

SCHEMA = 1


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
    thresholds = tuple(ious or layout_of(name).ious)
    listed = read_predictions(path, annotations)
    names = metric_names(recalls, thresholds)
    answers = answers_of(listed, annotations, max(metrics_depth(names), *map(len, listed)))
    summary = summarise({path.name: measure(answers, names)}, annotations, train, thresholds, seed, resamples)
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
