"""Your own data: `train.jsonl`, `test.jsonl` and, if you have it, `val.jsonl`; features in `features.hdf5`.

A line is one query: ``{"video": "a", "duration": 31.5, "start": 2.0, "end": 9.5, "query": "a person opens the door"}``,
times in seconds. Further keys are ignored. A query that several moments answer is written as in QVHighlights:
``{"qid": 1, "query": "...", "vid": "a", "duration": 150, "relevant_windows": [[2, 10], [40, 62]]}``; an empty list
says that the sentence is not in the video. ``"part"`` names the part of test that a query is of, if test has parts that
are to be measured each for itself. Without `val.jsonl`, val is carved from train by video.
"""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from cdn_tune.data.annotations import Annotation, Scanned, Skipped, Split, absent, annotate
from cdn_tune.data.files import parse_json, read_text
from cdn_tune.data.layouts import Layout
from cdn_tune.errors import DataError

REMEDY = "check data.root, or write your annotations there (docs/tutorials/own-data.md shows how)"
WINDOWS_ENTRY = '{"qid": 1, "query": "...", "vid": "a", "duration": 150, "relevant_windows": [[2, 10], [40, 62]]}'
MOST_WINDOWS = 100  # of a query
MOST_PARTS, MOST_NAME = 20, 40  # of a split; characters of a part's name
ENTRY = '{"video": "a", "duration": 31.5, "start": 2.0, "end": 9.5, "query": "a person opens the door"}'


def annotation_files(root: Path, split: Split) -> tuple[Path, ...]:
    """Returns the file `split` is read from; none for val where there is no `val.jsonl`."""
    path = root / f"{split}.jsonl"
    return () if split == "val" and not path.is_file() else (path,)


def scan(root: Path, split: Split) -> Iterator[Scanned]:
    """Yields what the lines of the file of `split` hold, wrong ones as the error that names file and line.

    Raises:
        DataError: If the file is missing, empty or unreadable.
    """
    path = root / f"{split}.jsonl"
    text = read_text(path, REMEDY)
    _check_is_lines(text, path)
    parts: set[str | None] = {None}
    for count, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                item = _annotation(line, path, count)
                part = (item.query if isinstance(item, Skipped) else item).part
                if part not in parts and len(parts) > MOST_PARTS:  # `parts` holds None, too
                    raise DataError(f"{path}:{count}: a part beyond {MOST_PARTS}; name fewer parts of the split")
                parts.add(part)
                yield item
            except DataError as error:
                yield error


def _check_is_lines(text: str, path: Path) -> None:
    """Checks that a file is not one JSON value over several lines, or an array.

    Raises:
        DataError: If it is.
    """
    try:
        whole = parse_json(text)
    except ValueError:  # as of more lines than one
        return
    if isinstance(whole, list) or "\n" in text.strip():
        kind, wanted = (
            ("a JSON array", ".[]") if isinstance(whole, list) else ("one JSON object over several lines", ".")
        )
        command = f"jq -c {wanted!r} {path} > NEW"
        raise DataError(f"{path}: is {kind}; write each query on a line of its own, for example with: {command}")


def _annotation(line: str, path: Path, count: int) -> Annotation | Skipped:
    where = f"{path}:{count}"
    kinds = {str: "string", float: "number", list: "list"}
    try:
        entry = parse_json(line)
    except json.JSONDecodeError as error:
        raise DataError(f"{where}: not valid JSON ({error.msg}); write a line as {ENTRY}") from None
    except ValueError as error:
        raise DataError(f"{where}: not usable JSON ({error}); write a line as {ENTRY}") from None
    if not isinstance(entry, dict):
        raise DataError(f"{where}: is a {type(entry).__name__}; write a line as {ENTRY}")
    several = "relevant_windows" in entry or ("vid" in entry and "video" not in entry)
    video, *times = ("vid", "relevant_windows") if several else ("video", "start", "end")
    time = list if several else float
    for key, kind in ((video, str), ("duration", float), *((key, time) for key in times), ("query", str)):
        if key not in entry:
            raise DataError(f"{where}: {key!r} is missing; write a line as {WINDOWS_ENTRY if several else ENTRY}")
        value = entry[key]
        if not (_is_number(value) if kind is float else isinstance(value, kind)):
            raise DataError(f"{where}: {key} is {value!r:.80}; write a {kinds[kind]}")
    windows = entry["relevant_windows"] if several else [[entry["start"], entry["end"]]]
    if len(windows) > MOST_WINDOWS:
        raise DataError(f"{where}: {len(windows)} relevant_windows; write at most {MOST_WINDOWS}, or remove the line")
    part = entry.get("part")
    if part is not None and not (
        isinstance(part, str) and part.strip() and len(part) <= MOST_NAME and part.isprintable()
    ):
        raise DataError(f"{where}: part is {part!r:.80}; write a name of at most {MOST_NAME} characters")
    for window in windows:
        if not (isinstance(window, list) and len(window) == 2 and all(map(_is_number, window))):
            raise DataError(f"{where}: a relevant window is {window!r:.80}; write [start, end] in seconds")
    try:
        duration = float(entry["duration"])
        spans = [(float(start), float(end)) for start, end in windows] or [(0.0, duration)]  # of an absent one, checked
    except OverflowError:
        raise DataError(f"{where}: a time is too large for a number; correct or remove the line") from None
    found = [annotate(path, str(count), entry[video], duration, *span, entry["query"]) for span in spans]
    usable = [item for item in found if isinstance(item, Annotation)]
    if not usable:
        (none,) = found[:1]
        return replace(none, query=replace(none.query, part=part)) if isinstance(none, Skipped) else none
    others = tuple((item.start, item.end) for item in usable[1:])
    qid = entry.get("qid") if several else None
    item = replace(
        usable[0],
        others=others,
        qid=qid if isinstance(qid, int | str) else None,
        overrun=max(item.overrun for item in usable),
        part=part,
    )
    return item if windows else absent(item)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def restrict(root: Path, split: Split, kept: frozenset[str]) -> dict[str, str]:
    """Returns the file of `split` with the entries of some videos only: name to text."""
    path = root / f"{split}.jsonl"
    lines = [line for line in read_text(path).split("\n") if line.strip()]
    return {path.name: "".join(f"{line}\n" for line in lines if _video(line) in kept)}


def _video(line: str) -> str:
    entry = parse_json(line)
    return str(entry["video"] if "video" in entry else entry["vid"])


LAYOUT = Layout(
    features=("features.hdf5",),
    files=annotation_files,
    scan=scan,
    recognise=lambda root: any((root / f"{split}.jsonl").is_file() for split in ("train", "test")),
    restrict=restrict,
)
