"""Charades-STA as distributed: `charades_sta_{train,test}.txt` and durations in `Charades_v1_{train,test}.csv`."""

import csv
import io
import math
from collections.abc import Iterator
from pathlib import Path

from cdn_tune.data.annotations import Annotation, Scanned, Skipped, Split, annotate
from cdn_tune.data.files import read_text
from cdn_tune.data.layouts import Layout
from cdn_tune.errors import DataError

COLUMNS = ("id", "subject", "scene", "quality", "relevance", "verified", "script", "objects", "descriptions", "actions",
           "length")  # fmt: skip
REMEDY = "check data.root, or download the Charades-STA annotations into it"

# The published training file holds four lines whose end lies before their start; every published loader drops them.
KNOWN_FAULTS = frozenset({("LEOL6", 8.0, 7.0), ("IOL8Q", 20.9, 12.0), ("AKKWU", 38.0, 13.0)})


def annotation_files(root: Path, split: Split) -> tuple[Path, ...]:
    """Returns the files `split` is read from: sentences, durations. There is no file for val."""
    if split == "val":
        return ()
    return root / f"charades_sta_{split}.txt", root / f"Charades_v1_{split}.csv"


def parse_line(line: str, where: str) -> tuple[str, float, float, str]:
    """Returns (video, start, end, query) of a line ``VIDEO START END##query``, times in seconds.

    Raises:
        DataError: If ``##`` is missing, the part before it has not three fields, or a time is no number.
    """
    head, mark, query = line.partition("##")
    if not mark:
        raise DataError(f"{where}: no '##' in {line[:60]!r}; write the line as: VIDEO START END##query")
    fields = head.split()
    if len(fields) != 3:
        raise DataError(f"{where}: {len(fields)} fields before '##' in {head[:60]!r}; write: VIDEO START END##query")
    video, start, end = fields
    return video, number(start, "start", where), number(end, "end", where), query


def number(text: str, name: str, where: str) -> float:
    """Returns `text` as a float.

    Raises:
        DataError: If it is none.
    """
    try:
        return float(text)
    except ValueError:
        raise DataError(f"{where}: {name} {text!r} is not a number; write seconds, e.g. 12.5") from None


def read_durations(path: Path) -> dict[str, float]:
    """Returns the duration in seconds of every video listed; NaN where its `length` is blank.

    Raises:
        DataError: If the file is missing or empty, lacks a column, or a length is no number.
    """
    rows = csv.DictReader(io.StringIO(read_text(path, REMEDY)))
    durations = {}
    try:
        for column in ("id", "length"):
            if column not in (rows.fieldnames or ()):
                header = ",".join(COLUMNS)
                raise DataError(f"{path}: no column {column!r}; use the Charades CSV with the header {header}")
        for row in rows:
            length = (row["length"] or "").strip()
            durations[row["id"]] = number(length, "length", f"{path}:{rows.line_num}") if length else math.nan
    except csv.Error as error:
        raise DataError(f"{path}:{rows.line_num}: not valid CSV ({error}); copy the Charades CSV again") from None
    return durations


def scan(root: Path, split: Split) -> Iterator[Scanned]:
    """Yields what the lines of `split` (train or test) hold, wrong ones as the error that names file and line.

    Raises:
        DataError: If a file is missing, empty or unreadable.
    """
    sentences, lengths = annotation_files(root, split)
    text = read_text(sentences, REMEDY)
    durations = read_durations(lengths)
    for count, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                yield _annotation(line, sentences, count, durations, lengths)
            except DataError as error:
                yield error


def _annotation(
    line: str, sentences: Path, count: int, durations: dict[str, float], lengths: Path
) -> Annotation | Skipped:
    where = f"{sentences}:{count}"
    video, start, end, query = parse_line(line, where)
    duration = durations.get(video)
    if duration is None:
        raise DataError(f"{where}: video {video!r} is not in {lengths.name}; add its row or remove the line")
    if math.isnan(duration):
        raise DataError(
            f"{lengths}: video {video!r} has no length, needed by {sentences.name}:{count}; fill in its seconds"
        )
    return annotate(sentences, str(count), video, duration, start, end, query, known_faults=KNOWN_FAULTS)


def restrict(root: Path, split: Split, kept: frozenset[str]) -> dict[str, str]:
    """Returns the files of `split` with the entries of some videos only: name to text."""
    sentences, table = annotation_files(root, split)
    lines = [line for line in read_text(sentences).split("\n") if line.split(" ", 1)[0] in kept]
    rows = csv.reader(io.StringIO(read_text(table)))
    header = next(rows)
    column = header.index("id")
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(row for row in rows if row and row[column] in kept)
    return {sentences.name: "\n".join(lines) + "\n", table.name: text.getvalue()}


LAYOUT = Layout(
    features=("vgg_rgb_features.hdf5", "charades_vgg_rgb.hdf5"),
    files=annotation_files,
    scan=scan,
    recognise=lambda root: any(root.glob("charades_sta_*.txt")),
    restrict=restrict,
    raw="charades_vgg",
    editions={(12408, 0, 3720): "the published files (12 408/3 720 pairs)"},
)
