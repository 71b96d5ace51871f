"""The examination of a data folder, from its layout to its last video."""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

from cdn_tune.config import DataConfig
from cdn_tune.config.tables import LAYOUTS
from cdn_tune.data.annotations import SPLITS, Split
from cdn_tune.data.doctor.checks import (
    check_annotations,
    check_overlap,
    check_tokens,
    check_words,
    find_vectors,
)
from cdn_tune.data.doctor.features import check_features
from cdn_tune.data.doctor.report import Finding, Report
from cdn_tune.data.files import Progress, is_remote, locate, read_json, remote_file
from cdn_tune.data.fingerprint import PLANTED_MARKER, mark_of
from cdn_tune.data.layouts import Layout, layout_of, recognise
from cdn_tune.data.splits import coarse, held_out
from cdn_tune.errors import DataError

VAL_FRACTION: float = DataConfig.model_fields["val_fraction"].default
TOKENS: str = DataConfig.model_fields["tokens"].default
_ORDER = ("error", "warning", "info")


def examine(
    root: Path,
    dataset: str | None = None,
    features: str | None = None,
    word_vectors: str | None = None,
    quick: bool = False,
    progress: Progress | None = None,
    *,
    val_fraction: float = VAL_FRACTION,
    text: str = "words",
    tokens: str = TOKENS,
    word_size: int | None = None,
) -> Report:
    """Examines a data folder: annotations, features, word vectors or token features, overlap of the splits.

    Args:
        root: The folder, as for `data.root`.
        dataset: Its layout, as for `data.dataset`; recognised by its files if None.
        features: The feature file, as for `data.features`.
        word_vectors: The word vectors, as for `data.word_vectors`.
        quick: Read the features of a sample of the videos.
        progress: Called with (videos read, videos to read).
        val_fraction: Share of training videos held out where there is no val split, as for `data.val_fraction`.
        text: How queries are read, as for `data.text`.
        tokens: The token features, as for `data.tokens`.
        word_size: Size of a word vector or token feature, as for `data.word_size`; whatever the file has if None.

    Raises:
        DataError: If the folder does not exist, or `dataset` is unknown.
    """
    root = Path(root).expanduser()
    if not root.is_dir():
        raise DataError(f"{root}: no such folder; name the folder with the data")
    marker = _marker(root)
    found = [dataset] if dataset else recognise(root)
    if not found:
        what = f"{root}: no annotation files of a known layout ({', '.join(LAYOUTS)})"
        remedy = "put them there (docs/how-to/data.md lists their names), or write data with: cdn-tune data plant"
        findings = [Finding("error", "folder", what, remedy)]
        return Report(str(root), None, None, marker is not None, quick, findings=tuple(findings))
    layout = layout_of(found[0])
    usable, skipped, findings = check_annotations(root, layout)
    if len(found) > 1:
        what = f"annotation files of more than one layout ({', '.join(found)}); examined as {found[0]}"
        findings.append(Finding("warning", "folder", what, "keep each dataset in a folder of its own"))
    absent = {split: [item.query for item in some if item.absent] for split, some in skipped.items()}
    skipped = {split: [item for item in some if not item.absent] for split, some in skipped.items()}
    items = [item for some in (usable, absent) for queries in some.values() for item in queries]
    durations = {item.video: item.duration for item in items}
    sizes, left_out = ({split: len(part) for split, part in some.items()} for some in (usable, skipped))
    variant = _edition(layout, sizes, left_out)
    if variant is not None:  # the published files are meant to be as they are
        findings = [
            replace(finding, level="info", what=f"{finding.what}, as published", remedy="")
            if finding.level == "warning"
            else finding
            for finding in findings
        ]
    findings += check_overlap(layout, usable)
    videos = {item.video for item in usable.get("train", ())}
    broken = any(finding.level == "error" for finding in findings)
    held = frozenset() if usable.get("val") else held_out(videos, val_fraction)
    val = len(usable.get("val") or [item for item in usable.get("train", ()) if item.video in held])
    if not broken and not val:
        what = f"{len(videos)} training videos are too few to hold out a val split of {val_fraction:.0%}"
        remedy = "add videos, or hold out more, here and in training: data.val_fraction=0.5"
        findings.append(Finding("error", "splits", what, remedy))
    elif not broken and (remark := coarse(val)):
        what, _, remedy = remark.partition("; ")
        findings.append(Finding("warning", "splits", what, remedy))
    feature_facts: dict[str, Any] = {}
    path = _feature_file(root, features, layout.features)
    if path is None:
        what = f"{root}: no feature file ({features or ' or '.join(layout.features)})"
        remedy = (
            "put it there, name it, here and in training: data.features=FILE, or write it from raw features: "
            f"cdn-tune data convert RAW {root / layout.features[0]} --form {layout.raw}"
        )
        findings.append(Finding("error", "features", what, remedy))
    else:
        feature_facts, more = check_features(path, root, durations, layout.member, quick, progress)
        findings += more
    if text == "tokens":
        word_facts, more = check_tokens(locate(root, tokens), root, items, quick, word_size)
    else:
        vectors = locate(root, word_vectors) if word_vectors else find_vectors(root, (marker or {}).get("word_vectors"))
        word_facts, more = check_words(vectors, root, items, word_size)
    findings += more
    return Report(
        root=str(root),
        dataset=found[0],
        variant=variant,
        planted=False if marker is None else mark_of(root / PLANTED_MARKER),
        quick=quick,
        splits={
            split: {
                "queries": sizes[split],
                "videos": len({item.video for item in usable[split]}),
                "skipped": left_out[split],
                "absent": len(absent[split]),
                "parts": dict(Counter(item.part for item in usable[split] if item.part is not None)),
            }
            for split in usable
        },
        features=feature_facts,
        words=word_facts,
        findings=tuple(sorted(findings, key=lambda finding: _ORDER.index(finding.level))),
    )


def _edition(layout: Layout, usable: dict[Split, int], skipped: dict[Split, int]) -> str | None:
    """Returns which published edition has these numbers of pairs; some published counts include unusable ones."""
    used = [usable.get(split, 0) for split in SPLITS]
    whole = [usable.get(split, 0) + skipped.get(split, 0) for split in SPLITS]
    return layout.editions.get((used[0], used[1], used[2])) or layout.editions.get((whole[0], whole[1], whole[2]))


def _marker(root: Path) -> dict[str, Any] | None:
    """Returns the content of the file that labels the folder as planted ({} if damaged), or None."""
    path = root / PLANTED_MARKER
    if not path.is_file():
        return None
    try:
        marker = read_json(path)
    except (OSError, ValueError):
        return {}
    return marker if isinstance(marker, dict) else {}


def _feature_file(root: Path, given: str | None, usual: tuple[str, ...]) -> Path | None:
    if given and is_remote(given):
        return remote_file(given, "--features")
    paths = [locate(root, given)] if given else [root / name for name in usual]
    return next((path for path in paths if path.is_file()), None)
