"""Whether runs differ by more than chance: the same queries, in pairs."""

from collections.abc import Callable, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cdn_tune.config.tables import metric_names, metrics_depth
from cdn_tune.data.mark import is_mark, to_mark
from cdn_tune.errors import RunError
from cdn_tune.evaluation.evaluation_file import EVALUATION, read_evaluation
from cdn_tune.evaluation.queries import (
    MOST_MOMENTS,
    PREDICTIONS,
    QueryResult,
    answers_of,
    read_query_results,
    video_numbers,
)
from cdn_tune.moments.bootstrap import RESAMPLES, Paired, cluster_means, compare_paired, holm, interval
from cdn_tune.moments.metrics import Measures, mean_measures, measure
from cdn_tune.training.runs.run_folder import read_manifest

SCHEMA = 1


class _Side(NamedTuple):
    """One of the runs: its folder, its evaluation.json, what each seed retrieved, and what its numbers are of."""

    run: Path
    facts: dict[str, Any]
    results: list[list[QueryResult]]
    reported: str


class _Measured(NamedTuple):
    """Several runs, measured on the same queries."""

    sides: list[_Side]
    tables: list[Measures]
    videos: NDArray[np.int64]  # of the queries [Q]
    resamples: int
    seed: int

    @property
    def facts(self) -> dict[str, Any]:
        """What a comparison is of, ready for JSON."""
        facts = self.sides[0].facts
        return {
            "dataset": facts["dataset"],
            "planted": to_mark(self.sides[0].facts["planted"]),
            "split": facts["split"],
            "queries": len(self.videos),
            "videos": int(self.videos.max()) + 1,
            "resamples": self.resamples,
            "seed": self.seed,
        }

    def own(self, number: int) -> list[dict[str, Any]]:
        """Returns each metric of one run, ``value`` and ``interval``."""
        table = self.tables[number]
        ends = interval(cluster_means(table.values, self.videos, self.resamples, self.seed))
        return [{"value": table.means[name], "interval": ends[:, at].tolist()} for at, name in enumerate(table.names)]

    def paired(self, first: int, second: int) -> Paired:
        """Compares two of the runs."""
        return compare_paired(
            self.tables[first].values, self.tables[second].values, self.videos, self.resamples, self.seed
        )


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
    measured = _measure([first, second], resamples, seed)
    mine, theirs = (measured.own(number) for number in range(2))
    found = _differences(measured.tables[0].names, measured.paired(0, 1))
    return {
        "schema": SCHEMA,
        "first": _describe(measured.sides[0]),
        "second": _describe(measured.sides[1]),
        **measured.facts,
        "metrics": [
            {"name": row.pop("name"), "first": one, "second": two, **row}
            for row, one, two in zip(found, mine, theirs, strict=True)
        ],
    }


def compare_many(runs: Sequence[Path], resamples: int = RESAMPLES, seed: int = 0) -> dict[str, Any]:
    """Compares each of several evaluated runs with each other, as `compare_runs` does two.

    Args:
        runs: Run folders with an evaluation, three or more.
        resamples: Of the intervals and of the tests.
        seed: Of the draws.

    Returns:
        Ready for JSON: ``runs``, each with ``metrics`` (``name``, ``value``, ``interval``) and what its numbers are
        of; ``pairs``, each with the numbers of its runs as ``first`` and ``second``, and ``metrics``: ``name``,
        ``difference``, ``interval``, ``p_value`` and ``p_holm``, which is corrected for the number of pairs; and facts
        as of `compare_runs`.

    Raises:
        RunError: If a run has no evaluation, or they were not measured on the same queries.
        DataError: If predictions cannot be read.
    """
    measured = _measure(runs, resamples, seed)
    names = measured.tables[0].names
    pairs = list(combinations(range(len(runs)), 2))
    found = [measured.paired(*pair) for pair in pairs]
    corrected = holm(np.stack([each.p_value for each in found]))
    return {
        "schema": SCHEMA,
        "runs": [
            {
                **_describe(side),
                "metrics": [{"name": name, **one} for name, one in zip(names, measured.own(number), strict=True)],
            }
            for number, side in enumerate(measured.sides)
        ],
        **measured.facts,
        "pairs": [
            {
                "first": first,
                "second": second,
                "metrics": [
                    {**row, "p_holm": float(p_holm)}
                    for row, p_holm in zip(_differences(names, paired), p_holms, strict=True)
                ],
            }
            for (first, second), paired, p_holms in zip(pairs, found, corrected, strict=True)
        ],
    }


def _describe(side: _Side) -> dict[str, Any]:
    return {"run": str(side.run), "reported": side.reported, "looks": side.facts["looks"]}


def _differences(names: Sequence[str], paired: Paired) -> list[dict[str, Any]]:
    return [
        {
            "name": name,
            "difference": float(paired.difference[at]),
            "interval": [float(paired.low[at]), float(paired.high[at])],
            "p_value": float(paired.p_value[at]),
        }
        for at, name in enumerate(names)
    ]


def _measure(runs: Sequence[Path], resamples: int, seed: int) -> _Measured:
    """Reads what the runs have retrieved, and measures it by the metrics that all report.

    Raises:
        RunError: If a run has no evaluation, or they were not measured on the same queries.
        DataError: If predictions cannot be read.
    """
    sides = [_side(run) for run in runs]
    for side in sides[1:]:
        _check_same(sides[0], side)
    recalls, ious = (
        [each for each in sides[0].facts[key] if all(each in side.facts[key] for side in sides)]
        for key in ("recalls", "ious")
    )
    if not recalls or not ious:
        named = " and ".join(map(str, runs))
        raise RunError(f"{named}: report no R@n or no IoU in common; evaluate one with eval.ious=[...]")
    names = metric_names(recalls, ious, several=any(each.others for each in sides[0].results[0]))
    tables = []
    for side in sides:
        answers = [
            answers_of([each.moments for each in results], [each.annotation for each in results], metrics_depth(names))
            for results in side.results
        ]
        tables.append(mean_measures([measure(each, names) for each in answers]))
    videos = video_numbers([result.annotation for result in sides[0].results[0]])
    return _Measured(sides, tables, videos, resamples, seed)


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
    "planted": is_mark,
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
