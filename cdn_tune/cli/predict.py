"""`cdn-tune predict`: the moments of a video that sentences describe."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

from rich.table import Table
from typer import Argument, Option

from cdn_tune.cli.app import app
from cdn_tune.cli.options import Json
from cdn_tune.cli.show.output import head_table, out, print_json, print_line, warn
from cdn_tune.data.mark import marked
from cdn_tune.errors import DataError

if TYPE_CHECKING:
    from cdn_tune.config import DataConfig
    from cdn_tune.evaluation.retriever import Moment, Retriever, Video
    from cdn_tune.evaluation.source import Source

_SCHEMA = 1


@app.command(epilog='Example: cdn-tune predict runs/charades --video kitchen.mp4 --query "he sits down" --cut clips')
def predict(
    run: Annotated[Path, Argument(metavar="RUN", help="Run, kept checkpoint, checkpoint file, or exported folder.")],
    features: Annotated[
        Path | None,
        Option(
            metavar="FILE", help="Frame features: .npy, or HDF5 by video.", show_default="the run's, or from --video"
        ),
    ] = None,
    video: Annotated[
        str | None,
        Option(
            metavar="FILE|ID",
            help="A video, of which features are made as the run's were; or the name of one in the features.",
            show_default="the only one of --features",
        ),
    ] = None,
    query: Annotated[list[str] | None, Option(metavar="TEXT", help="A sentence; may be given again.")] = None,
    queries: Annotated[
        Path | None, Option(metavar="FILE", help="Text file with a sentence a line; empty lines are left out.")
    ] = None,
    top: Annotated[int, Option(min=1, help="Moments per query.")] = 5,
    duration: Annotated[
        float | None,
        Option(metavar="S", help="Length of the video, in seconds.", show_default="from the run's annotations"),
    ] = None,
    frame_rate: Annotated[
        float | None, Option(metavar="HZ", help="Frame features per second, in place of --duration.")
    ] = None,
    window: Annotated[
        float | None, Option(metavar="S", help="Slide a window of so many seconds over a long video.")
    ] = None,
    stride: Annotated[
        float | None, Option(metavar="S", help="From one window to the next.", show_default="half a window")
    ] = None,
    nms_threshold: Annotated[
        float | None,
        Option(metavar="IOU", help="Drop what overlaps a better one by more (hard NMS).", show_default="as evaluated"),
    ] = None,
    word_vectors: Annotated[
        Path | None, Option(metavar="FILE", help="Word vectors, if no longer where the experiment says.")
    ] = None,
    text_model: Annotated[
        str | None,
        Option(metavar="DIR|NAME", help="Language model whose token features the run was trained on, for new queries."),
    ] = None,
    weights: Annotated[
        Path | None,
        Option(metavar="FILE", help="Weights of the backbone, if the run's features were made with such a file."),
    ] = None,
    cut: Annotated[
        Path | None, Option(metavar="DIR", help="Write each moment as a clip: DIR/VIDEO-RANK-START-END.mp4.")
    ] = None,
    sheet: Annotated[
        Path | None,
        Option(metavar="FILE", help="Write a contact sheet, .png: frames, and the moments on the timeline."),
    ] = None,
    json: Json = False,
) -> None:
    """Find the moments of a video that sentences describe: ranked, in seconds, with scores."""
    from cdn_tune.data.videos.clip import clip_folder
    from cdn_tune.data.videos.contact_sheet import check_sheet
    from cdn_tune.evaluation.export import is_exported
    from cdn_tune.evaluation.retriever import load
    from cdn_tune.evaluation.source import find_source

    sentences = read_queries(query or (), queries)
    if cut is not None:
        cut = clip_folder(cut)
    if sheet is not None:
        check_sheet(sheet, len(sentences))
    retriever = load(run, word_vectors=word_vectors, text_model=text_model, nms_threshold=nms_threshold)
    unknown = [retriever.unknown_words(sentence) for sentence in sentences]
    source = find_source(retriever, features, video, weights)
    if source.file is None and (cut or sheet):
        raise DataError(f"{'--cut' if cut else '--sheet'}: needs the video itself; name its file with --video")
    seconds, origin = find_duration(
        duration, frame_rate, source, None if is_exported(run) else retriever.experiment.data
    )
    encoded = retriever.encode(source.frames, seconds, window=window, stride=stride)
    found = retriever.answer(encoded, sentences, top)
    if retriever.planted != source.planted and source.planted:
        warn(f"{source.origin}: features of {marked(source.planted)}, but the model was not trained on such")
    if not json:
        _print_answers(retriever, source, encoded, origin, sentences, found)
    files = write_files(source, sentences, found, cut, sheet)
    if json:
        plain = _plain(retriever, source, encoded) | ({} if sheet is None else {"sheet": _text(files.sheet)})
        plain["queries"] = [
            {
                "query": sentence,
                "unknown_words": list(words),
                "probably_absent": retriever.rejects(moments),
                "moments": [asdict(moment) for moment in moments],
            }
            for sentence, words, moments in zip(sentences, unknown, found, strict=True)
        ]
        for answers, clips in zip(plain["queries"], files.clips, strict=cut is not None):
            answers["moments"] = [
                moment | {"clip": _text(clip)} for moment, clip in zip(answers["moments"], clips, strict=True)
            ]
        print_json(plain)
    else:
        for path in (*(clip for clips in files.clips for clip in clips), files.sheet):
            if path is not None:
                print_line(f"wrote {path}")
    if files.faults:
        raise DataError("\n".join(files.faults))


class Files(NamedTuple):
    """What was written: per query, the clip of each moment, and the contact sheet; None for what was not.

    `faults` has a line for each file that could not be written.
    """

    clips: list[list[Path | None]]
    sheet: Path | None
    faults: list[str]


def write_files(
    source: Source, queries: Sequence[str], found: Sequence[Sequence[Moment]], cut: Path | None, sheet: Path | None
) -> Files:
    """Writes the moments of each query as clips into a folder, and a contact sheet, where these are asked for."""
    from cdn_tune.data.videos.clip import clip_name, cut_clip
    from cdn_tune.data.videos.contact_sheet import Answers, write_sheet
    from cdn_tune.data.videos.decode import VideoFile

    files = Files([], sheet, [])
    if source.file is None:
        return files
    with VideoFile(source.file) as video:
        for number, (query, moments) in enumerate(zip(queries, found, strict=True), start=1):
            if cut is None:
                break
            clips: list[Path | None] = []
            for rank, moment in enumerate(moments, start=1):
                of_query = number if len(queries) > 1 else None
                clip = cut / clip_name(source.name, moment.start, moment.end, rank, of_query)
                try:
                    cut_clip(video, moment.start, moment.end, clip, query)
                    clips.append(clip)
                except DataError as error:
                    files.faults.append(str(error))
                    clips.append(None)
            files.clips.append(clips)
        if sheet is not None:
            spans = [[(moment.start, moment.end, moment.score) for moment in moments] for moments in found]
            try:
                write_sheet(video, [Answers(*each) for each in zip(queries, spans, strict=True)], sheet)
            except DataError as error:
                files.faults.append(str(error))
                files = files._replace(sheet=None)
    return files


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)


def _print_answers(
    retriever: Retriever,
    source: Source,
    video: Video,
    origin: str,
    sentences: Sequence[str],
    found: Sequence[Sequence[Moment]],
) -> None:
    print_line(_about(retriever, source.name, video, origin))
    if source.extracted:
        print_line(f"features: {source.origin}")
    if retriever.planted:
        print_line(
            f"a model trained on {marked(retriever.planted)}: its answers say nothing about real videos", "yellow"
        )
    for sentence, moments in zip(sentences, found, strict=True):
        print_line(f"\n{sentence}", "bold")
        if retriever.rejects(moments):
            print_line(f"probably not in this video: its best score is below {retriever.threshold:.4g}", "yellow")
        out.print(_moments_table(moments))


def read_queries(given: Sequence[str], path: Path | None) -> list[str]:
    """Returns the queries of the command line, then those of the file, one a line; raises `DataError` for none."""
    from cdn_tune.data.files import read_text

    queries = list(given)
    for number, query in enumerate(queries, start=1):
        if not query.strip():
            raise DataError(f"--query number {number} is empty; write a sentence such as 'a person opens the door'")
    if path is not None:
        queries += [line.strip() for line in read_text(path, "name a text file").splitlines() if line.strip()]
    if not queries:
        raise DataError('no query: give --query "a person opens the door", or --queries FILE')
    return queries


def find_duration(
    duration: float | None, frame_rate: float | None, source: Source, data: DataConfig | None
) -> tuple[float, str]:
    """Returns the video's length in seconds, and its origin.

    Taken, in this order, from --duration, from --frame-rate and the number of frames, from the video itself, or from
    the annotations that the model was trained with, where these are still in their place. Raises `DataError` if it is
    in none of them.
    """
    from cdn_tune.data.annotations import SPLITS
    from cdn_tune.data.splits import split_annotations

    if duration is not None and frame_rate is not None:
        raise DataError("--duration and --frame-rate: give one of them")
    if duration is not None:
        return duration, "given"
    if frame_rate is not None:
        if not (math.isfinite(frame_rate) and frame_rate > 0):
            raise DataError(f"--frame-rate {frame_rate:g}: must be positive")
        return len(source.frames) / frame_rate, f"{len(source.frames)} frames at {frame_rate:g} Hz"
    if source.duration is not None:
        return source.duration, f"from {source.file}"
    if data is not None:
        for split in SPLITS:
            try:
                loaded = split_annotations(data, split)
            except DataError:  # no data here, or not these
                continue
            durations = {item.video: item.duration for item in loaded.queries}
            if source.name in durations:
                return durations[source.name], f"from the annotations in {data.root}"
    raise DataError(f"length of video {source.name!r}: in no annotations of the run; give --duration or --frame-rate")


def _plain(retriever: Retriever, source: Source, video: Video) -> dict[str, Any]:
    return {
        "schema": _SCHEMA,
        "model": str(retriever.source),
        "planted": retriever.planted,
        "video": source.name,
        "features": source.origin,
        "duration": video.duration,
        "windows": [list(video.seconds(window)) for window in range(len(video.windows))],
        "nms": retriever.nms._asdict(),
        "nms_threshold": retriever.nms_threshold,
    }


def _about(retriever: Retriever, name: str, video: Video, origin: str) -> str:
    start, end = video.seconds(0)
    grid = retriever.experiment.model.grid
    windows = "" if len(video.windows) == 1 else f", {len(video.windows)} windows of {end - start:.1f} s"
    clip = f"; a clip is {(end - start) / grid:.2f} s" if grid else ""
    return f"{name}: {video.duration:.2f} s ({origin}){windows}{clip}"


def _moments_table(moments: Sequence[Moment]) -> Table:
    heads = ("rank", "start", "end", "score")
    table = head_table(*heads, right=heads, edge=True)
    for rank, moment in enumerate(moments, start=1):
        cells = (f"{moment.start:.2f} s", f"{moment.end:.2f} s", f"{moment.score:.4f}")
        table.add_row(str(rank), *cells, style="bold green" if rank == 1 else "")
    return table
