"""Features under examination: every video's, or a sample of them."""

import statistics
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py

from cdn_tune.data.doctor.report import EXAMPLES, Finding, grouped
from cdn_tune.data.features import FeatureStore, open_features
from cdn_tune.errors import DataError

SAMPLE = 64
Progress = Callable[[int, int], None]


def check_features(
    path: Path, durations: dict[str, float], member: str | None, quick: bool, progress: Progress | None = None
) -> tuple[dict[str, Any], list[Finding]]:
    """Returns the facts of a feature file and what is wrong with the videos it should have.

    Args:
        path: The HDF5 file.
        durations: Seconds of every annotated video.
        member: Name of the dataset in a video's group, if the layout has groups.
        quick: Read a sample of the videos.
        progress: Called with (videos read, videos to read).
    """
    try:
        with open_features(path) as file:
            present = frozenset(file)
            wanted = [video for video in durations if video in present]
            size, kind = _size_of(file, wanted, member)
    except (OSError, RuntimeError) as error:
        what = f"{path}: cannot be listed ({' '.join(str(error).split())[:160]})"
        return {"file": str(path)}, [Finding("error", "features", what, "copy or convert it again")]
    except DataError as error:
        return {"file": str(path)}, grouped("features", [(path.name, error)])
    findings = _presence(path, durations, present)
    step = max(1, len(wanted) // SAMPLE) if quick else 1
    store = FeatureStore(path, 1, size, member=member)
    wrong: list[tuple[str, DataError]] = []
    rates: dict[str, float] = {}
    chosen = wanted[::step]
    for done, video in enumerate(chosen, start=1):
        try:
            rates[video] = store.check(video) / durations[video]
        except DataError as error:
            wrong.append((video, error))
        if progress is not None:
            progress(done, len(chosen))
    store.close()
    findings += _by_fault(path, wrong)
    rate = statistics.median(rates.values()) if rates else 0.0
    odd = [video for video, found in rates.items() if not rate / 2 <= found <= rate * 2]
    if odd:
        what = f"videos whose rows do not fit their duration (the usual is {rate:.3g} rows a second)"
        remedy = "check their duration and extract their features again"
        findings.append(Finding("warning", "features", what, remedy, len(odd), tuple(odd[:EXAMPLES])))
    facts = {
        "file": str(path),
        "videos": len(present),
        "checked": len(chosen),
        "size": size,
        "type": kind,
        "rows_per_second": round(rate, 4),
    }
    return facts, findings


def _presence(path: Path, durations: dict[str, float], present: frozenset[str]) -> list[Finding]:
    findings = []
    if missing := [video for video in durations if video not in present]:
        what = f"{path.name}: {len(missing)} of {len(durations)} annotated videos have no features"
        remedy = "add them with cdn-tune data convert, or name the file that has them: data.features=FILE"
        findings.append(Finding("error", "features", what, remedy, len(missing), tuple(missing[:EXAMPLES])))
    if unused := len(present - durations.keys()):
        findings.append(Finding("info", "features", f"{unused} videos in the file have no annotation"))
    return findings


def _size_of(file: Any, videos: list[str], member: str | None) -> tuple[int, str]:
    """Returns the commonest feature size and its stored type among some videos; 1 where none can be read."""
    found: Counter[tuple[int, str]] = Counter()
    for video in videos[:: max(1, len(videos) // 20)]:
        try:
            entry = file[video]
            if member is not None and isinstance(entry, h5py.Group) and member in entry:
                entry = entry[member]
            if isinstance(entry, h5py.Dataset) and entry.ndim == 2:
                found[int(entry.shape[1]), str(entry.dtype)] += 1
        except (OSError, RuntimeError, KeyError):
            continue
    return found.most_common(1)[0][0] if found else (1, "unknown")


def _by_fault(path: Path, wrong: list[tuple[str, DataError]]) -> list[Finding]:
    """Returns one finding for each kind of fault, told by the words of its message, numbers aside."""
    kinds: dict[str, list[tuple[str, DataError]]] = {}
    for video, error in wrong:
        about = str(error).removeprefix(f"{path}: video {video!r} ")
        kinds.setdefault("".join(c for c in about if not c.isdigit()), []).append((video, error))
    return [finding for some in kinds.values() for finding in grouped("features", some)]
