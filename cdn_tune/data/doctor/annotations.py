"""Annotations under examination: every entry, not only the first wrong one."""

from collections import Counter
from itertools import combinations
from pathlib import Path

from cdn_tune.data.annotations import SPLITS, Annotation, Skipped, Split
from cdn_tune.data.doctor.report import EXAMPLES, Finding, grouped
from cdn_tune.data.layouts import Layout
from cdn_tune.errors import DataError

LONG_SECONDS = 3 * 3600.0


def check_annotations(
    root: Path, layout: Layout
) -> tuple[dict[Split, list[Annotation]], dict[Split, list[Skipped]], list[Finding]]:
    """Returns usable and skipped entries of every split that has files, and what is wrong with the others."""
    usable: dict[Split, list[Annotation]] = {}
    skipped: dict[Split, list[Skipped]] = {}
    wrong: list[tuple[str, DataError]] = []
    for split in SPLITS:
        files = layout.files(root, split)
        if not files:
            continue
        usable[split], skipped[split] = [], []
        try:
            for item in layout.scan(root, split):
                if isinstance(item, DataError):
                    wrong.append((_place(root, item), item))
                elif isinstance(item, Skipped):
                    skipped[split].append(item)
                else:
                    usable[split].append(item)
        except DataError as error:  # the file as a whole
            wrong.append((files[0].name, error))
            continue
        if not usable[split]:
            wrong.append(
                (files[0].name, DataError(f"{files[0]}: no usable annotation; check that it is the right file"))
            )
    return usable, skipped, [*grouped("annotations", wrong), *_remarks(usable, skipped)]


def check_overlap(layout: Layout, usable: dict[Split, list[Annotation]]) -> list[Finding]:
    """Returns the splits that share videos."""
    videos = {split: {item.video for item in items} for split, items in usable.items()}
    findings = []
    for one, other in combinations(SPLITS, 2):
        shared = sorted(videos.get(one, set()) & videos.get(other, set()))
        if not shared:
            continue
        what = f"{one} and {other} share {len(shared)} videos"
        if (one, other) in layout.shared:
            why = layout.shared[one, other]
            findings.append(Finding("info", "splits", f"{what}, as published: {why}"))
            continue
        remedy = f"remove these videos from {one}, or the measured recall is of videos it has seen"
        findings.append(Finding("warning", "splits", what, remedy, len(shared), tuple(shared[:EXAMPLES])))
    return findings


def _remarks(usable: dict[Split, list[Annotation]], skipped: dict[Split, list[Skipped]]) -> list[Finding]:
    findings = []
    left_out = [item for items in skipped.values() for item in items]
    if left_out:
        findings.append(
            Finding(
                "info",
                "annotations",
                f"not used: {left_out[0].reason}",
                count=len(left_out),
                examples=tuple(Path(item.id).name for item in left_out[:EXAMPLES]),
            )
        )
    double = []
    for items in usable.values():
        seen: Counter[tuple[str, float, float, str]] = Counter()
        for item in items:
            key = (item.video, item.start, item.end, item.query.lower())
            seen[key] += 1
            if seen[key] > 1:
                double.append(item.id)
    if double:
        what, remedy = "the same query for the same moment again", "remove the repetition unless it is meant"
        findings.append(Finding("warning", "annotations", what, remedy, len(double), tuple(double[:EXAMPLES])))
    lengths: dict[str, set[float]] = {}
    for items in usable.values():
        for item in items:
            lengths.setdefault(item.video, set()).add(item.duration)
    for videos, what, remedy in (
        (
            [video for video, found in lengths.items() if max(found) > LONG_SECONDS],
            "videos longer than 3 hours",
            "check that durations are in seconds; such a video's clips are minutes long",
        ),
        (
            [video for video, found in lengths.items() if len(found) > 1],
            "videos with more than one duration",
            "give all entries of a video the same duration",
        ),
    ):
        if videos:
            findings.append(
                Finding("warning", "annotations", what, remedy, len(videos), tuple(sorted(videos)[:EXAMPLES]))
            )
    return findings


def _place(root: Path, error: DataError) -> str:
    return str(error).removeprefix(f"{root}/").partition(": ")[0]
