"""All runs of a folder: what each is, how it stands, what it has found, and how much of the disk it takes.

Any folder below may be a stranger's. What cannot be read becomes a row with the reason, no code of a run is loaded, and
neither files nor folders are read without end.
"""

import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import Any

from cdn_tune.config import Experiment, build
from cdn_tune.config.yaml import read_mapping
from cdn_tune.data.files import brief
from cdn_tune.data.mark import is_mark, to_mark
from cdn_tune.errors import CdnTuneError, RunError
from cdn_tune.evaluation.evaluation_file import plain_metrics, read_evaluation
from cdn_tune.training.object_store.store import open_store
from cdn_tune.training.object_store.sync import fetched
from cdn_tune.training.object_store.working_copy import place_of, url_of
from cdn_tune.training.runs.records import read_metrics
from cdn_tune.training.runs.run_folder import EXPERIMENT, MANIFEST, read_manifest
from cdn_tune.tuning.layout import DATABASE, JOURNAL
from cdn_tune.tuning.results.leaderboard import Row
from cdn_tune.tuning.results.status import is_held, status_of

# Of a row; a value that a run does not have is an empty text.
COLUMNS = {
    "run": "path or URL, as commands take it",
    "kind": "`search` or `train`",
    "dataset": "name of the dataset",
    "planted": "whether the data are planted",
    "family": "family of the best model; before there is one, those that are searched",
    "state": "`running`, `finished`, `stopped`, `failed` (every trial), `imported` (weights), or `unreadable`",
    "metric": "name of the metric that chooses on val",
    "val": "best value of it on val",
    "test": "value of it on the test split, where `evaluate` has measured it",
    "trials": "trials that have ended, of a search",
    "of_trials": "trials in all",
    "size": "bytes on disk",
    "created": "when it was begun",
    "reason": "what of it cannot be read, and why",
}
UNREADABLE = "unreadable"
_MARKS = frozenset([MANIFEST, JOURNAL, DATABASE])  # of these a run folder has at least one
_DEEPEST = 4  # folders below the one that is searched
_MOST_ENTRIES = 200_000  # of all folders that are searched, and of one run
_LARGEST = 256 << 20  # bytes of a file that is read whole
_READ_WHOLE = (".json", ".jsonl", ".journal", ".db", ".yaml")


def find_runs(folder: Path) -> list[Path]:
    """Returns the run folders in a folder, its sub-folders and theirs, or at a URL, sorted; itself if it is one.

    Links to run folders count, links to other folders are not followed, and what lies in a run folder is its own.

    Raises:
        CdnTuneError: If there is no such folder, it holds too many files, or the store cannot be reached.
    """
    url = url_of(folder)
    if url is not None:
        return _on_store(url)
    if not folder.is_dir():
        raise RunError(f"{folder}: no such folder; name the one that holds your runs")
    found, waiting, room = [], [(folder, 0)], _MOST_ENTRIES
    while waiting:
        path, depth = waiting.pop()
        try:
            with os.scandir(path) as entries:
                some = list(islice(entries, room))
        except OSError:
            if path == folder:
                raise
            found.append(path)  # it may be a run: why it cannot be opened is then its row's reason
            continue
        room -= len(some)
        if not room:
            raise RunError(f"{folder}: holds {_MOST_ENTRIES:,} files or more; name the folder of your runs")
        if any(entry.name in _MARKS for entry in some):
            found.append(path)
            continue
        links = [path / entry.name for entry in some if entry.is_symlink()]
        found += [link for link in links if any((link / mark).is_file() for mark in _MARKS)]
        if depth < _DEEPEST:
            below = [entry.name for entry in some if entry.is_dir(follow_symlinks=False)]
            waiting += [(path / name, depth + 1) for name in below if not name.startswith(".")]
    return sorted(found)


def _on_store(url: str) -> list[Path]:
    base, question, settings = url.partition("?")
    names = ("", *open_store(url).folders())
    urls = {name: f"{base}/{name}".rstrip("/") + question + settings for name in names}
    return [Path(each) for each in urls.values() if open_store(each).entry(MANIFEST) is not None]


def summarise_run(run: Path) -> Row:
    """Returns the row of a run, of `COLUMNS`; nothing is written to it, and it is not held.

    What cannot be read is left out, with the `reason`.
    """
    row: Row = {**dict.fromkeys(COLUMNS, ""), "run": _name(run), "state": UNREADABLE}
    try:
        folder = fetched(run)
        size = _check(folder)
        place = place_of(folder)
        row["size"] = size if place is None else sum(entry.size for entry in place.store.entries().values())
        manifest = read_manifest(folder)
        row |= {"kind": manifest["kind"], "created": _time(manifest.get("created"))}
        planted = to_mark(manifest.get("data", {}).get("planted"))
        row |= _search(folder) if manifest["kind"] == "search" else _training(folder, manifest)
        row |= {"planted": row["planted"] or planted}
        row |= _test(folder, row["metric"])
    except CdnTuneError as error:
        row["reason"] = brief(error, 500)
    except Exception as error:  # the fault of one run must not hide the others
        row["reason"] = f"{run}: cannot be read ({type(error).__name__}: {brief(error)})"
    return row


def _name(run: Path) -> str:
    """Returns a run's path, or its URL without the settings that the environment has as well."""
    url = url_of(run)
    return str(run) if url is None else url.partition("?")[0]


def _search(folder: Path) -> Row:
    status = status_of(folder)
    best, value = status.best, None if status.best is None else status.best["value"]
    if best is None:  # the best of the running trials, if one has reported
        running = [trial for trial in status.running if trial.value is not None]
        value = max((trial.value for trial in running if trial.value is not None), default=None)
    return {
        "dataset": status.dataset,
        "planted": status.planted,
        "family": (best or {}).get("model.name", ",".join(status.families)),
        "state": status.state,
        "metric": status.metric,
        "val": "" if value is None else value,
        "trials": status.ended,
        "of_trials": "" if status.asked is None else status.asked,
        "reason": status.notice or "",
    }


def _training(folder: Path, manifest: dict[str, Any]) -> Row:
    path = folder / EXPERIMENT
    experiment = build(Experiment, read_mapping(path), str(path))
    last = next(reversed(read_metrics(folder)), None)
    ended = last is not None and last["epoch"] >= last["epochs"]
    state = "finished" if ended else "imported" if "imported_from" in manifest else "stopped"
    return {
        "dataset": experiment.data.dataset,
        "planted": False,
        "family": experiment.model.name,
        "state": "running" if is_held(folder) else state,
        "metric": experiment.eval.metric,
        "val": "" if last is None else round(last["best_value"], 4),
    }


def _test(folder: Path, metric: str) -> Row:
    content = read_evaluation(folder) or {}
    value = plain_metrics(content.get("metrics")).get(metric)
    mark = content.get("planted")
    planted = {"planted": mark} if mark and is_mark(mark) else {}
    return planted if value is None else {**planted, "test": round(value, 4)}


def _time(text: Any) -> str:
    """Returns a time of a manifest in the form in which times compare as texts; nothing if it is none."""
    try:
        return datetime.fromisoformat(text).astimezone().isoformat(timespec="seconds")
    except (TypeError, ValueError, OverflowError):
        return ""


def _check(run: Path) -> int:
    """Returns the bytes that a run folder takes on disk: files once that have several names, no targets of links.

    Raises:
        RunError: If it holds what no run does: a pipe or a device, which may be read for ever, or too much.
    """
    size, seen = 0, set()
    for count, (path, facts) in enumerate(_files(run)):
        if count >= _MOST_ENTRIES:
            raise RunError(f"{run}: holds more than {_MOST_ENTRIES:,} files, as no run does; it is not read")
        target = _target(path) or facts if stat.S_ISLNK(facts.st_mode) else facts
        if not any(is_kind(target.st_mode) for is_kind in (stat.S_ISREG, stat.S_ISDIR, stat.S_ISLNK)):
            raise RunError(f"{path}: is a pipe or a device, as no run holds; it is not read")
        if path.suffix in _READ_WHOLE and target.st_size > _LARGEST:
            raise RunError(f"{path}: is larger than {_LARGEST >> 20} MiB, as in no run; it is not read")
        if (facts.st_dev, facts.st_ino) not in seen:
            seen.add((facts.st_dev, facts.st_ino))
            size += 512 * facts.st_blocks
    return size


def _files(run: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """Yields everything below a folder with its own facts, those of a link being the link's."""
    waiting = [run]
    while waiting:
        folder = waiting.pop()
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    with suppress(FileNotFoundError):
                        yield Path(entry.path), entry.stat(follow_symlinks=False)
                        if entry.is_dir(follow_symlinks=False):
                            waiting.append(Path(entry.path))
        except FileNotFoundError:  # a running search deletes folders
            if folder == run:
                raise RunError(f"{run}: no such run folder") from None


def _target(link: Path) -> os.stat_result | None:
    """Returns the facts of what a link leads to; None if that is nothing."""
    with suppress(OSError):
        return link.stat()
    return None
