"""The answers that a report shows, and which of them are worth a look."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cdn_tune.evaluation.queries import QueryResult, read_query_results


@dataclass(frozen=True)
class Predictions:
    """The answers to a split's queries.

    Attributes:
        split: ``test`` or ``val``.
        queries: One per query, in the split's order.
        whole: How many queries the split has.
        source: Where they come from, in words.
    """

    split: str
    queries: Sequence[QueryResult]
    whole: int
    source: str


@dataclass(frozen=True)
class Cases:
    """Queries worth a look, as positions in `Predictions.queries`."""

    best: list[int]
    typical: list[int]
    worst: list[int]
    sample: list[int]

    def positions(self) -> list[int]:
        """Returns every position once, the kinds in turn, so that any beginning has some of each."""
        columns = (self.worst, self.best, self.typical, self.sample)
        longest = max(map(len, columns))
        return list(dict.fromkeys(column[row] for row in range(longest) for column in columns if row < len(column)))


def recorded_predictions(path: Path) -> Predictions:
    """Returns what an evaluation recorded in ``predictions.jsonl``.

    Raises:
        DataError: Naming the file and the line that is damaged.
    """
    results = read_query_results(path)
    return Predictions(results[0].split, results, len(results), path.name)


def choose_cases(queries: Sequence[QueryResult], count: int, seed: int) -> Cases:
    """Chooses the best, the most typical and the worst answers, and a sample of all, `count` of each at most.

    Best and worst go by IoU, of equals the one of which the model was surest; typical are those nearest to the median.
    """
    ious = [query.iou for query in queries]
    scores = [query.moments[0][2] if query.moments else 0.0 for query in queries]
    everything = range(len(queries))
    middle = float(np.median(ious)) if ious else 0.0
    best = sorted(everything, key=lambda at: (-ious[at], -scores[at], at))[:count]
    worst = sorted(everything, key=lambda at: (ious[at], -scores[at], at))[:count]
    typical = sorted(everything, key=lambda at: (abs(ious[at] - middle), -scores[at], at))[:count]
    drawn = np.random.default_rng(seed).permutation(len(queries))[:count]
    return Cases(best, typical, worst, sorted(int(at) for at in drawn))
