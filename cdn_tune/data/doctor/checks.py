"""The doctor's checks of every annotation and of what queries are read with: word vectors or token features."""

import unicodedata
from collections import Counter
from collections.abc import Iterable
from itertools import combinations
from pathlib import Path
from typing import Any

from cdn_tune.data.annotations import SPLITS, Annotation, Skipped, Split
from cdn_tune.data.doctor.report import EXAMPLES, Finding, Level, grouped
from cdn_tune.data.layouts import Layout
from cdn_tune.data.tokenizer import words
from cdn_tune.data.tokens import TokenFeatures
from cdn_tune.data.vectors import load_vectors
from cdn_tune.data.vocabulary import require_size
from cdn_tune.errors import DataError

LONG_SECONDS = 3 * 3600.0
USUAL = "glove.6B.300d.txt"
LOW_COVERAGE = 0.95
SAMPLE = 256  # queries whose token features a quick examination reads


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
                    wrong.append((str(item).removeprefix(f"{root}/").partition(": ")[0], item))
                elif isinstance(item, Skipped):
                    skipped[split].append(item)
                else:
                    usable[split].append(item)
        except DataError as error:  # the file as a whole
            wrong.append((files[0].name, error))
            continue
        if not usable[split]:
            empty = DataError(f"{files[0]}: no usable annotation; check that it is the right file")
            wrong.append((files[0].name, empty))
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
            findings.append(Finding("info", "splits", f"{what}, as published: {layout.shared[one, other]}"))
        else:
            remedy = f"remove these videos from {one}, or the measured recall is of videos it has seen"
            findings.append(Finding("warning", "splits", what, remedy, len(shared), tuple(shared[:EXAMPLES])))
    return findings


def _remarks(usable: dict[Split, list[Annotation]], skipped: dict[Split, list[Skipped]]) -> list[Finding]:
    findings = []
    if left_out := [item for items in skipped.values() for item in items if not item.absent]:
        examples = tuple(Path(item.id).name for item in left_out[:EXAMPLES])
        what = f"not trained on, in test a miss: {left_out[0].reason}"
        findings.append(Finding("info", "annotations", what, count=len(left_out), examples=examples))
    everything = [item for items in usable.values() for item in items]
    double = []
    lengths: dict[str, set[float]] = {}
    for items in usable.values():
        seen: Counter[tuple[str, float, float, str]] = Counter()
        for item in items:
            key = (item.video, item.start, item.end, item.query.lower())
            seen[key] += 1
            if seen[key] > 1:
                double.append(item.id)
            lengths.setdefault(item.video, set()).add(item.duration)
    for places, what, remedy in (
        (double, "the same query for the same moment again", "remove the repetition unless it is meant"),
        (
            sorted(video for video, found in lengths.items() if max(found) > LONG_SECONDS),
            "videos longer than 3 hours",
            "check that durations are in seconds; such a video's clips are minutes long",
        ),
        (
            sorted(video for video, found in lengths.items() if len(found) > 1),
            "videos with more than one duration",
            "give all entries of a video the same duration",
        ),
        (
            [item.id for item in everything if item.overrun > item.duration],
            "moments that end far behind the end of their video, where they are cut",
            "check their times and the videos' durations",
        ),
        (
            [item.id for item in everything if _has_controls(item.query) or _has_controls(item.video)],
            "control characters in the query or in the name of the video",
            "remove them",
        ),
    ):
        if places:
            findings.append(Finding("warning", "annotations", what, remedy, len(places), tuple(places[:EXAMPLES])))
    return findings


def _has_controls(text: str) -> bool:
    return any(unicodedata.category(character) == "Cc" for character in text if character != "\t")


def find_vectors(root: Path, planted: str | None = None) -> Path | None:
    """Returns the word vectors in a folder: its planted ones, the usual GloVe file, or another ``glove*.txt``."""
    names = [planted, USUAL] if planted else [USUAL]
    names += sorted(path.name.removesuffix(".pt") for path in [*root.glob("glove*.txt"), *root.glob("glove*.txt.pt")])
    for name in names:
        if (root / name).is_file() or (root / f"{name}.pt").is_file():
            return root / name
    return None


def check_words(
    path: Path | None, root: Path, items: Iterable[Annotation], size: int | None = None
) -> tuple[dict[str, Any], list[Finding]]:
    """Returns the facts of a word-vector file (None if there is none) for the words of some queries, and its faults.

    `size` is what training expects of them, if known.
    """
    if path is None:
        what = f"{root}: no word vectors ({USUAL} or another glove*.txt)"
        remedy = f"put {USUAL} there, or name it, here and in training: data.word_vectors=FILE"
        return {}, [Finding("error", "words", what, remedy)]
    try:
        vectors = load_vectors(path)
        if size is not None:
            require_size(path, vectors.dim, size)
    except DataError as error:
        return {"file": str(path)}, grouped("words", [(path.name, error)])
    counts: Counter[str] = Counter()
    without = []
    queries: dict[str, list[str]] = {}
    for item in items:
        queries.setdefault(item.query, []).append(item.id)
    for query, ids in queries.items():
        tokens = words(query)
        counts.update({token: count * len(ids) for token, count in Counter(tokens).items()})
        if not any(token in vectors.stoi for token in tokens):
            without += ids
    rows = {token: vectors.stoi[token] for token in counts if token in vectors.stoi}
    broken = [token for token, row in rows.items() if not vectors.vectors[row].isfinite().all()]
    unknown = {token: count for token, count in counts.most_common() if token not in rows}
    coverage = 1 - sum(unknown.values()) / max(sum(counts.values()), 1)
    facts = {
        "file": str(path),
        "vectors": len(vectors.itos),
        "size": vectors.dim,
        "words": len(counts),
        "coverage": round(coverage, 6),
        "unknown": unknown,
    }
    zero = [token for token, row in rows.items() if not vectors.vectors[row].any()]
    findings = []
    kinds: tuple[tuple[Level, list[str], str, str], ...] = (
        (
            "error",
            broken,
            f"words of the queries whose vector in {path.name} is not finite",
            "correct these lines, or download the file again",
        ),
        (
            "warning",
            zero,
            f"words of the queries whose vector in {path.name} is all zero, as that of an unknown word",
            "correct these lines, or download the file again",
        ),
        (
            "error",
            without,
            f"queries none of whose words has a vector in {path.name}",
            "correct or remove them, or set data.word_vectors to a file that covers them",
        ),
    )
    for level, places, what, remedy in kinds:
        if places:
            findings.append(Finding(level, "words", what, remedy, len(places), tuple(places[:EXAMPLES])))
    if unknown:
        what = f"{len(unknown)} words have no vector: {1 - coverage:.2%} of all words in the queries"
        examples = tuple(f"{token} ({count})" for token, count in list(unknown.items())[:EXAMPLES])
        low = coverage < LOW_COVERAGE
        remedy = "use word vectors that cover them, or correct the spelling" if low else ""
        findings.append(Finding("warning" if low else "info", "words", what, remedy, len(unknown), examples))
    return facts, findings


def check_tokens(
    path: Path, root: Path, items: Iterable[Annotation], quick: bool, size: int | None = None
) -> tuple[dict[str, Any], list[Finding]]:
    """Returns the facts of a file of token features for some queries, and its faults; `quick`: a sample is read.

    `size` is what training expects of them, if known.
    """
    if not path.is_file():
        what = f"{path}: no token features"
        remedy = f"write them with: cdn-tune data text {root} --model DIR, or name them: data.tokens=FILE"
        return {}, [Finding("error", "words", what, remedy)]
    queries: dict[str, list[str]] = {}
    for item in items:
        queries.setdefault(item.query, []).append(item.id)
    try:
        features = TokenFeatures(path, size)
        faults = features.check(queries, root, max(1, len(queries) // SAMPLE) if quick else 1)
    except DataError as error:
        return {"file": str(path)}, grouped("words", [(path.name, error)])
    facts = {
        "file": str(path),
        "model": features.model.name,
        "size": features.model.size,
        "queries": len(queries),
        "with_features": len(queries) - len(faults),
    }
    return facts, grouped("words", [(place, error) for text, error in faults.items() for place in queries[text]])
