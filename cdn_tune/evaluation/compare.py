"""Whether one run is better than another: the same queries, in pairs."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from cdn_tune.config.tables import metric_names, metrics_depth
from cdn_tune.errors import RunError
from cdn_tune.evaluation.evaluate import EVALUATION
from cdn_tune.evaluation.queries import (
    MOST_MOMENTS,
    PREDICTIONS,
    QueryResult,
    answers_of,
    read_query_results,
    video_numbers,
)
from cdn_tune.evaluation.test_result import read_evaluation
from cdn_tune.moments.bootstrap import RESAMPLES, cluster_means, compare_paired, interval
from cdn_tune.moments.metrics import mean_measures, measure
from cdn_tune.training.runs.run_folder import read_manifest

SCHEMA = 1


class _Side(NamedTuple):
    """One of the two runs: its folder, its evaluation.json, what each seed retrieved, and what its numbers are of."""

    run: Path
    facts: dict[str, Any]
    results: list[list[QueryResult]]
    reported: str


def compare_runs(first: Path, second: Path, resamples: int = RESAMPLES, seed: int = 0) -> dict[str, Any]:
    """Compares two evaluated runs on the queries of the test split, from their predictions.jsonl.

    Where a run was evaluated under several seeds, its number per query is the mean over them.

    Args:
        first: A run folder with an evaluation.
        second: Another.
        resamples: Of the intervals and of the test.
        seed: Of the draws.

    Returns:
        Ready for JSON: ``metrics``, a row for each metric that both report: ``name``, ``first`` and ``second`` (each
        ``value`` and ``interval``), ``difference`` (first minus second), ``interval``, ``p_value``; ``queries``,
        ``videos``, ``dataset``, ``planted``, and what each side's numbers are of.

    Raises:
        RunError: If a run has no evaluation, or they were not measured on the same queries.
        DataError: If predictions cannot be read.
    """
    sides = mine, theirs = _side(first), _side(second)
    _check_same(mine, theirs)
    recalls = [each for each in mine.facts["recalls"] if each in theirs.facts["recalls"]]
    ious = [each for each in mine.facts["ious"] if each in theirs.facts["ious"]]
    if not recalls or not ious:
        raise RunError(f"{first} and {second}: report no R@n or no IoU in common; evaluate one with eval.ious=[...]")
    names = metric_names(recalls, ious)
    tables = []
    for side in sides:
        answers = [
            answers_of([each.moments for each in results], [each.annotation for each in results], metrics_depth(names))
            for results in side.results
        ]
        tables.append(mean_measures([measure(each, names) for each in answers]))
    videos = video_numbers([result.annotation for result in mine.results[0]])
    own = [interval(cluster_means(table.values, videos, resamples, seed)) for table in tables]
    paired = compare_paired(tables[0].values, tables[1].values, videos, resamples, seed)
    rows = []
    for number, name in enumerate(tables[0].names):
        one, two = (
            {"value": table.means[name], "interval": ends[:, number].tolist()}
            for table, ends in zip(tables, own, strict=True)
        )
        rows.append(
            {
                "name": name,
                "first": one,
                "second": two,
                "difference": float(paired.difference[number]),
                "interval": [float(paired.low[number]), float(paired.high[number])],
                "p_value": float(paired.p_value[number]),
            }
        )
    return {
        "schema": SCHEMA,
        "first": {"run": str(first), "reported": mine.reported, "looks": mine.facts["looks"]},
        "second": {"run": str(second), "reported": theirs.reported, "looks": theirs.facts["looks"]},
        "dataset": mine.facts["dataset"],
        "planted": bool(mine.facts["planted"] or theirs.facts["planted"]),
        "split": mine.facts["split"],
        "queries": len(mine.results[0]),
        "videos": int(videos.max()) + 1,
        "resamples": resamples,
        "seed": seed,
        "metrics": rows,
    }


def _side(run: Path) -> _Side:
    path = run / EVALUATION
    read_manifest(run)
    facts = read_evaluation(run)
    if facts is None:
        raise RunError(f"{run}: is not evaluated yet; run: cdn-tune evaluate {run}")
    if facts.get("schema", 1) == 1:
        raise RunError(f"{path}: was written by an earlier version; evaluate the run again")
    for name, fits in NEEDED.items():
        if not fits(facts.get(name)):
            raise RunError(f"{path}: damaged ({name!r} is missing or of another type); evaluate the run again")
    runs = facts["seeds"]["runs"] if facts["seeds"] else []
    if runs and all((run / each["predictions"]).is_file() for each in runs):
        results = [read_query_results(run / each["predictions"]) for each in runs]
        return _Side(run, facts, results, facts["reported"])
    return _Side(run, facts, [read_query_results(run / PREDICTIONS, facts)], "checkpoint")


def _are(kind: type, low: float, high: float) -> Callable[[Any], bool]:
    """Returns a check whether a value is a list of numbers of a kind within bounds."""
    return lambda value: (
        isinstance(value, list) and all(type(each) in (int, kind) and low <= each <= high for each in value)
    )


def _are_runs(seeds: Any) -> bool:
    runs = seeds.get("runs") if isinstance(seeds, dict) else None
    return isinstance(runs, list) and all(
        isinstance(each, dict) and isinstance(each.get("predictions"), str) and "\0" not in each["predictions"]
        for each in runs
    )


# What a comparison reads of evaluation.json.
NEEDED: dict[str, Callable[[Any], bool]] = {
    "schema": lambda value: type(value) is int,
    "dataset": lambda value: isinstance(value, str),
    "planted": lambda value: isinstance(value, bool),
    "split": lambda value: isinstance(value, str),
    "looks": lambda value: type(value) is int,
    "reported": lambda value: isinstance(value, str),
    "recalls": _are(int, 1, MOST_MOMENTS),
    "ious": _are(float, 0, 1),
    "seeds": lambda value: value is None or _are_runs(value),
}


def _check_same(mine: _Side, theirs: _Side) -> None:
    for name in ("dataset", "planted", "split"):
        if mine.facts[name] != theirs.facts[name]:
            raise RunError(
                f"{mine.run} and {theirs.run}: {name} is {mine.facts[name]} there and {theirs.facts[name]} here; "
                "only runs measured on the same data compare"
            )
    questions = [_question(result) for result in mine.results[0]]
    for side in (mine, theirs):
        for results in side.results:
            if len(results) != len(questions):
                raise RunError(
                    f"{mine.run} and {theirs.run}: {len(questions)} and {len(results)} queries; "
                    "only runs measured on the same queries compare"
                )
            for question, result in zip(questions, results, strict=True):
                if question != _question(result):
                    raise RunError(
                        f"{mine.run} and {theirs.run}: query {question[0]} there, {result.id} here, or with another "
                        "video, sentence or moment; only runs measured on the same queries compare"
                    )


def _question(result: QueryResult) -> tuple[Any, ...]:
    return (result.id, result.video, result.query, result.duration, result.truth, result.others, result.split)
