"""What a model answered, query by query: read from the run, or computed from its best checkpoint."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cdn_tune.data.annotations import SPLITS
from cdn_tune.errors import RunError

Span = tuple[float, float]


@dataclass(frozen=True)
class Prediction:
    """A query, its moment, and the model's answers. Times are in seconds.

    Attributes:
        id: The annotation's id.
        video: Name of the video.
        query: The sentence.
        duration: Length of the video.
        truth: The annotated moment.
        moments: Ranked (start, end, score), best first.
        iou: Of the first moment with the annotated one.
    """

    id: str
    video: str
    query: str
    duration: float
    truth: Span
    moments: tuple[tuple[float, float, float], ...]
    iou: float

    @property
    def score(self) -> float:
        """Score of the first moment; 0 without one."""
        return self.moments[0][2] if self.moments else 0.0


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
    queries: tuple[Prediction, ...]
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


def read_predictions(path: Path) -> Predictions:
    """Reads ``predictions.jsonl``.

    Raises:
        RunError: Naming the file and the line that is damaged.
    """
    found: list[Prediction] = []
    split = "test"
    try:
        lines = path.read_text(encoding="utf-8").split("\n")  # queries may hold other line ends
    except (OSError, ValueError) as error:
        raise RunError(f"{path}: cannot be read ({error}); run cdn-tune evaluate again") from None
    for at, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            found.append(_prediction(entry))
            split = _split(entry.get("split", split))
        except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
            raise RunError(f"{path}:{at}: is no prediction ({error}); run cdn-tune evaluate again") from None
    if not found:
        raise RunError(f"{path}: holds no prediction; run cdn-tune evaluate again")
    return Predictions(split, tuple(found), len(found), path.name)


def choose_cases(queries: tuple[Prediction, ...], count: int, seed: int) -> Cases:
    """Chooses the best, the most typical and the worst answers, and a sample of all, `count` of each at most.

    Best and worst go by IoU, of equals the one of which the model was surest; typical are those nearest to the median.
    """
    ious = [query.iou for query in queries]
    everything = range(len(queries))
    middle = float(np.median(ious)) if ious else 0.0
    best = sorted(everything, key=lambda at: (-ious[at], -queries[at].score, at))[:count]
    worst = sorted(everything, key=lambda at: (ious[at], -queries[at].score, at))[:count]
    typical = sorted(everything, key=lambda at: (abs(ious[at] - middle), -queries[at].score, at))[:count]
    drawn = np.random.default_rng(seed).permutation(len(queries))[:count]
    return Cases(best, typical, worst, sorted(int(at) for at in drawn))


def overlap(one: Span, other: Span) -> float:
    """Returns the IoU of two moments, 0 where it is not defined."""
    shared = min(one[1], other[1]) - max(one[0], other[0])
    union = max(one[1], other[1]) - min(one[0], other[0])
    return max(0.0, shared / union) if union > 0 else 0.0


def _split(name: Any) -> str:
    if name not in SPLITS:
        raise ValueError(f"its split is {name!r}")
    return str(name)


def _prediction(entry: dict[str, Any]) -> Prediction:
    start, end = map(float, entry["truth"])
    moments = tuple(
        (float(moment[0]), float(moment[1]), float(moment[2]) if len(moment) > 2 else 0.0)
        for moment in entry["moments"][:5]
        if None not in moment
    )
    given = entry.get("iou")
    iou = float(given) if given is not None else overlap(moments[0][:2], (start, end)) if moments else 0.0
    values = [start, end, float(entry["duration"]), iou, *(value for moment in moments for value in moment)]
    if not all(map(math.isfinite, values)):
        raise ValueError("a time or a score is not finite")
    return Prediction(
        str(entry["id"]), str(entry["video"]), str(entry["query"]), float(entry["duration"]), (start, end), moments, iou
    )
