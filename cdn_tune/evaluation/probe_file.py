"""``probe.json``, what remains of a model's score once its inputs are changed, and what that says; without torch."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cdn_tune.data.files import brief, read_json
from cdn_tune.errors import RunError

PROBE = "probe.json"
MOST_NAMES, LONGEST_NAME = 20, 200  # of changed data files that are shown, and characters of one
HALF = 0.5  # of what a model has above the query-blind list: see docs/explanation/protocol.md
TITLES = {
    "frames_shuffled": "frames shuffled",
    "frames_mean": "frames replaced by their mean",
    "other_sentences": "sentences of other videos",
    "words_shuffled": "words shuffled",
    "time_shifted": "video and moments shifted",
}
VERDICTS = {"kept": "half or more kept", "lost": "lost", "unclear": "unclear", "none": "nothing to lose"}
# What it says of a model that more than half of its advantage is left, surely; or that less than half is.
_IF_KEPT = {
    "frames_shuffled": "it does not look at when things happen",
    "frames_mean": "it does not look at when things happen",
    "other_sentences": "it does not read the sentence",
}
_IF_LOST = {"time_shifted": "it answers by where moments tend to lie"}

Number = Annotated[float, Field(allow_inf_nan=False, ge=-1e9, le=1e9)]
Name = Annotated[str, Field(pattern=r"^\S{1,100}$")]  # of a metric
Ends = Annotated[list[Number], Field(min_length=2, max_length=2)]
Verdict = Literal["kept", "lost", "unclear", "none"]


class _Entries(BaseModel):
    """Entries of the file; others may be there besides."""

    model_config = ConfigDict(strict=True, frozen=True)


class Advantage(_Entries):
    """What the model has above the query-blind list, by metric."""

    difference: dict[Name, Number]
    intervals: dict[Name, Ends | None]


class Remains(_Entries):
    """What one probe leaves, by metric.

    Attributes:
        queries: How many count.
        metrics: Values in [0, 1].
        kept: Which share is left of what the model has above the query-blind list; None if it has nothing, surely.
        kept_intervals: Their intervals.
        verdict: Of the experiment's metric: at least half is left (``kept``), or less (``lost``), as far as the
            interval tells (``unclear``); ``none`` if there was nothing to lose.
    """

    queries: int
    metrics: dict[Name, Number]
    kept: dict[Name, Number | None]
    kept_intervals: dict[Name, Ends | None]
    verdict: Verdict


class ProbeFile(_Entries):
    """What the tool reads of the file again; docs/reference/run-folder.md describes each key."""

    checkpoint: Annotated[str, Field(max_length=4096)]  # as long as a path can be
    epoch: int
    metric: Name
    queries: int
    of: int
    videos: int
    metrics: Annotated[dict[Name, Number], Field(max_length=1000)]
    advantage: Advantage
    probes: dict[str, Remains]
    data_changed: list[str] = []

    @property
    def known(self) -> dict[str, Remains]:
        """The probes by name, in the order of `TITLES`; without such as this version does not know."""
        return {name: self.probes[name] for name in TITLES if name in self.probes}

    @property
    def asked(self) -> str:
        """How many queries were asked, and of how many if not of all: ``2500 of 4000``."""
        return f"{self.queries} of {self.of}" if self.of > self.queries else str(self.queries)

    def warnings(self) -> Iterator[str]:
        """Yields what to beware of, a line each."""
        if self.data_changed:
            yield f"probe: not on the data of the run: {_listed(self.data_changed)} changed since"
        ends = self.advantage.intervals.get(self.metric)
        if ends is None or ends[0] <= 0:
            yield f"probe: val {self.metric} is not surely above the query-blind list{_range(ends, sign=True)}"
        for name, found in self.known.items():
            why = {"kept": _IF_KEPT, "lost": _IF_LOST}.get(found.verdict, {}).get(name)
            if why is not None:
                yield f"probe: {TITLES[name]}, the model {share(found, self.metric)}: {why}"


def share(found: Remains, metric: str) -> str:
    """Returns in words, after "the model", how much of a metric above the query-blind list it keeps."""
    kept = found.kept.get(metric)
    if kept is None:
        return f"has nothing to lose: its val {metric} is not surely above the query-blind list"
    return (
        f"keeps {100 * kept:.0f} %{_range(found.kept_intervals.get(metric))} of what its val {metric} is above the "
        "query-blind list"
    )


def read_probe(run: Path) -> ProbeFile | None:
    """Returns a run's ``probe.json``; None if it was never probed.

    Raises:
        RunError: If it is damaged.
    """
    path = run / PROBE
    try:
        return ProbeFile.model_validate(read_json(path))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        why = f"{'.'.join(map(str, first['loc']))[:100]}: {first['msg']}"
    except (OSError, ValueError) as error:
        why = brief(error)
    raise RunError(f"{path}: cannot be read ({why}); write it anew with: cdn-tune evaluate RUN --probe") from None


def probe_warnings(run: Path, checkpoint: str, epoch: int) -> Iterator[str]:
    """Yields what a run's last probe says to beware of, if it was of this checkpoint; a line if it cannot be read."""
    try:
        found = read_probe(run)
    except RunError as error:
        yield str(error)
        return
    if found is not None and (found.checkpoint, found.epoch) == (checkpoint, epoch):
        yield from found.warnings()


def _listed(names: list[str]) -> str:
    """Returns names of files in one line, the first of them and each cut: the file may be anybody's."""
    shown = ["".join(each if each.isprintable() else "\ufffd" for each in name[:LONGEST_NAME]) for name in names]
    more = [f"{len(names) - MOST_NAMES} more"] if len(names) > MOST_NAMES else []
    return ", ".join([*shown[:MOST_NAMES], *more])


def _range(ends: list[float] | None, sign: bool = False) -> str:
    if ends is None:
        return ""
    low, high = (f"{100 * end:+.1f}" if sign else f"{100 * end:.0f}" for end in ends)
    return f" ({low} to {high})"
