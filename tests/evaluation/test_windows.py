"""Queries that several moments answer, from annotations in the form of QVHighlights to scored predictions."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cdn_tune.config import Experiment
from cdn_tune.data.dataset import load_split, load_splits
from cdn_tune.data.fingerprint import fingerprint
from cdn_tune.data.planted import plant
from cdn_tune.evaluation.evaluate import evaluate_run
from cdn_tune.evaluation.predictions import export_predictions, score_predictions
from cdn_tune.evaluation.queries import PREDICTIONS, read_query_results
from cdn_tune.evaluation.request import Request
from cdn_tune.moments.temporal_map import iou_map, iou_maps
from cdn_tune.training.plan import make_plan
from cdn_tune.training.reports import ignore
from cdn_tune.training.runs.checkpoint import build_model
from cdn_tune.training.runs.run_folder import claim, describe_run, locked
from cdn_tune.training.train_trial import train_in

QUERIES = ("a person opens the door", "person takes a cup", "she closes the window")


@pytest.fixture(scope="module")
def windows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A planted folder whose queries have one to three moments each."""
    source, root = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("windows") / "root"
    generator = np.random.default_rng(0)
    for split, videos in (("train", range(16)), ("test", range(16, 22))):
        lines = []
        for video in videos:
            for number, query in enumerate(QUERIES):
                starts = np.sort(generator.choice(12, 1 + number, replace=False)) * 2.0
                line = {"qid": 1000 + len(QUERIES) * video + number, "query": query, "vid": f"v{video}", "duration": 24}
                lines.append({**line, "relevant_windows": [[start, start + 2] for start in starts]})
        (source / f"{split}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return plant(root, "jsonl", source, feature_size=16, word_size=12, frame_rate=2.0).root


def test_from_annotations_to_scored_predictions(windows: Path, tiny: Callable[..., Experiment], tmp_path: Path) -> None:
    changes: dict[str, Any] = {"data.dataset": "jsonl", "data.root": str(windows), "train.epochs": 1}
    experiment = tiny(**changes)
    assert make_plan(experiment, load_splits(experiment.data, ("train", "val")), measured_steps=1).queries["train"] > 0
    run = tmp_path / "run"
    with locked(run):
        manifest = describe_run("train", experiment, fingerprint(experiment.data))
        claim(run, manifest, {"experiment.yaml": experiment.plain()})
        train_in(experiment, run, ignore)
    result = evaluate_run(run, request=Request(resamples=20))
    results = read_query_results(run / PREDICTIONS)
    assert [len(each.others) for each in results] == [0, 1, 2] * 6
    assert [each.qid for each in results] == list(range(1048, 1066))
    assert json.loads((run / PREDICTIONS).read_text().splitlines()[0]).keys().isdisjoint({"others"})
    predictions, truth = export_predictions(results, "qvhighlights", tmp_path)
    lines = [json.loads(line) for line in truth.read_text().splitlines()]
    given = [json.loads(line) for line in (windows / "test.jsonl").read_text().splitlines()]
    for line, wanted in zip(lines, given, strict=True):
        assert {key: line[key] for key in wanted} == wanted
    foreign = [json.loads(line) for line in predictions.read_text().splitlines()]
    for line in foreign:
        del line["id"]
    predictions.write_text("".join(json.dumps(line) + "\n" for line in foreign[::-1]))  # found by their qid alone
    scored = score_predictions(predictions, windows, recalls=(1, 5), ious=(0.3, 0.5), resamples=20)
    for name in ("R1@0.5", "mIoU", "mAP"):
        assert scored["metrics"][name] == pytest.approx(result["metrics"][name], abs=1e-4)


def test_a_batch_carries_every_moment_and_the_target_is_the_best(
    windows: Path, tiny: Callable[..., Experiment]
) -> None:
    experiment = tiny(**{"data.dataset": "jsonl", "data.root": str(windows)})
    dataset = load_split(experiment.data, "test")
    batch = dataset.batch([0, 2])
    assert batch.moments.tolist() == [list(dataset.annotations[at].moments[0]) for at in (0, 2)]
    assert batch.all_moments.isfinite().all(dim=-1).sum(dim=1).tolist() == [1, 3]
    maps = iou_maps(batch.durations, batch.all_moments, 8)
    for row, at in enumerate((0, 2)):
        each = [iou_map(24, moment, 8) for moment in dataset.annotations[at].moments]
        assert torch.equal(maps[row], torch.stack(each).amax(dim=0))
    model = build_model(experiment)
    output = model(*model.inputs_of(batch))
    first_only = replace(batch, all_moments=batch.moments[:, None])
    assert model.loss(output, batch).total != model.loss(output, first_only).total
