"""Annotations: a query, its video, and the moment or moments that answer it. All times are in seconds."""

import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from cdn_tune.errors import DataError

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")


@dataclass(frozen=True, slots=True)
class Annotation:
    """One query and its moment; where several answer it, `start` and `end` are of the first.

    Attributes:
        id: Its place in the files, stable over time: ``charades_sta_train.txt:12`` (line, from 1) or
            ``train.json:s13-d21.avi:3`` (file, video, position in its list, from 0).
        video: Name of the video, as in the feature file.
        duration: Length of the video, in seconds.
        start: Start of the moment, 0 <= start < end; in `Loaded.queries`, start = end of a moment that is none.
        end: End of the moment, end <= duration.
        query: The sentence as written in the file.
        others: Start and end of the query's further moments.
        qid: What the file calls the query, if it does.
        overrun: Seconds by which the end as written passes the video's.
        part: The part of the test split that the query is of, where it has parts (``iid``, ``ood``).
    """

    id: str
    video: str
    duration: float
    start: float
    end: float
    query: str
    others: tuple[tuple[float, float], ...] = ()
    qid: int | str | None = None
    overrun: float = field(default=0.0, compare=False)
    part: str | None = field(default=None, compare=False)

    @property
    def moments(self) -> tuple[tuple[float, float], ...]:
        """Start and end of every moment that answers the query."""
        return ((self.start, self.end), *self.others)


@dataclass(frozen=True, slots=True)
class Skipped:
    """An annotation whose moment is none, and why: it is read, and nothing is trained on it.

    `query` is the annotation with an empty moment, which no answer overlaps. `absent`: it is meant so, for what the
    sentence says is not in the video; no answer is right then, and only `evaluate --reject` asks.
    """

    query: Annotation
    reason: str
    absent: bool = False

    @property
    def id(self) -> str:
        """Its place in the files."""
        return self.query.id

    @property
    def video(self) -> str:
        """Name of the video."""
        return self.query.video

    @property
    def duration(self) -> float:
        """Length of the video, in seconds."""
        return self.query.duration


# An entry of an annotation file: usable, not used, or wrong.
Scanned = Annotation | Skipped | DataError


@dataclass(frozen=True)
class Loaded:
    """The content of an annotation file, in file order."""

    entries: tuple[Annotation | Skipped, ...]

    @property
    def annotations(self) -> tuple[Annotation, ...]:
        """The entries with a moment: to train on, and to choose by."""
        return tuple(item for item in self.entries if isinstance(item, Annotation))

    @property
    def skipped(self) -> tuple[Skipped, ...]:
        """The entries that should have one and have none."""
        return tuple(item for item in self.entries if isinstance(item, Skipped) and not item.absent)

    @property
    def absent(self) -> tuple[Annotation, ...]:
        """The sentences that are marked as not in their video."""
        return tuple(item.query for item in self.entries if isinstance(item, Skipped) and item.absent)

    @property
    def queries(self) -> tuple[Annotation, ...]:
        """The entries to measure on, where a query that lacks its moment counts as a miss whatever the answer."""
        kept = (item for item in self.entries if not (isinstance(item, Skipped) and item.absent))
        return tuple(item.query if isinstance(item, Skipped) else item for item in kept)


def annotate(
    path: Path,
    entry: str,
    video: str,
    duration: float,
    start: float,
    end: float,
    query: str,
    *,
    known_faults: Collection[tuple[str, float, float]] = (),
) -> Annotation | Skipped:
    """Returns one checked annotation, its end clamped to the duration as the published loaders do.

    Args:
        path: The file.
        entry: Place in the file, for its id and for errors: the line, or video and position.
        video: Name of the video.
        duration: Length of the video, in seconds.
        start: Start as written, in seconds.
        end: End as written, in seconds.
        query: The sentence, not yet stripped.
        known_faults: (video, start, end) of reversed moments that the published files are known to hold; these are
            skipped, as the published loaders do, instead of refused.

    Returns:
        The annotation, or `Skipped` when the moment is empty within the video or a known fault.

    Raises:
        DataError: If a number is not finite, the duration is not positive, the start is negative, the end lies before
            the start, the query or the name of the video is empty, or either is no text.
    """
    where = f"{path}:{entry}"
    for what, text in (("the video's name", video), ("the query", query)):
        try:
            text.encode()
        except UnicodeEncodeError as error:  # half a character, as JSON can spell it
            raise DataError(f"{ascii(where)[1:-1]}: {what} is no text ({error.reason}); correct or remove it") from None
    if not video.strip("/ "):
        raise DataError(f"{where}: the video's name is {video!r}; write its name in the feature file")
    if not query.strip():
        raise DataError(f"{where}: empty query for video {video}; write a sentence or remove the entry")
    for name, value in (("duration", duration), ("start", start), ("end", end)):
        if not math.isfinite(value):
            raise DataError(f"{where}: {name} {value} of video {video} is not a finite number; correct or remove it")
    if duration <= 0:
        raise DataError(f"{where}: duration {duration:g} s of video {video} is not positive; correct or remove it")
    if start < 0:
        raise DataError(f"{where}: start {start:g} s in video {video} is negative; correct or remove the entry")
    if end < start:
        if (video, start, end) in known_faults:
            why = f"end {end:g} s lies before start {start:g} s (known fault of the published file)"
            return _skipped(f"{path.name}:{entry}", video, duration, start, query, why)
        raise DataError(
            f"{where}: end {end:g} s lies before start {start:g} s in video {video}; swap them or remove the entry"
        )
    if min(end, duration) <= start:
        why = f"moment {start:g} to {end:g} s is empty within the video's {duration:g} s"
        return _skipped(f"{path.name}:{entry}", video, duration, start, query, why)
    overrun = max(0.0, end - duration)
    return Annotation(
        f"{path.name}:{entry}", video, duration, start, min(end, duration), query.strip(), overrun=overrun
    )


def absent(item: Annotation) -> Skipped:
    """Returns an annotation as one whose sentence is marked as not in the video."""
    return Skipped(replace(item, start=0.0, end=0.0, others=()), "the sentence is not in the video", absent=True)


def true_moments(annotations: Sequence[Annotation]) -> npt.NDArray[np.float64]:
    """Returns the start and end of all moments that answer Q queries, in seconds, NaN-padded, float64 [Q, M, 2]."""
    most = max((len(item.moments) for item in annotations), default=1)
    found = np.full((len(annotations), most, 2), np.nan)
    for row, item in enumerate(annotations):
        found[row, : len(item.moments)] = item.moments
    return found


def _skipped(name: str, video: str, duration: float, start: float, query: str, why: str) -> Skipped:
    at = min(start, duration)
    return Skipped(Annotation(name, video, duration, at, at, query.strip()), why)


def collect(where: str, scanned: Iterable[Scanned]) -> Loaded:
    """Returns the annotations and the skipped entries of a file, each in file order.

    Raises:
        DataError: The first entry that is one; or, naming `where`, that no annotation is left.
    """
    items: list[Annotation | Skipped] = []
    for item in scanned:
        if isinstance(item, DataError):
            raise item
        items.append(item)
    loaded = Loaded(tuple(items))
    if not loaded.annotations:
        skipped = loaded.skipped
        first = f" (first: {skipped[0].id}: {skipped[0].reason})" if skipped else ""
        what = f"no usable annotation, {len(skipped)} skipped{first}"
        raise DataError(f"{where}: {what}; check that it is the right file")
    return loaded
