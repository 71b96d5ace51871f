"""The doctor's check of a feature file: every annotated video, or a sample of them."""

import statistics
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import h5py

from cdn_tune.data.doctor.report import EXAMPLES, Finding, grouped
from cdn_tune.data.features import FeatureStore, Seen
from cdn_tune.data.files import Progress, brief
from cdn_tune.data.hdf5 import UNREADABLE, check_dataset, find, open_features
from cdn_tune.data.video_names import match_names
from cdn_tune.data.videos.making import makings_in, read_making
from cdn_tune.errors import DataError

SAMPLE = 64  # videos whose features a quick examination reads
_SHAPES = 20  # videos from whose shapes the feature size is told
_LARGE = 1e18  # the square of a greater value is no float32


def check_features(
    path: Path,
    root: Path,
    durations: dict[str, float],
    member: str | None,
    quick: bool,
    progress: Progress | None = None,
) -> tuple[dict[str, Any], list[Finding]]:
    """Returns the facts of a feature file and what is wrong with the videos it should have.

    Args:
        path: The HDF5 file.
        root: The data folder.
        durations: Seconds of every annotated video.
        member: Name of the dataset in a video's group, if the layout has groups.
        quick: Read a sample of the videos.
        progress: Called with (videos read, videos to read).
    """
    try:
        with open_features(path) as file:
            present = frozenset(file)
            wanted = [video for video in durations if video in present]
            size, kind, turned = _size_of(file, wanted, member)
    except UNREADABLE as error:
        what = f"{path}: cannot be listed ({brief(error)})"
        return {"file": str(path)}, [Finding("error", "features", what, "copy or convert it again")]
    except DataError as error:
        return {"file": str(path)}, grouped("features", [(path.name, error)])
    made, wrong_making = _making(path, quick)
    findings = [*_presence(path, root, durations, present), *wrong_making]
    if turned is not None:
        what = f"{path.name}: features are transposed, such as {list(turned)}; expected [frames, {size}]"
        remedy = f"rewrite the file with: cdn-tune data convert {path} NEW.hdf5 --form hdf5 --feature-size {size}"
        findings.append(Finding("error", "features", what, remedy, len(wanted), tuple(wanted[:EXAMPLES])))
        return {"file": str(path), "videos": len(present)}, findings
    store = FeatureStore(path, 1, size, member=member)
    wrong: list[tuple[str, DataError]] = []
    seen: dict[str, Seen] = {}
    chosen = wanted[:: max(1, len(wanted) // SAMPLE) if quick else 1]
    for done, video in enumerate(chosen, start=1):
        try:
            seen[video] = store.check(video)
        except DataError as error:
            wrong.append((video, error))
        if progress is not None:
            progress(done, len(chosen))
    store.close()
    rates = {video: found.frames / durations[video] for video, found in seen.items()}
    rate = statistics.median(rates.values()) if rates else 0.0
    facts = {
        "file": str(path),
        "videos": len(present),
        "checked": len(chosen),
        "type": kind,
        "rows_per_second": round(rate, 4),
        **made,
    }
    return facts | ({} if size is None else {"size": size}), [
        *findings,
        *_by_fault(path, wrong),
        *_odd(seen, rates, rate),
    ]


def _odd(seen: Mapping[str, Seen], rates: Mapping[str, float], rate: float) -> list[Finding]:
    """Returns what would spoil a training without stopping it."""
    again = "extract their features again"
    kinds = (
        (
            [video for video, found in rates.items() if not rate / 2 <= found <= rate * 2],
            f"videos whose rows do not fit their duration (the usual is {rate:.3g} rows a second)",
            f"check their duration and {again}",
        ),
        ([video for video, found in seen.items() if not found.largest], "videos whose features are all zero", again),
        (
            [video for video, found in seen.items() if found.constant and found.largest and found.frames > 1],
            "videos whose rows of features are all the same",
            again,
        ),
        (
            [video for video, found in seen.items() if found.frames == 1],
            "videos with a single row of features, in which no moment can be told from another",
            f"{again}, at a higher frame rate",
        ),
        (
            [video for video, found in seen.items() if found.largest > _LARGE],
            f"videos with values above {_LARGE:g}, too large to be normalised",
            again,
        ),
    )
    return [
        Finding("warning", "features", what, remedy, len(videos), tuple(videos[:EXAMPLES]))
        for videos, what, remedy in kinds
        if videos
    ]


def _making(path: Path, quick: bool) -> tuple[dict[str, Any], list[Finding]]:
    """Returns how the features were made, if the file tells, and what is wrong with that; of a sample if `quick`."""
    remedy = "extract them all alike, with cdn-tune data extract"
    try:
        making = read_making(path)
        if quick or making is None:
            return {} if making is None else {"making": making.plain()}, []
        others = {each: videos for each, videos in makings_in(path).items() if each != making}
    except DataError as error:
        return {}, grouped("features", [(path.name, error)])
    findings = [
        Finding(
            "warning" if each is None else "error",
            "features",
            f"{path.name}: videos whose features were made otherwise ({making.differences(each)})"
            if each is not None
            else f"{path.name}: videos that do not tell how their features were made, unlike the others",
            remedy,
            len(videos),
            tuple(videos[:EXAMPLES]),
        )
        for each, videos in others.items()
    ]
    return {"making": making.plain()}, findings


def _presence(path: Path, root: Path, durations: Iterable[str], present: frozenset[str]) -> list[Finding]:
    findings = []
    wanted = list(durations)
    missing = [video for video in wanted if video not in present]
    renamed = match_names(missing, present)
    if renamed:
        what = (
            f"{path.name}: {len(renamed)} of {len(wanted)} annotated videos are there under names that differ in case"
        )
        what += " or in a suffix alone"
        command = f"cdn-tune data convert {path} NEW.hdf5 --form hdf5 --names-of {root}"
        remedy = f"rename them with {command}, then data.features=NEW.hdf5"
        pairs = tuple(f"{video} is {other} there" for video, other in sorted(renamed.items())[:EXAMPLES])
        findings.append(Finding("error", "features", what, remedy, len(renamed), pairs))
    if missing := [video for video in missing if video not in renamed]:
        what = f"{path.name}: {len(missing)} of {len(wanted)} annotated videos have no features"
        remedy = "add them with cdn-tune data convert, or name the file that has them: data.features=FILE"
        findings.append(Finding("error", "features", what, remedy, len(missing), tuple(missing[:EXAMPLES])))
    if unused := sorted(present.difference(wanted, renamed.values())):
        what = f"{len(unused)} videos in the file have no annotation"
        findings.append(Finding("info", "features", what, count=len(unused), examples=tuple(unused[:EXAMPLES])))
    return findings


def _size_of(file: Any, videos: list[str], member: str | None) -> tuple[int | None, str, tuple[int, int] | None]:
    """Returns the feature size that most of some videos have (None where it cannot be told) and its stored type.

    Where far more videos agree in the first axis than in the second, they are transposed: the first is the size, and
    the shape of one is returned, too.
    """
    shapes: list[tuple[int, int]] = []
    kinds: Counter[str] = Counter()
    for video in videos[:: max(1, len(videos) // _SHAPES)]:
        try:
            entry = find(file, video, video)
            if member is not None and isinstance(entry, h5py.Group) and member in entry:
                entry = find(entry, member, video)
            check_dataset(entry, video)
        except (*UNREADABLE, DataError):
            continue
        shape = [length for axis, length in enumerate(entry.shape) if axis < 2 or length != 1]
        if len(shape) == 2:
            shapes.append((shape[0], shape[1]))
            kinds[str(entry.dtype)] += 1
    if not shapes:
        return None, "unknown", None
    (first, firsts), (second, seconds) = (Counter(axis).most_common(1)[0] for axis in zip(*shapes, strict=True))
    turned = firsts >= 2 * seconds
    return first if turned else second, kinds.most_common(1)[0][0], shapes[0] if turned else None


def _by_fault(path: Path, wrong: list[tuple[str, DataError]]) -> list[Finding]:
    """Returns one finding for each kind of fault; messages that differ in numbers only are of one kind."""
    kinds: dict[str, list[tuple[str, DataError]]] = {}
    for video, error in wrong:
        about = str(error).removeprefix(f"{path}: video {video!r} ")
        kinds.setdefault("".join(c for c in about if not c.isdigit()), []).append((video, error))
    return [
        Finding("error", "features", *_parts(some[0][1]), len(some), tuple(video for video, _ in some[:EXAMPLES]))
        for some in kinds.values()
    ]


def _parts(error: DataError) -> tuple[str, str]:
    what, _, remedy = str(error).rpartition("; ")
    return what, remedy
