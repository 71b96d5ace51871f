"""Drawing: writes videos with known moments as a folder of mp4 files, annotations and word vectors, always labelled."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from cdn_tune.data.annotations import SPLITS
from cdn_tune.data.drawn.pictures import SIZE, frames
from cdn_tune.data.drawn.scenes import FPS, Scene, draw_scene
from cdn_tune.data.drawn.sentences import ask
from cdn_tune.data.files import Progress, brief, read_json, written_whole
from cdn_tune.data.fingerprint import PLANTED_MARKER
from cdn_tune.data.mark import DRAWN
from cdn_tune.data.planted.plant import write_vectors
from cdn_tune.data.planted.signal import generator_for
from cdn_tune.data.videos.encode import encode_frames, written_mp4
from cdn_tune.errors import DataError

VERSION = 1
VIDEOS = 150
VAL_SHARE = TEST_SHARE = 0.2
FOLDER = "videos"
FEATURES = "features.hdf5"
WORD_SIZE = 50
WORD_VECTORS = f"glove.drawn.{WORD_SIZE}d.txt"
LOCK = ".drawing.lock"
_REMEDY = "free space or choose another folder"


@dataclass(frozen=True)
class Drawn:
    """A drawn dataset on disk, in the layout `jsonl`; its features are still to be extracted.

    Attributes:
        root: Its folder, for `data.root`.
        folder: The folder of its mp4 files.
        features: Where its features belong, for `cdn-tune data extract`.
        videos: Number of videos.
        queries: Number of queries, over all splits.
        written: False if the same drawing was there already and nothing was done.
    """

    root: Path
    folder: Path
    features: Path
    videos: int
    queries: int
    written: bool


def draw(out: Path, videos: int = VIDEOS, seed: int = 0, progress: Progress | None = None) -> Drawn:
    """Writes a drawn dataset and labels it with `planted.json`.

    The label comes first and the annotations last. Every file is written whole, so a killed call is gone on with by the
    next one with the same options. The same options give the same frames and annotations.

    Args:
        out: Folder to write; created if absent.
        videos: How many videos, at least 3: 60 % train, 20 % val, 20 % test.
        seed: Determines everything random.
        progress: Called with (videos written, videos) after each video.

    Raises:
        ConfigError: If PyAV is not installed.
        DataError: If an option is wrong, `out` holds anything else or is being written to, or videos cannot be encoded.
    """
    out = Path(out).expanduser()
    for name, value, least in (("videos", videos, 3), ("seed", seed, 0)):
        if value < least:
            raise DataError(f"{name}={value}: must be at least {least}")
    scenes = [draw_scene(f"D{number:04d}", seed) for number in range(videos)]
    entries = _annotations(scenes, seed)
    texts = {name: "".join(json.dumps(entry) + "\n" for entry in listed) for name, listed in entries.items()}
    queries = [entry["query"] for listed in entries.values() for entry in listed]
    marker: dict[str, Any] = {
        "planted": DRAWN,
        "options": {"drawn": VERSION, "videos": videos, "seed": seed},
        "dataset": "jsonl",
        "word_vectors": WORD_VECTORS,
        "features": FEATURES,
        "files": [*(f"{FOLDER}/{scene.video}.mp4" for scene in scenes), WORD_VECTORS, *texts],
        "videos": videos,
        "queries": len(queries),
    }
    try:
        _claim(out, marker)
        out.mkdir(parents=True, exist_ok=True)
        with FileLock(out / LOCK, timeout=0):
            _claim(out, marker)
            written = not all((out / name).is_file() for name in marker["files"])
            if written:
                _write_text(out / PLANTED_MARKER, json.dumps(marker, indent=2) + "\n")
                (out / FOLDER).mkdir(exist_ok=True)
                for done, scene in enumerate(scenes, start=1):
                    path = out / FOLDER / f"{scene.video}.mp4"
                    if not path.is_file():
                        _write_video(path, scene)
                    if progress is not None:
                        progress(done, videos)
                write_vectors(out / WORD_VECTORS, queries, WORD_SIZE, seed)
                for name, text in texts.items():
                    _write_text(out / name, text)
    except Timeout:
        raise DataError(f"{out}: another process is drawing here; wait for it or choose another folder") from None
    except OSError as error:
        fault = error.strerror or brief(error)
        raise DataError(f"{out}: cannot be written ({fault}); {_REMEDY}") from None
    return Drawn(out, out / FOLDER, out / FEATURES, videos, len(queries), written)


def _claim(out: Path, marker: dict[str, Any]) -> None:
    """Checks that `out` holds nothing, or this drawing.

    Raises:
        DataError: If it holds anything else.
    """
    if out.exists() and not out.is_dir():
        raise DataError(f"{out}: is a file; choose a folder to draw in")
    names = {path.name for path in out.iterdir()} - {LOCK} if out.exists() else set()
    if PLANTED_MARKER in names:
        try:
            found = read_json(out / PLANTED_MARKER)
            options = found["options"]
        except (ValueError, KeyError, TypeError):
            raise DataError(f"{out / PLANTED_MARKER}: not a drawing's label; choose another folder") from None
        if options != marker["options"]:
            raise DataError(f"{out}: holds other planted data or drawn videos; choose another folder")
    elif names:
        raise DataError(f"{out}: is not empty and holds no drawn videos; choose another folder, nothing was touched")


def _annotations(scenes: list[Scene], seed: int) -> dict[str, list[dict[str, Any]]]:
    """Returns the lines of each annotation file."""
    val, test = (max(1, round(share * len(scenes))) for share in (VAL_SHARE, TEST_SHARE))
    parts = (scenes[: -val - test], scenes[-val - test : -test], scenes[-test:])
    return {
        f"{split}.jsonl": [entry for scene in part for entry in _asked(scene, seed)]
        for split, part in zip(SPLITS, parts, strict=True)
    }


def _asked(scene: Scene, seed: int) -> Iterator[dict[str, Any]]:
    for sentence, event in ask(scene, generator_for(seed, "sentences", scene.video)):
        times = {"duration": scene.duration, "start": event.start, "end": event.end}
        yield {"video": scene.video, **times, "query": f"{sentence}."}


def _write_video(path: Path, scene: Scene) -> None:
    with written_mp4(path, _REMEDY) as container:
        # One thread: the same frames give the same bytes.
        for packet in encode_frames(container, frames(scene), Fraction(FPS), SIZE, SIZE, threads=1):
            container.mux(packet)


def _write_text(path: Path, text: str) -> None:
    with written_whole(path) as partial, partial.open("w", encoding="utf-8", newline="\n") as file:
        file.write(text)
