"""The result of an examination: findings, each with its remedy, and the facts of the folder."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from cdn_tune.data.mark import Mark
from cdn_tune.errors import DataError

Level = Literal["error", "warning", "info"]
EXAMPLES = 20


@dataclass(frozen=True)
class Finding:
    """One thing found, possibly in many places.

    Attributes:
        level: ``error`` if training would fail, ``warning`` if its result would suffer, ``info`` otherwise.
        area: `annotations`, `features`, `words`, `splits` or `folder`.
        what: What is the matter.
        remedy: What to do; empty for ``info``.
        count: In how many places.
        examples: The first of them: files and lines, or videos.
    """

    level: Level
    area: str
    what: str
    remedy: str = ""
    count: int = 1
    examples: tuple[str, ...] = ()


@dataclass(frozen=True)
class Report:
    """A folder's examination.

    Attributes:
        root: The folder.
        dataset: Name of its layout; None if it is unknown.
        variant: Which edition of the dataset it is, if that is known.
        planted: Whether it is planted data, or drawn videos.
        quick: Whether features were sampled.
        splits: Per split, numbers of queries, videos, skipped entries and sentences marked as not in their video
            (absent), and the queries of each part that it has (parts).
        features: File, videos, videos checked, size, type, rows per second; how they were made, where the file tells.
        words: File, size, coverage, and the unknown words with how often each occurs, most frequent first; or file,
            model and size of token features, and how many queries have some.
        findings: Errors first.
    """

    root: str
    dataset: str | None
    variant: str | None
    planted: Mark
    quick: bool
    splits: dict[str, dict[str, Any]] = field(default_factory=dict)
    features: dict[str, Any] = field(default_factory=dict)
    words: dict[str, Any] = field(default_factory=dict)
    findings: tuple[Finding, ...] = ()

    @property
    def fails(self) -> bool:
        """Whether training on this folder would fail."""
        return any(finding.level == "error" for finding in self.findings)

    def plain(self) -> dict[str, Any]:
        """Returns the report as plain dicts, lists, numbers and strings, ready for JSON."""
        return {**asdict(self), "fails": self.fails}


def grouped(area: str, errors: Iterable[tuple[str, DataError]]) -> list[Finding]:
    """Returns errors, each with its place, as findings of an area; those with the same remedy as one."""
    groups: dict[str, list[tuple[str, str]]] = {}
    for place, error in errors:
        what, _, remedy = str(error).rpartition("; ")
        groups.setdefault(remedy, []).append((place, what))
    return [
        Finding("error", area, found[0][1], remedy, len(found), tuple(place for place, _ in found[:EXAMPLES]))
        for remedy, found in groups.items()
    ]
