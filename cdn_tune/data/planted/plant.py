"""Planting: writes a whole dataset with known answers, in the layout the real one has."""

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from filelock import FileLock, Timeout

from cdn_tune.data.annotations import SPLITS, Annotation
from cdn_tune.data.files import Progress, brief, read_json, written_whole
from cdn_tune.data.fingerprint import PLANTED_ATTRIBUTE, PLANTED_MARKER
from cdn_tune.data.layouts import layout_of
from cdn_tune.data.planted.features import JOURNAL, write_features
from cdn_tune.data.planted.planting import VERSION, Planting, annotation_files, planting_of
from cdn_tune.data.planted.signal import Difficulty, frame_count, planted_frames, projection, signals_of, word_vector
from cdn_tune.data.tokenizer import words
from cdn_tune.errors import DataError

STAGING = ".planting"
LOCK = ".planting.lock"
MODEL = (
    "A word has a random vector of length about 5; a query's meaning u is the mean of its content words' vectors, "
    "scaled to length 1; P [W, D] is random with variance 1/D. A frame is normal noise of variance 1/D plus snr * u P "
    "for each query of its video whose moment holds the frame's time (t + 1/2) / frame_rate."
)
ORDERED = " Word order decides: the k-th content word's vector (from 0) is first shifted by k places, cyclically."


@dataclass(frozen=True)
class Planted:
    """A planted dataset on disk.

    Attributes:
        root: Its folder, for `data.root`.
        dataset: Its layout, for `data.dataset`.
        word_vectors: Its word-vector file, for `data.word_vectors`.
        videos: Number of videos.
        queries: Number of usable queries, over all splits.
        written: False if the same planting was there already and nothing was done.
    """

    root: Path
    dataset: str
    word_vectors: str
    videos: int
    queries: int
    written: bool


def plant(
    out: Path,
    annotations: str = "generated",
    source: Path | None = None,
    videos: int | None = None,
    feature_size: int = 64,
    frame_rate: float = 4.0,
    snr: float = 1.0,
    seed: int = 0,
    word_size: int = 50,
    distractors: int = 0,
    paraphrases: float = 0.0,
    jitter: float = 0.0,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Planted:
    """Writes a planted dataset (its generative model: `signal.py`) and labels it with `planted.json`.

    Files get their final names only when all of them are complete; a killed call leaves a `.planting` folder, from
    which the next call with the same options goes on. The same options give the same bytes.

    Args:
        out: Folder to write; created if absent.
        annotations: `generated` (own grammar, in the Charades-STA layout), `tabletop` (long videos, in the TACoS
            layout), or the real files of a dataset.
        source: Folder of the real annotation files; not for generated ones.
        videos: How many videos; by default 300 or 125 (`tabletop`) generated ones, or all real ones.
        feature_size: Size of a frame feature D.
        frame_rate: Frame features per second.
        snr: Length of a query's signal against that of a frame's noise.
        seed: Determines everything random.
        word_size: Size of a word vector W.
        distractors: See `Difficulty`, as the next two.
        paraphrases: Within [0, 1].
        jitter: Within [0, 1].
        overwrite: Replace another planting in `out`; never anything that is not planted.
        progress: Called with (videos written, videos) after each video.

    Raises:
        DataError: If an option is wrong, the source cannot be used, `out` holds anything else, or is being written to.
    """
    out = Path(out).expanduser()
    difficulty = Difficulty(float(snr), distractors, float(paraphrases), float(jitter))
    planting = planting_of(annotations, source, videos, feature_size, frame_rate, difficulty, seed, word_size)
    if out.exists() and not out.is_dir():
        raise DataError(f"{out}: is a file; choose a folder to plant in")
    if source is not None and out.exists() and out.samefile(source):
        raise DataError(f"{out}: is the source folder itself; choose another folder to plant in")
    try:
        _claim(out)
        texts = annotation_files(planting, source)
        out.mkdir(parents=True, exist_ok=True)
        with FileLock(out / LOCK, timeout=0):
            found = _claim(out)
            if found is not None:
                complete = not (out / STAGING).exists() and all((out / name).is_file() for name in found["files"])
                if complete and found["options"] == asdict(planting):
                    return _planted(out, found, written=False)
                if found["options"] != asdict(planting) and not overwrite:
                    fault = _difference(found["options"], planting)
                    raise DataError(f"{out}: {fault}; choose another folder or overwrite")
            return _write(out, planting, texts, found, progress)
    except Timeout:
        raise DataError(f"{out}: another process is planting here; wait for it or choose another folder") from None
    except OSError as error:
        fault = error.strerror or brief(error)
        raise DataError(f"{out}: cannot be written ({fault}); free space or choose another folder") from None


def _claim(out: Path) -> dict[str, Any] | None:
    """Returns the marker of the planting in `out`, or None if it holds nothing (complete); refuses anything else."""
    names = {path.name for path in out.iterdir()} - {LOCK} if out.exists() else set()
    if PLANTED_MARKER in names:
        try:
            marker = read_json(out / PLANTED_MARKER)
            return {key: marker[key] for key in ("options", "files", "dataset", "word_vectors", "videos", "queries")}
        except (ValueError, KeyError, TypeError):
            raise DataError(f"{out / PLANTED_MARKER}: not a planting's marker; choose another folder") from None
    if names and STAGING not in names:
        raise DataError(f"{out}: is not empty and holds no planted data; choose another folder, nothing was touched")
    return None


def _difference(options: dict[str, Any], planting: Planting) -> str:
    """Returns in what the planting in a folder differs from the wanted one."""
    wanted = asdict(planting)
    name = next(name for name in wanted if options.get(name) != wanted[name])
    return f"holds another planting ({name}={options.get(name)}, asked for {wanted[name]})"


def _write(
    out: Path, planting: Planting, texts: dict[str, str], found: dict[str, Any] | None, progress: Progress | None
) -> Planted:
    staging = out / STAGING
    journal = staging / JOURNAL
    if not (journal.is_file() and journal.read_text(encoding="utf-8").startswith(planting.key)):
        shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(exist_ok=True)
    layout = layout_of(planting.dataset)
    for name, text in texts.items():
        _write_text(staging / name, text)
    # Read back by the real loader: training will read exactly what is planted.
    splits = [split for split in SPLITS if layout.files(staging, split)]
    loaded = [layout.load(staging, split) for split in splits]
    items = [item for part in loaded for item in part.annotations]
    absent = [item for part in loaded for item in part.absent]
    durations = {item.video: item.duration for part in loaded for item in part.skipped}
    durations |= {item.video: item.duration for item in (*absent, *items)}
    vectors, features = f"glove.planted.{planting.word_size}d.txt", layout.features[0]
    _write_vectors(staging / vectors, [*items, *absent], planting)
    if not (staging / features).is_file():
        _write_features(staging / features, durations, items, planting, layout.member, progress)
    files = [*texts, vectors, features]
    marker = {
        "planted": True,
        "model": MODEL + ORDERED if planting.ordered else MODEL,
        "options": asdict(planting),
        "dataset": planting.dataset,
        "word_vectors": vectors,
        "features": features,
        "files": files,
        "videos": len(durations),
        "queries": len(items),
    }
    _write_text(staging / PLANTED_MARKER, json.dumps(marker, indent=2) + "\n")
    # The label goes first, so that features are never without it; `.planting` stays until all is in place.
    for name in (PLANTED_MARKER, *files):
        (staging / name).replace(out / name)
    for name in found["files"] if found else ():
        (out / f"{name}.pt").unlink(missing_ok=True)
        if name not in files:
            (out / name).unlink(missing_ok=True)
    journal.unlink()
    staging.rmdir()
    return _planted(out, marker, written=True)


def _planted(out: Path, marker: dict[str, Any], written: bool) -> Planted:
    return Planted(out, marker["dataset"], marker["word_vectors"], marker["videos"], marker["queries"], written)


def _write_text(path: Path, text: str) -> None:
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _write_vectors(path: Path, items: list[Annotation], planting: Planting) -> None:
    vocabulary = sorted({token for item in items for token in words(item.query)})
    with written_whole(path) as partial, partial.open("w", encoding="utf-8", newline="\n") as file:
        for token in vocabulary:
            values = word_vector(token, planting.word_size, planting.seed)
            file.write(f"{token} {' '.join(f'{value:.5f}' for value in values)}\n")


def _write_features(
    path: Path,
    durations: dict[str, float],
    items: list[Annotation],
    planting: Planting,
    member: str | None,
    progress: Progress | None,
) -> None:
    matrix = projection(planting.word_size, planting.feature_size, planting.seed)
    frames = {video: frame_count(durations[video], planting.frame_rate) for video in sorted(durations)}
    queries: dict[str, list[Annotation]] = {}
    for item in items:
        queries.setdefault(item.video, []).append(item)

    def rows(video: str) -> Iterator[npt.NDArray[np.float32]]:
        own, size = queries.get(video, []), planting.word_size
        signals = signals_of(video, own, planting.difficulty, size, planting.seed, planting.ordered)
        return planted_frames(video, frames[video], signals, matrix, planting.frame_rate, planting.snr, planting.seed)

    attributes = {PLANTED_ATTRIBUTE: VERSION}
    write_features(path, frames, planting.feature_size, rows, member, attributes, planting.key, progress)
