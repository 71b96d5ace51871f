"""Which of a split's queries to show first: the best, typical and worst answers, and the mistakes that tell most."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from cdn_tune.evaluation.queries import QueryResult, answers_of

TOP = 5  # moments of a query that a report shows
LISTED = 10  # mistakes of a kind, at most
_CLOSE = 0.1  # below the threshold


@dataclass(frozen=True)
class Mistake:
    """A query whose first answer is wrong, and the answer that makes it worth a look."""

    at: int  # position of the query
    rank: int  # of that answer, from 1
    score: float  # of that answer
    iou: float  # of that answer with the annotated moment that it fits best


@dataclass(frozen=True)
class Mistakes:
    """The wrong answers from which most is learnt; an answer is wrong if its IoU is below the threshold."""

    threshold: float
    confident: list[Mistake] = field(default_factory=list)  # first answers, highest score first
    late: list[Mistake] = field(default_factory=list)  # right ones at ranks 2 to `TOP`, by rank, then by score
    close: list[Mistake] = field(default_factory=list)  # first answers just below the threshold, highest IoU first


@dataclass(frozen=True)
class Cases:
    """Queries to show first, as positions in `Predictions.queries`."""

    best: list[int]
    typical: list[int]
    worst: list[int]
    sample: list[int]

    def positions(self, mistakes: Mistakes | None = None) -> list[int]:
        """Returns every position once, the kinds in turn, so that any beginning has some of each."""
        columns = [self.worst, self.best, self.typical, self.sample]
        if mistakes:
            columns += [[each.at for each in kind] for kind in (mistakes.confident, mistakes.late, mistakes.close)]
        longest = max(map(len, columns))
        return list(dict.fromkeys(column[row] for row in range(longest) for column in columns if row < len(column)))


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


def choose_mistakes(queries: Sequence[QueryResult], threshold: float) -> Mistakes:
    """Chooses the most confident wrong answers and the near misses, `LISTED` of each kind at most.

    A query that nothing answers (its annotated moment is empty) is none of them.

    Args:
        queries: With their ranked answers; of several annotated moments the one that fits an answer best counts.
        threshold: IoU from which an answer is right.
    """
    if not queries:
        return Mistakes(threshold)
    found = answers_of([query.moments for query in queries], [query.annotation for query in queries], TOP)
    wrong: list[Mistake] = []
    late: list[Mistake] = []
    for at, (query, ious) in enumerate(zip(queries, found.overlap.tolist(), strict=True)):
        if not query.moments or query.truth[0] >= query.truth[1] or ious[0] >= threshold:
            continue
        wrong.append(Mistake(at, 1, query.moments[0][2], ious[0]))
        rank = next((rank for rank, iou in enumerate(ious[: len(query.moments)]) if iou >= threshold), None)
        if rank is not None:
            late.append(Mistake(at, rank + 1, query.moments[rank][2], ious[rank]))
    confident = sorted(wrong, key=lambda each: (-each.score, each.at))
    close = [each for each in wrong if each.iou >= threshold - _CLOSE]
    return Mistakes(
        threshold,
        confident[:LISTED],
        sorted(late, key=lambda each: (each.rank, -each.score, each.at))[:LISTED],
        sorted(close, key=lambda each: (-each.iou, -each.score, each.at))[:LISTED],
    )
