"""predictions.jsonl: what was retrieved for each query, a line each, beside what should have been."""

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cdn_tune.data.annotations import SPLITS, Annotation, true_moments
from cdn_tune.data.files import parse_json
from cdn_tune.errors import DataError
from cdn_tune.moments.metrics import Answers
from cdn_tune.moments.spans import iou
from cdn_tune.training.runs.files import write_text

PREDICTIONS = "predictions.jsonl"
PREDICTIONS_DIGEST = "predictions_sha256"  # key of evaluation.json
MOST_MOMENTS = 10_000  # of a query; a metric counts far fewer
LINE = (
    '{"id": "a:1", "video": "a", "query": "she waves", "duration": 31.5, "truth": [2, 9.5], "moments": [[2, 9, 0.8]], '
    '"iou": 0.93, "split": "test"}'
)


@dataclass(frozen=True)
class QueryResult:
    """One query and its ranked moments, as a line of the file holds them. All times are in seconds."""

    id: str  # the annotation's
    video: str
    query: str
    duration: float  # of the video
    truth: tuple[float, float]  # the annotated moment, (start, end)
    moments: tuple[tuple[float, float, float], ...]  # retrieved ones, best first, (start, end, score)
    iou: float  # of the first with the truth; 0 if there is none
    split: str
    others: tuple[tuple[float, float], ...] = ()  # further annotated moments
    qid: int | str | None = None  # the annotation's

    @property
    def annotation(self) -> Annotation:
        """The query and the annotated moments."""
        return Annotation(self.id, self.video, self.duration, *self.truth, self.query, self.others, self.qid)


def query_results(annotations: Sequence[Annotation], top: Tensor, scores: Tensor, split: str) -> list[QueryResult]:
    """Returns what was retrieved for each query.

    Args:
        annotations: The queries, Q of them.
        top: Ranked moments in seconds, NaN-padded [Q, n, 2].
        scores: Their scores [Q, n].
        split: The split the queries are of.
    """
    truth = torch.from_numpy(true_moments(annotations))
    first = iou(top[:, :1].double(), truth).nan_to_num(nan=0.0).amax(dim=1).tolist()
    rows = torch.cat([top.double(), scores.double()[..., None]], dim=-1).tolist()
    return [
        QueryResult(
            *(item.id, item.video, item.query, item.duration, (item.start, item.end)),
            tuple((start, end, score) for start, end, score in row if not math.isnan(start)),
            overlap,
            split,
            item.others,
            item.qid,
        )
        for item, row, overlap in zip(annotations, rows, first, strict=True)
    ]


def answers_of(
    listed: Sequence[Sequence[tuple[float, float, float]]], annotations: Sequence[Annotation], count: int | None = None
) -> Answers:
    """Returns listed moments as they are measured.

    Args:
        listed: (start, end, score) of the moments retrieved for each of Q queries, best first.
        annotations: The queries.
        count: Moments per query n; as many as the longest list has, at least 1, if None.
    """
    count = count or max([1, *map(len, listed)])
    missing = [(math.nan,) * 3] * count
    rows = [[*moments, *missing][:count] for moments in listed]
    spans = torch.tensor(rows, dtype=torch.float64).reshape(len(rows), count, 3)
    truth = torch.from_numpy(true_moments(annotations))
    durations = torch.tensor([item.duration for item in annotations], dtype=torch.float64)
    return Answers(spans[..., :2], truth, durations, spans[..., 2])


def video_numbers(annotations: Sequence[Annotation]) -> npt.NDArray[np.int64]:
    """Returns the video of each query as a number [Q]."""
    numbers: dict[str, int] = {}
    return np.array([numbers.setdefault(item.video, len(numbers)) for item in annotations], dtype=np.int64)


def write_query_results(path: Path, results: Iterable[QueryResult]) -> None:
    """Writes results atomically, one JSON object per line."""
    write_text(path, results_text(results))


def results_text(results: Iterable[QueryResult]) -> str:
    """Returns results as a file holds them: a JSON object per line, without the keys of several moments if unused."""
    left_out: dict[str, Any] = {"others": (), "qid": None}
    lines = (
        {key: value for key, value in vars(each).items() if key not in left_out or value != left_out[key]}
        for each in results
    )
    return "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)


def read_query_results(path: Path, evaluation: Mapping[str, Any] | None = None) -> list[QueryResult]:
    """Reads what `write_query_results` wrote.

    Args:
        path: The file.
        evaluation: Entries of the ``evaluation.json`` beside it; one of an earlier version records no digest.

    Raises:
        DataError: If the file is missing, a line is wrong, or it is of another evaluation; names file and line.
    """
    try:
        content = path.read_bytes()
        lines = content.decode().split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({error}); write it with: cdn-tune evaluate RUN") from None
    digest = hashlib.sha256(content).hexdigest()
    if (evaluation or {}).get(PREDICTIONS_DIGEST, digest) != digest:
        raise DataError(
            f"{path}: is of another evaluation than evaluation.json, whose writing was cut off, or was changed; write "
            "both with: cdn-tune evaluate RUN"
        )
    results = [_result(line, f"{path}:{count}") for count, line in enumerate(lines, start=1) if line.strip()]
    if not results:
        raise DataError(f"{path}: holds no predictions; write it with: cdn-tune evaluate RUN")
    return results


def _result(line: str, where: str) -> QueryResult:
    try:
        entry = parse_json(line)
        start, end = entry["truth"]
        if len(entry["moments"]) > MOST_MOMENTS:
            raise ValueError(f"it lists {len(entry['moments']):,} moments, more than {MOST_MOMENTS:,}")
        result = QueryResult(
            *(str(entry["id"]), str(entry["video"]), str(entry["query"]), float(entry["duration"])),
            (float(start), float(end)),
            tuple((float(first), float(last), float(score)) for first, last, score in entry["moments"]),
            float(entry["iou"]),
            str(entry["split"]),
            tuple((float(start), float(end)) for start, end in entry.get("others", ())),
            entry["qid"] if isinstance(entry.get("qid"), int | str) else None,
        )
        times = (result.duration, *result.truth, result.iou, *chain(*result.others, *result.moments))
        if not all(map(math.isfinite, times)):
            raise ValueError("a time or a score is not finite")
        if result.split not in SPLITS:
            raise ValueError(f"its split is {result.split!r}")
        return result
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise DataError(f"{where}: not a line of predictions ({reason}); expected {LINE}") from None
