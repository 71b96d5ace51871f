"""Predictions in the formats of other tools, and the scores of anybody's predictions, for which annotations suffice.

- ``qvhighlights``: what `standalone_eval/eval.py` of moment_detr takes as ``--submission_path``: a JSON object per
  line, ``{"qid": 0, "query": "...", "vid": "...", "pred_relevant_windows": [[start, end, score], ...]}``, times in
  seconds; beside it the truth for its ``--gt_path`` (``relevant_windows`` in place of the predictions, and
  ``duration``). ``qid`` is that of the annotations, else the query's position in its split, from 0; the script ignores
  our ``id``.
- ``charades_sta``: the lines of ``charades_sta_test.txt``, ``VIDEO START END##query``, with the best moment in place of
  the annotated one, in seconds, in the split's order; a query without a moment gets ``0 0``, which hits nothing.
"""

import json
import math
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from cdn_tune.config import DataConfig
from cdn_tune.config.tables import LAYOUTS, metric_names, metrics_depth
from cdn_tune.data.annotations import Annotation, Split
from cdn_tune.data.charades import parse_line
from cdn_tune.data.files import parse_json, sha256
from cdn_tune.data.layouts import layout_of, recognise
from cdn_tune.data.splits import split_annotations
from cdn_tune.data.tokenizer import words
from cdn_tune.errors import ConfigError, DataError
from cdn_tune.evaluation.queries import MOST_MOMENTS, QueryResult, answers_of
from cdn_tune.evaluation.summary import summarise
from cdn_tune.moments.bootstrap import RESAMPLES
from cdn_tune.moments.metrics import measure
from cdn_tune.training.runs.files import write_text

SCHEMA = 1
FORMATS = ("qvhighlights", "charades_sta")
Moments = tuple[tuple[float, float, float], ...]

_TOLERANCE = 0.01  # seconds that a rounded time may lie outside the video
_EXAMPLE = '{"id": "charades_sta_test.txt:1", "moments": [[24.3, 30.4, 0.9], ...]}'
_EXAMPLE_QV = '{"qid": 0, "pred_relevant_windows": [[24.3, 30.4, 0.9], ...]}'


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
        path: The file, in a format of `read_predictions`.
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
        The keys of ``evaluation.json`` that need no model (docs/reference/run-folder.md describes them), and
        ``predictions``: the file, and how many of its lines are of absent sentences, which are not scored.

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
    loaded = split_annotations(config, split)
    annotations = loaded.queries  # all of the file, so that positions are the file's
    train = split_annotations(config, "train").annotations
    thresholds = tuple(ious or layout_of(name).ious)
    listed, absent = read_predictions(path, annotations, loaded.absent)
    names = metric_names(recalls, thresholds, several=any(item.others for item in annotations))
    answers = answers_of(listed, annotations, metrics_depth(names))
    summary = summarise({path.name: measure(answers, names)}, annotations, train, thresholds, seed, resamples)
    summary.pop("models")
    return {
        "schema": SCHEMA,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "predictions": {
            "file": str(path),
            "sha256": sha256(path),
            "moments": sum(map(len, listed)),
            "absent": absent,
        },
        "dataset": name,
        "root": str(root.absolute()),
        "split": split,
        "queries": len(annotations),
        "without_moment": [{"id": item.id, "reason": item.reason} for item in loaded.skipped],
        "videos": summary["bootstrap"]["clusters"],
        "recalls": list(recalls),
        "ious": list(thresholds),
        **summary,
    }


def export_predictions(results: Sequence[QueryResult], form: str, folder: Path) -> list[Path]:
    """Writes predictions in one of `FORMATS`; returns the files.

    Raises:
        RunError: If a file cannot be written.
    """
    if form == "charades_sta":
        path = folder / "predictions-charades_sta.txt"
        best = [(each, each.moments[0][:2] if each.moments else (0.0, 0.0)) for each in results]
        lines = [f"{each.video} {round(start, 3):g} {round(end, 3):g}##{each.query}\n" for each, (start, end) in best]
        write_text(path, "".join(lines))
        return [path]
    predictions, truth = [], []
    for number, each in enumerate(results):
        qid = number if each.qid is None else each.qid
        entry: dict[str, Any] = {"qid": qid, "query": each.query, "vid": each.video}
        predictions.append({**entry, "pred_relevant_windows": list(map(list, each.moments)), "id": each.id})
        windows = [list(moment) for moment in each.annotation.moments]
        truth.append({**entry, "duration": each.duration, "relevant_windows": windows, "id": each.id})
    files = {"predictions-qvhighlights.jsonl": predictions, "truth-qvhighlights.jsonl": truth}
    for name, entries in files.items():
        write_text(folder / name, "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries))
    return [folder / name for name in files]


def read_predictions(
    path: Path, annotations: Sequence[Annotation], absent: Sequence[Annotation] = ()
) -> tuple[list[Moments], int]:
    """Reads anybody's predictions for a split.

    Accepted: ``predictions.jsonl`` (``id`` and ``moments`` suffice), and the two formats of this module. Moments count
    as they are listed, best first.

    Args:
        path: The file; ``.txt`` is read as ``charades_sta``, anything else as JSON lines.
        annotations: The queries of the split.
        absent: The sentences of the split that are marked as not in their video; they may have lines, which are checked
            and counted, or have none.

    Returns:
        For each query its moments (start, end, score), best first; scores are those of the file, or fall with the rank.
        And the number of lines of `absent`.

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
        return _read_charades(path, lines, annotations, absent)
    known = [*annotations, *absent]
    ids = {item.id: number for number, item in enumerate(known)}
    qids = {item.qid: number for number, item in enumerate(known) if item.qid is not None}
    found: dict[int, Moments] = {}
    for where, line in lines:
        entry = _object(where, line)
        number = _query(entry, where, ids, qids, len(annotations))
        _check_same(entry, where, known[number])
        if number in found:
            raise DataError(f"{where}: query {known[number].id} is there twice; keep one line for each query")
        listed = entry.get("moments", entry.get("pred_relevant_windows"))
        found[number] = _moments(listed, where, known[number])
    missing = [item.id for number, item in enumerate(annotations) if number not in found]
    if missing:
        raise DataError(
            f"{path}: {len(missing)} of {len(annotations)} queries of the split are missing, first {missing[0]}; "
            "add a line for each, with an empty list where there is no answer"
        )
    return [found[number] for number in range(len(annotations))], len(found) - len(annotations)


def _object(where: str, line: str) -> dict[str, Any]:
    try:
        entry = parse_json(line)
    except ValueError as error:
        raise DataError(f"{where}: not valid JSON ({error}); write {_EXAMPLE}") from None
    if not isinstance(entry, dict) or ("moments" not in entry and "pred_relevant_windows" not in entry):
        raise DataError(f"{where}: not a line of predictions; write {_EXAMPLE} or {_EXAMPLE_QV}")
    return entry


def _query(entry: dict[str, Any], where: str, ids: dict[str, int], qids: dict[int | str, int], queries: int) -> int:
    """Returns which of the queries, and of the absent sentences after them, a line is of; by position a query alone."""
    name = entry.get("id", entry.get("qid"))
    if "id" not in entry and isinstance(name, int | str) and name in qids:
        return qids[name]
    if isinstance(name, int) and not isinstance(name, bool) and 0 <= name < queries:
        return name
    if isinstance(name, str) and name in ids:
        return ids[name]
    counted = ", absent sentences not counted," if len(ids) > queries else ""
    raise DataError(
        f"{where}: query {name!r:.60} is not in the split; name it by its id, such as {next(iter(ids))!r}, "
        f"or by its position{counted} from 0 to {queries - 1} as qid"
    )


def _check_same(entry: dict[str, Any], where: str, item: Annotation) -> None:
    """Refuses a line of another query: positions mean nothing in another split or order."""
    video = entry.get("video", entry.get("vid", item.video))
    query = entry.get("query", item.query)
    same_query = isinstance(query, str) and words(query) == words(item.query)  # case and punctuation do not matter
    for name, found, wanted, same in (
        ("video", video, item.video, video == item.video),
        ("query", query, item.query, same_query),
    ):
        if not same:
            raise DataError(
                f"{where}: its {name} is {found!r:.60}, but query {item.id} of the split has {wanted!r:.60}; "
                "name the dataset and split that the predictions are of"
            )


def _moments(listed: Any, where: str, item: Annotation) -> Moments:
    if not isinstance(listed, list):
        raise DataError(f"{where}: moments of {item.id} are no list; write {_EXAMPLE}")
    if len(listed) > MOST_MOMENTS:
        raise DataError(f"{where}: {item.id} has {len(listed):,} moments; list the best ones, at most {MOST_MOMENTS:,}")
    found: list[tuple[float, float, float]] = []
    for rank, moment in enumerate(listed):
        what = f"{where}: moment {rank + 1} of {item.id}"
        if not isinstance(moment, list) or len(moment) not in (2, 3) or not all(map(_is_number, moment)):
            raise DataError(f"{what} is {moment!r:.60}; write [start, end, score], times in seconds")
        try:
            start, end, score = map(float, moment if len(moment) == 3 else [*moment, 1 / (rank + 1)])
        except OverflowError:  # an integer beyond all numbers
            start = end = score = math.inf
        if not all(map(math.isfinite, (start, end, score))):
            raise DataError(f"{what} is {moment!r:.60}; NaN and infinity are no times and no scores")
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


def _read_charades(
    path: Path, lines: Sequence[tuple[str, str]], annotations: Sequence[Annotation], absent: Sequence[Annotation]
) -> tuple[list[Moments], int]:
    left_out = {(item.video, item.query) for item in absent} - {(item.video, item.query) for item in annotations}
    parsed = [(where, parse_line(line, where)) for where, line in lines]
    kept = [
        (where, (video, start, end, query.strip()))
        for where, (video, start, end, query) in parsed
        if (video, query.strip()) not in left_out
    ]
    if len(kept) != len(annotations):
        raise DataError(
            f"{path}: {len(kept)} lines for {len(annotations)} queries of the split; "
            "write one VIDEO START END##query for each, in the split's order"
        )
    found = []
    for (where, (video, start, end, query)), item in zip(kept, annotations, strict=True):
        if (video, query) != (item.video, item.query):
            raise DataError(
                f"{where}: is of {video!r}, {query[:60]!r}, but the split has {item.id} here; keep its order"
            )
        found.append(_moments([[start, end]], where, item))
    return found, len(lines) - len(kept)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
