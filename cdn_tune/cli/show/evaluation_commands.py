"""`cdn-tune evaluate` and `cdn-tune compare`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from cdn_tune.cli.show.evaluation_tables import comparison_table, evaluation_tables, groups_table
from cdn_tune.cli.show.output import err, out, warn
from cdn_tune.config import parse_overrides
from cdn_tune.data.annotations import Split
from cdn_tune.errors import ConfigError
from cdn_tune.evaluation.compare import compare_runs
from cdn_tune.evaluation.evaluate import EVALUATION, EVALUATION_PUBLISHED, evaluate_run
from cdn_tune.evaluation.predictions import score_predictions
from cdn_tune.evaluation.queries import PREDICTIONS
from cdn_tune.evaluation.request import Request
from cdn_tune.evaluation.score_maps import SCORE_MAPS
from cdn_tune.evaluation.scoring import Workers
from cdn_tune.training.object_store.sync import fetched, fetched_file
from cdn_tune.training.object_store.working_copy import shown, url_of


def evaluate(
    run: Path,
    overrides: dict[str, Any],
    *,
    top: int = 1,
    checkpoint: Path | None = None,
    front: bool = False,
    seeds: int = 0,
    train_on: Literal["train", "train+val"] = "train",
    choose_nms: bool = False,
    protocol: Literal["honest", "published"] = "honest",
    workers: int = 1,
    address: str | None = None,
    score_maps: bool = False,
    formats: tuple[str, ...] = (),
    other_data: bool = False,
) -> dict[str, Any]:
    """Evaluates a run and prints what it found; returns what evaluation.json holds."""
    if url_of(run) is not None:
        if address is not None:
            raise ConfigError("--address ADDR: a run on an object store is evaluated on one machine; leave it out")
        run = fetched(run, models=True)
    if checkpoint is not None:
        checkpoint = fetched_file(checkpoint)
    trials = None
    if front:
        from cdn_tune.tuning.results.front import front_trials

        trials = tuple(front_trials(run))
    request = Request(
        top=top,
        checkpoint=checkpoint,
        trials=trials,
        seeds=seeds,
        train_on=train_on,
        choose_nms=choose_nms,
        protocol=protocol,
        workers=Workers(workers, address),
        score_maps=score_maps,
        formats=formats,
        other_data=other_data,
    )
    if protocol == "published":
        warn("--protocol published chooses the epoch on the test split: its numbers are no estimate of new queries")
    with err.status("evaluating") as status:
        result = evaluate_run(run, overrides, request, lambda stage: status.update(stage))
    _print_evaluation(run, result, score_maps)
    return result


def score(
    predictions: Path, data: Path | None, dataset: str | None, split: Split, overrides: list[str], output: Path | None
) -> dict[str, Any]:
    """Scores anybody's predictions and prints what it found."""
    if data is None:
        raise ConfigError("--predictions FILE: say against which annotations with --data DIR")
    settings = parse_overrides(overrides)
    known = {"eval.recalls": "recalls", "eval.ious": "ious", "data.val_fraction": "val_fraction"}
    for key in settings:
        if key not in known:
            raise ConfigError(f"override {key}: with --predictions only {', '.join(known)} can be given")
    chosen = {known[key]: _numbers(key, value) for key, value in settings.items()}
    with err.status("scoring"):
        result = score_predictions(predictions, data, dataset, split, **chosen)
    out.print(*evaluation_tables(result))
    out.print(groups_table(result))
    if output is not None:
        from cdn_tune.training.runs.files import write_json

        write_json(output, result)
        out.print(f"evaluation: {output}", markup=False, soft_wrap=True)
    return result


def compare(first: Path, second: Path, as_json: bool = False) -> dict[str, Any]:
    """Compares two evaluated runs and prints the difference."""
    first, second = (each if url_of(each) is None else fetched(each, models=True) for each in (first, second))
    with err.status("resampling"):
        result = compare_runs(first, second)
    if as_json:
        out.print(json.dumps(result, indent=2, ensure_ascii=False), markup=False, soft_wrap=True)
        return result
    out.print(comparison_table(result))
    for name, side in (("A", "first"), ("B", "second")):
        about = result[side]
        out.print(f"{name}: {about['run']}, {about['reported']}", markup=False, soft_wrap=True)
        if about["looks"] > 1:
            warn(f"{name}: its test split was opened {about['looks']} times")
    out.print(
        f"A - B: mean difference over queries; interval: bootstrap by video; p: sign-flip test by video, "
        f"{result['resamples']} draws, one test per metric",
        markup=False,
    )
    _print_planted(result)
    return result


def _print_evaluation(run: Path, result: dict[str, Any], score_maps: bool) -> None:
    for line in result["damaged_checkpoints"]:
        warn(line)
    out.print(*evaluation_tables(result))
    out.print(groups_table(result))
    if result["published"]:
        out.print("published rows were chosen on the test split; the rows above them were not", style="magenta")
    _print_planted(result)
    if result["data_changed"]:
        warn(f"these are not the data of the run: {', '.join(result['data_changed'])} changed since")
    published = result["protocol"] == "published"
    if result["looks"] > 1:
        first = run / "evaluation-look-1.json"
        hint = f"; report the first look, {first}" if first.exists() and not published else ""
        warn(f"the test split was opened {result['looks']} times for this run{hint}")
    if len(result["models"]) > 1:
        many = len(result["models"])
        warn(f"{many} models were measured; report the first, the best on val: to pick one here is to tune on test")
    nms = result["nms"]
    why = f"chosen on val by {nms['metric']}" if nms["chosen_on"] == "val" else "the experiment's"
    out.print(f"NMS threshold {result['nms_threshold']:g}, {why}", markup=False)
    if published:
        out.print(f"{result['label']}; {result['reported']}", markup=False, soft_wrap=True)
    else:
        chosen = result["chosen_by"]
        how = "imported" if chosen["value"] is None else f"chosen by val {chosen['metric']} {chosen['value']:.4f}"
        out.print(f"{result['checkpoint']}, epoch {result['epoch']}, {how}", markup=False, soft_wrap=True)
    predictions = run / ("predictions-published.jsonl" if published else PREDICTIONS)
    out.print(f"predictions: {shown(predictions)}", markup=False, soft_wrap=True)
    if score_maps:
        out.print(f"score maps: {shown(run / SCORE_MAPS)}", markup=False, soft_wrap=True)
    evaluation = run / (EVALUATION_PUBLISHED if published else EVALUATION)
    out.print(f"evaluation: {shown(evaluation)}", markup=False, soft_wrap=True)


def _print_planted(result: dict[str, Any]) -> None:
    if result["planted"]:
        out.print("planted data: these numbers say that the tool works, nothing about real videos", style="yellow")


def _numbers(key: str, value: Any) -> Any:
    if key == "data.val_fraction":
        if not isinstance(value, float) or not 0 < value < 1:
            raise ConfigError(f"override {key}={value}: write a share between 0 and 1")
        return value
    kind, what = (
        (int, "whole numbers, such as [1, 5]") if key == "eval.recalls" else (float, "IoUs, such as [0.5, 0.7]")
    )
    listed = value if isinstance(value, list) else [value]
    good = all(isinstance(each, kind | int) and not isinstance(each, bool) and each >= 0 for each in listed)
    if not listed or not good or (kind is int and min(listed) < 1) or (kind is float and max(listed) > 1):
        raise ConfigError(f"override {key}={value}: write {what}")
    return listed
