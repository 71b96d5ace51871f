"""`cdn-tune predict` and `cdn-tune export`: questions to a trained model, and the model to pass on."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich import box
from rich.table import Table

from cdn_tune.cli.show.output import err, one_line_errors, out, warn
from cdn_tune.config import DataConfig, parse_overrides
from cdn_tune.data.annotations import SPLITS
from cdn_tune.data.files import read_text
from cdn_tune.data.frames import VideoFrames, check_frames, read_frames
from cdn_tune.data.layouts import layout_of
from cdn_tune.data.splits import split_annotations
from cdn_tune.errors import DataError
from cdn_tune.evaluation.exported import is_exported
from cdn_tune.evaluation.loading import load
from cdn_tune.evaluation.retriever import Moment, Retriever, Video

SCHEMA = 1


@dataclass(frozen=True)
class Question:
    """What is asked of which video; fields as the options of `cdn-tune predict`."""

    features: Path
    video: str | None
    query: tuple[str, ...]
    queries: Path | None
    top: int
    duration: float | None
    frame_rate: float | None
    window: float | None
    stride: float | None


def run_predict(
    run: Path, question: Question, nms_threshold: float | None, word_vectors: Path | None, as_json: bool
) -> None:
    """`cdn-tune predict`."""
    with one_line_errors():
        queries = read_queries(question.query, question.queries)
        retriever = load(run, word_vectors=word_vectors, nms_threshold=nms_threshold)
        data = retriever.experiment.data
        source = read_frames(question.features, question.video, layout_of(data.dataset).member)
        where = f"{question.features}: video {source.video!r}"
        frames = check_frames(source.frames, data.feature_size, where)
        duration, origin = find_duration(question, source, None if is_exported(run) else data)
        video = retriever.encode(frames, duration, window=question.window, stride=question.stride)
        unknown = [retriever.unknown_words(query) for query in queries]
        found = retriever.answer(video, queries, question.top)
        if retriever.planted != source.planted and source.planted:
            warn(f"{question.features}: these features are planted, but the model was not trained on planted data")
        if as_json:
            _print_json(retriever, source.video, video, queries, unknown, found)
        else:
            _print_tables(retriever, source.video, video, origin, queries, found)


def run_export(
    run: Path, folder: Path, overrides: list[str], *, all_words: bool, torch_export: bool, onnx: bool
) -> None:
    """`cdn-tune export`."""
    from cdn_tune.evaluation.export import export_run
    from cdn_tune.evaluation.loading import brought
    from cdn_tune.training.object_store.working_copy import url_of

    with one_line_errors():
        run = run if url_of(run) is None else brought(run)
        with err.status("exporting"):
            written = export_run(
                run, folder, parse_overrides(overrides), all_words=all_words, torch_export=torch_export, onnx=onnx
            )
        for line in written.damaged:
            warn(line)
        for name, size in written.files.items():
            out.print(f"{folder / name}  {size:,} bytes", markup=False, soft_wrap=True)
        out.print(f"{written.words:,} words have a vector in it", markup=False)
        where = shlex.quote(str(folder))
        out.print(f'try: cdn-tune predict {where} --features FILE --query "..."', markup=False, soft_wrap=True)


def read_queries(given: Sequence[str], path: Path | None) -> list[str]:
    """Returns the queries of the command line, then those of the file, one a line.

    Raises:
        DataError: If there is none, one is empty, or the file cannot be read.
    """
    queries = list(given)
    for number, query in enumerate(queries, start=1):
        if not query.strip():
            raise DataError(f"--query number {number} is empty; write a sentence such as 'a person opens the door'")
    if path is not None:
        queries += [line.strip() for line in read_text(path, "name a text file").splitlines() if line.strip()]
    if not queries:
        raise DataError('no query: give --query "a person opens the door", or --queries FILE')
    return queries


def find_duration(question: Question, source: VideoFrames, data: DataConfig | None) -> tuple[float, str]:
    """Returns the video's length in seconds, and where it comes from.

    Taken, in this order, from --duration, from --frame-rate and the number of frames, or from the annotations that the
    model was trained with, where these are still in their place.

    Args:
        question: What is asked.
        source: The video.
        data: Where the annotations are; None if nowhere.

    Raises:
        DataError: If none of them says.
    """
    if question.duration is not None and question.frame_rate is not None:
        raise DataError("--duration and --frame-rate: give one of them")
    if question.duration is not None:
        return question.duration, "given"
    if question.frame_rate is not None:
        if not (math.isfinite(question.frame_rate) and question.frame_rate > 0):
            raise DataError(f"--frame-rate {question.frame_rate:g}: must be positive")
        return len(source.frames) / question.frame_rate, f"{len(source.frames)} frames at {question.frame_rate:g} Hz"
    if data is not None:
        for split in SPLITS:
            try:
                loaded = split_annotations(data, split)
            except DataError:  # no data here, or not these
                continue
            durations = {item.video: item.duration for item in loaded.annotations}
            if source.video in durations:
                return durations[source.video], f"from the annotations in {data.root}"
    raise DataError(f"length of video {source.video!r}: in no annotations of the run; give --duration or --frame-rate")


def _print_json(
    retriever: Retriever,
    name: str,
    video: Video,
    queries: Sequence[str],
    unknown: Sequence[tuple[str, ...]],
    found: Sequence[Sequence[Moment]],
) -> None:
    content = {
        "schema": SCHEMA,
        "model": str(retriever.source),
        "planted": retriever.planted,
        "video": name,
        "duration": video.duration,
        "windows": [list(video.seconds(window)) for window in range(len(video.windows))],
        "nms_threshold": retriever.nms_threshold,
        "queries": [
            {"query": query, "unknown_words": list(words), "moments": [asdict(moment) for moment in moments]}
            for query, words, moments in zip(queries, unknown, found, strict=True)
        ],
    }
    text = json.dumps(content, indent=2, ensure_ascii=False)
    out.print(text, markup=False, emoji=False, soft_wrap=True)


def _print_tables(
    retriever: Retriever,
    name: str,
    video: Video,
    origin: str,
    queries: Sequence[str],
    found: Sequence[Sequence[Moment]],
) -> None:
    start, end = video.seconds(0)
    clips = retriever.experiment.model.clips
    more = "" if len(video.windows) == 1 else f", {len(video.windows)} windows of {end - start:.1f} s"
    line = f"{name}: {video.duration:.2f} s ({origin}){more}; a clip is {(end - start) / clips:.2f} s"
    out.print(line, markup=False, emoji=False, soft_wrap=True)
    if retriever.planted:
        out.print("a model trained on planted data: its answers say nothing about real videos", style="yellow")
    for query, moments in zip(queries, found, strict=True):
        out.print(f"\n{query}", markup=False, emoji=False, soft_wrap=True, style="bold")
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        for head in ("rank", "start", "end", "score"):
            table.add_column(head, justify="right", no_wrap=True)
        for rank, moment in enumerate(moments, start=1):
            style = "bold green" if rank == 1 else ""
            table.add_row(str(rank), f"{moment.start:.2f} s", f"{moment.end:.2f} s", f"{moment.score:.4f}", style=style)
        out.print(table)
