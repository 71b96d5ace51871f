"""Fingerprints: what identifies the data of a run, for its manifest."""

from pathlib import Path
from typing import Any

from cdn_tune.config import DataConfig
from cdn_tune.data.annotations import SPLITS
from cdn_tune.data.files import read_json, sampled_sha256, sha256
from cdn_tune.data.hdf5 import open_features
from cdn_tune.data.layouts import features_path, layout_of, root_of, text_path
from cdn_tune.data.mark import Mark, to_mark
from cdn_tune.data.splits import split_annotations
from cdn_tune.data.videos.making import read_making

PLANTED_MARKER = "planted.json"
PLANTED_ATTRIBUTE = "cdn_tune_planted"


def is_planted(config: DataConfig) -> Mark:
    """Returns whether the features or what queries are read with are planted, or of drawn videos.

    They are with a `planted.json` beside them or in root, or if the feature file has the attribute of planted ones (it
    keeps that when it is moved).

    Raises:
        DataError: If a file is missing.
    """
    features = features_path(config)
    for folder in (root_of(config), features.parent, text_path(config).parent):
        if (folder / PLANTED_MARKER).exists():
            return mark_of(folder / PLANTED_MARKER)
    with open_features(features) as file:
        return to_mark(file.attrs.get(PLANTED_ATTRIBUTE))


def mark_of(marker: Path) -> Mark:
    """Returns the mark in a `planted.json`; a damaged one marks data as planted."""
    try:
        content = read_json(marker)
    except (OSError, ValueError):
        return True
    return to_mark(content.get("planted", True) if isinstance(content, dict) else True) or True


def mark_beside(video: Path) -> Mark:
    """Returns the mark of the videos in a file's folder: by a `planted.json` there, or in the folder around it."""
    markers = (folder / PLANTED_MARKER for folder in video.absolute().parents[:2])
    return next((mark_of(marker) for marker in markers if marker.is_file()), False)


def fingerprint(config: DataConfig) -> dict[str, Any]:
    """Returns what identifies the data of an experiment, ready for JSON.

    Returns:
        `dataset`, `root` (absolute), `planted`; `files`: by role and name, size and either `sha256` (annotations) or
        `mtime` and `sampled_sha256` (features, word vectors or token features; see `files.sampled_sha256`); `splits`:
        queries and videos of train, val and test; `skipped`: per split, the entries not used, with the reason;
        `making`: how the features were made, None if their file does not say it.

    Raises:
        DataError: If a file is missing or wrong, or features of different making are mixed in one.
    """
    root, layout = root_of(config), layout_of(config.dataset)
    loaded = {split: split_annotations(config, split) for split in SPLITS}
    annotations = [path for split in SPLITS for path in layout.files(root, split)]
    text = "tokens" if config.text == "tokens" else "word_vectors"
    big = {"features": features_path(config), text: text_path(config)}
    making = read_making(big["features"])
    return {
        "dataset": config.dataset,
        "root": str(root.resolve()),
        "planted": is_planted(config),
        "files": {
            "annotations": {path.name: {"size": path.stat().st_size, "sha256": sha256(path)} for path in annotations},
            **{role: _summary(path) for role, path in big.items()},
        },
        "splits": {
            split: {"queries": len(items.annotations), "videos": len({item.video for item in items.annotations})}
            for split, items in loaded.items()
        },
        "skipped": {
            split: [{"id": item.id, "reason": item.reason} for item in items.skipped] for split, items in loaded.items()
        },
        **({} if making is None else {"making": making.plain()}),
    }


def are_features_of(facts: dict[str, Any], features: Path) -> bool:
    """Returns whether a feature file is the one of a fingerprint, by its content; False if that does not tell it."""
    held, here = (facts.get("files") or {}).get("features", {}), _summary(features)
    return all(held.get(key) == here[key] for key in ("size", "sampled_sha256"))


def _summary(path: Path) -> dict[str, Any]:
    stat = path.stat()
    return {"name": path.name, "size": stat.st_size, "mtime": stat.st_mtime, "sampled_sha256": sampled_sha256(path)}
