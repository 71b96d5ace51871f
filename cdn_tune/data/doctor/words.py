"""Word vectors under examination: can they be read, and which words of the queries do they lack."""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from cdn_tune.data.annotations import Annotation
from cdn_tune.data.doctor.report import EXAMPLES, Finding, grouped
from cdn_tune.data.tokenizer import words
from cdn_tune.data.vectors import load_vectors
from cdn_tune.errors import DataError

USUAL = "glove.6B.300d.txt"
LOW_COVERAGE = 0.95


def find_vectors(root: Path, planted: str | None = None) -> Path | None:
    """Returns the word vectors in a folder: those of its planting, the usual GloVe file, or another ``glove*.txt``."""
    names = [planted, USUAL] if planted else [USUAL]
    names += sorted(path.name.removesuffix(".pt") for path in [*root.glob("glove*.txt"), *root.glob("glove*.txt.pt")])
    for name in names:
        if (root / name).is_file() or (root / f"{name}.pt").is_file():
            return root / name
    return None


def check_words(path: Path | None, root: Path, items: Iterable[Annotation]) -> tuple[dict[str, Any], list[Finding]]:
    """Returns the facts of a word-vector file against the words of some queries, and what is wrong.

    Args:
        path: The file; None if there is none.
        root: The data folder, for the remedy.
        items: The queries.
    """
    if path is None:
        what = f"{root}: no word vectors ({USUAL} or another glove*.txt)"
        remedy = f"put {USUAL} there, or name it in training: data.word_vectors=FILE"
        return {}, [Finding("error", "words", what, remedy)]
    try:
        vectors = load_vectors(path)
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
    broken = [
        token for token in counts if token in vectors.stoi and not vectors.vectors[vectors.stoi[token]].isfinite().all()
    ]
    unknown = {token: count for token, count in counts.most_common() if token not in vectors.stoi}
    total = max(sum(counts.values()), 1)
    coverage = 1 - sum(unknown.values()) / total
    facts = {
        "file": str(path),
        "vectors": len(vectors.itos),
        "size": vectors.dim,
        "words": len(counts),
        "coverage": round(coverage, 6),
        "unknown": unknown,
    }
    findings = []
    if broken:
        what = f"words of the queries whose vector in {path.name} is not finite"
        remedy = "correct these lines, or download the file again"
        findings.append(Finding("error", "words", what, remedy, len(broken), tuple(broken[:EXAMPLES])))
    if without:
        what = f"queries none of whose words has a vector in {path.name}"
        remedy = "correct or remove them, or set data.word_vectors to a file that covers them"
        findings.append(Finding("error", "words", what, remedy, len(without), tuple(without[:EXAMPLES])))
    if unknown:
        level = "warning" if coverage < LOW_COVERAGE else "info"
        what = f"{len(unknown)} words have no vector: {1 - coverage:.2%} of all words in the queries"
        examples = tuple(f"{token} ({count})" for token, count in list(unknown.items())[:EXAMPLES])
        remedy = "use word vectors that cover them, or correct the spelling" if level == "warning" else ""
        findings.append(Finding(level, "words", what, remedy, len(unknown), examples))  # type: ignore[arg-type]
    return facts, findings
