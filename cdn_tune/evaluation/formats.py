"""Predictions in other people's formats.

- ``qvhighlights``: what `standalone_eval/eval.py` of moment_detr takes as ``--submission_path``: a JSON object per
  line, ``{"qid": 0, "query": "...", "vid": "...", "pred_relevant_windows": [[start, end, score], ...]}``, times in
  seconds; beside it the truth for its ``--gt_path`` (``relevant_windows`` in place of the predictions, and
  ``duration``). ``qid`` is the query's position in its split, from 0; the script ignores our ``id``.
- ``charades_sta``: the lines of ``charades_sta_test.txt``, ``VIDEO START END##query``, with the best moment in place of
  the annotated one, in seconds, in the split's order; a query without a moment gets ``0 0``, which hits nothing.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cdn_tune.data.annotations import Annotation
from cdn_tune.data.charades import parse_line
from cdn_tune.data.tokenizer import words
from cdn_tune.errors import DataError
from cdn_tune.evaluation.queries import QueryResult
from cdn_tune.training.runs.files import write_text

FORMATS = ("qvhighlights", "charades_sta")
Moments = tuple[tuple[float, float, float], ...]

_DIGITS = 3
_TOLERANCE = 0.01  # seconds that a rounded time may lie outside the video
_EXAMPLE = '{"id": "charades_sta_test.txt:1", "moments": [[24.3, 30.4, 0.9], ...]}'
_EXAMPLE_QV = '{"qid": 0, "pred_relevant_windows": [[24.3, 30.4, 0.9], ...]}'


def export_predictions(results: Sequence[QueryResult], form: str, folder: Path) -> list[Path]:
    """Writes predictions in one of `FORMATS`; returns the files.

    Raises:
        RunError: If a file cannot be written.
    """
    if form == "charades_sta":
        path = folder / "predictions-charades_sta.txt"
        write_text(path, "".join(_charades_line(result) for result in results))
        return [path]
    files = {folder / "predictions-qvhighlights.jsonl": "pred_relevant_windows"}
    files[folder / "truth-qvhighlights.jsonl"] = "relevant_windows"
    for path, key in files.items():
        lines = []
        for number, result in enumerate(results):
            entry: dict[str, Any] = {"qid": number, "query": result.query, "vid": result.video}
            if key == "relevant_windows":
                entry |= {"duration": result.duration, key: [list(result.truth)]}
            else:
                entry[key] = [list(moment) for moment in result.moments]
            lines.append(json.dumps({**entry, "id": result.id}, ensure_ascii=False) + "\n")
        write_text(path, "".join(lines))
    return list(files)


def _charades_line(result: QueryResult) -> str:
    start, end = result.moments[0][:2] if result.moments else (0.0, 0.0)
    return f"{result.video} {round(start, _DIGITS):g} {round(end, _DIGITS):g}##{result.query}\n"


def read_predictions(path: Path, annotations: Sequence[Annotation]) -> list[Moments]:
    """Reads anybody's predictions for a split.

    Accepted: ``predictions.jsonl`` (``id`` and ``moments`` suffice), and the two formats of this module. Moments count
    as they are listed, best first.

    Args:
        path: The file; ``.txt`` is read as ``charades_sta``, anything else as JSON lines.
        annotations: The queries of the split.

    Returns:
        For each query its moments (start, end, score), best first; scores are those of the file, or fall with the rank.

    Raises:
        DataError: If a query is unknown, missing or there twice, or a moment is not one within its video; one line.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise DataError(f"--predictions {path}: cannot be read ({reason}); give a file of predictions") from None
    lines = [(f"{path}:{count}", line) for count, line in enumerate(text.split("\n"), start=1) if line.strip()]
    if path.suffix == ".txt":
        return _read_charades(path, lines, annotations)
    position = {item.id: number for number, item in enumerate(annotations)}
    found: dict[int, Moments] = {}
    for where, line in lines:
        entry = _object(where, line)
        number = _query(entry, where, position)
        _check_same(entry, where, annotations[number])
        if number in found:
            raise DataError(f"{where}: query {annotations[number].id} is there twice; keep one line for each query")
        listed = entry.get("moments", entry.get("pred_relevant_windows"))
        found[number] = _moments(listed, where, annotations[number])
    missing = [item.id for number, item in enumerate(annotations) if number not in found]
    if missing:
        raise DataError(
            f"{path}: {len(missing)} of {len(annotations)} queries of the split are missing, first {missing[0]}; "
            "add a line for each, with an empty list where there is no answer"
        )
    return [found[number] for number in range(len(annotations))]


def _object(where: str, line: str) -> dict[str, Any]:
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: not valid JSON ({error}); write {_EXAMPLE}") from None
    if not isinstance(entry, dict) or ("moments" not in entry and "pred_relevant_windows" not in entry):
        raise DataError(f"{where}: not a line of predictions; write {_EXAMPLE} or {_EXAMPLE_QV}")
    return entry


def _query(entry: dict[str, Any], where: str, position: dict[str, int]) -> int:
    """Returns the position in the split of the query that a line is of."""
    name = entry.get("id", entry.get("qid"))
    if isinstance(name, int) and not isinstance(name, bool) and 0 <= name < len(position):
        return name
    if isinstance(name, str) and name in position:
        return position[name]
    raise DataError(
        f"{where}: query {name!r} is not in the split; name it by its id, such as {next(iter(position))!r}, "
        f"or by its position from 0 to {len(position) - 1} as qid"
    )


def _check_same(entry: dict[str, Any], where: str, item: Annotation) -> None:
    """Refuses a line of another query: positions mean nothing in another split or order."""
    video = entry.get("video", entry.get("vid", item.video))
    query = entry.get("query", item.query)
    same_query = isinstance(query, str) and words(query) == words(item.query)  # case and punctuation do not matter
    for name, told, wanted, same in (
        ("video", video, item.video, video == item.video),
        ("query", query, item.query, same_query),
    ):
        if not same:
            raise DataError(
                f"{where}: its {name} is {told!r:.60}, but query {item.id} of the split has {wanted!r:.60}; "
                "name the dataset and split that the predictions are of"
            )


def _moments(listed: Any, where: str, item: Annotation) -> Moments:
    if not isinstance(listed, list):
        raise DataError(f"{where}: moments of {item.id} are no list; write {_EXAMPLE}")
    found: list[tuple[float, float, float]] = []
    for rank, moment in enumerate(listed):
        what = f"{where}: moment {rank + 1} of {item.id}"
        if not isinstance(moment, list) or len(moment) not in (2, 3) or not all(map(_is_number, moment)):
            raise DataError(f"{what} is {moment!r}; write [start, end, score], times in seconds")
        start, end = float(moment[0]), float(moment[1])
        score = float(moment[2]) if len(moment) == 3 else 1 / (rank + 1)
        if not all(map(math.isfinite, (start, end, score))):
            raise DataError(f"{what} is {moment!r}; NaN and infinity are no times and no scores")
        if end < start:
            raise DataError(f"{what} ends at {end:g} s, before its start at {start:g} s; swap them")
        if start < -_TOLERANCE or end > item.duration + _TOLERANCE:
            raise DataError(
                f"{what}, {start:g} to {end:g} s, lies outside video {item.video} of {item.duration:g} s; "
                "clip it, or check that times are seconds"
            )
        if found and score > found[-1][2]:
            raise DataError(f"{what} has a higher score than the one before it; list moments best first")
        found.append((start, end, score))
    return tuple(found)


def _read_charades(path: Path, lines: Sequence[tuple[str, str]], annotations: Sequence[Annotation]) -> list[Moments]:
    if len(lines) != len(annotations):
        raise DataError(
            f"{path}: {len(lines)} lines for {len(annotations)} queries of the split; "
            "write one VIDEO START END##query for each, in the split's order"
        )
    found = []
    for (where, line), item in zip(lines, annotations, strict=True):
        video, start, end, query = parse_line(line, where)
        if (video, query.strip()) != (item.video, item.query):
            raise DataError(
                f"{where}: is of {video!r}, {query.strip()[:60]!r}, but the split has {item.id} here; keep its order"
            )
        found.append(_moments([[start, end]], where, item))
    return found


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
