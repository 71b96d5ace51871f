"""Rejection: can a model tell that a sentence is not in the video? Its threshold is chosen on val, measured on test.

Asked are the sentences that the annotations mark as absent, where val and test have some; else the split's sentences of
other videos, in any dataset. Such a sentence may be true of the other video, too, so that no model reaches all of it.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from cdn_tune.config import Experiment, Nms
from cdn_tune.data.annotations import Annotation, Split
from cdn_tune.data.dataset import MomentDataset
from cdn_tune.errors import DataError
from cdn_tune.evaluation.queries import video_numbers
from cdn_tune.evaluation.scoring import Retrieved, Workers, open_split, retrieve
from cdn_tune.evaluation.summary import LEVEL
from cdn_tune.moments.bootstrap import interval
from cdn_tune.moments.rejection import METRICS, Scored, choose_threshold

SPLITS: tuple[Split, ...] = ("val", "test")
MARKED, PAIRED = "marked in the annotations", "sentences of other videos"


@dataclass(frozen=True)
class Rejection:
    """How sentences that are not in the video are rejected, as chosen on val.

    Attributes:
        file: The checkpoint.
        experiment: Where its data are.
        nms: How overlapping moments are suppressed.
        workers: Who computes.
        absent: Which sentences are asked in vain: `MARKED` or `PAIRED`.
        threshold: What scores below is rejected.
        val: What was found on val, ready for JSON.
    """

    file: Path
    experiment: Experiment
    nms: Nms
    workers: Workers
    absent: str
    threshold: float
    val: dict[str, Any]

    def measure(self, found: Retrieved, resamples: int) -> dict[str, Any]:
        """Returns what was found on test, ready for JSON.

        Args:
            found: What the checkpoint retrieved for the queries of test.
            resamples: Of intervals.
        """
        scored = _score(self.file, self.experiment, self.nms, self.workers, "test", found, self.absent == MARKED)
        low, high = interval(scored.resampled(self.threshold, resamples, self.experiment.seed), LEVEL)
        ends = zip(METRICS, low.tolist(), high.tolist(), strict=True)
        return {
            "absent": self.absent,
            "threshold": self.threshold,
            "chosen_by": "balanced_accuracy",
            "val": self.val,
            **_counts(scored),
            "metrics": scored.measures(self.threshold),
            "intervals": {name: None if math.isnan(start) else [start, end] for name, start, end in ends},
        }


def choose_rejection(file: Path, experiment: Experiment, nms: Nms, workers: Workers) -> Rejection:
    """Chooses on val the score below which a sentence is rejected: that of the highest balanced accuracy.

    Raises:
        DataError: If there is no sentence to be rejected, on val or on test.
        CdnTuneError: If the checkpoint, the data or the cluster is at fault.
    """
    marked = all(_open(experiment, split).absent for split in SPLITS)
    for split in SPLITS:  # before anything is computed
        _absent(_open(experiment, split), split, marked)
    (found,) = retrieve([(file, experiment)], "val", [nms], 1, workers)
    scored = _score(file, experiment, nms, workers, "val", found[nms], marked)
    threshold = choose_threshold(scored.present, scored.absent)
    facts = {**_counts(scored), "metrics": scored.measures(threshold)}
    return Rejection(file, experiment, nms, workers, MARKED if marked else PAIRED, threshold, facts)


def foreign_sentences(annotations: Sequence[Annotation], seed: int = 0) -> list[Annotation]:
    """Returns the sentences of a split, each asked of another video: a model gains nothing by knowing either alone.

    Each video is asked as many as it has, and each sentence once, except those that the other video's annotations have
    word for word, or that only a split of one video could be asked. The probe ``other_sentences`` draws at random
    instead, as it needs one sentence for every query, asked twice or not.

    Args:
        annotations: The queries.
        seed: Of the order of the videos, in which a video's sentences go to one further on; the same for every run,
            so that they are asked the same.
    """
    generator = np.random.default_rng(np.random.SeedSequence([seed, 0x0FF]))
    videos = list(dict.fromkeys(item.video for item in annotations))
    rank = {videos[place]: order for order, place in enumerate(generator.permutation(len(videos)).tolist())}
    ranked = sorted(annotations, key=lambda item: rank[item.video])  # stable: a video's sentences stay together
    step = max(Counter(item.video for item in annotations).values(), default=0)  # past the video with the most
    own = {(item.video, item.query.lower()) for item in annotations}
    pairs = zip(ranked, [*ranked[step:], *ranked[:step]], strict=True)
    return [
        replace(
            other, id=f"{item.id}@{other.video}", start=0.0, end=0.0, query=item.query, others=(), qid=None, part=None
        )
        for item, other in pairs
        if item.video != other.video and (other.video, item.query.lower()) not in own
    ]


def _open(experiment: Experiment, split: Split) -> MomentDataset:
    return open_split(experiment.data, split, experiment.model.inputs.sequences)


def _absent(dataset: MomentDataset, split: Split, marked: bool) -> list[Annotation]:
    absent = list(dataset.absent) if marked else foreign_sentences(dataset.annotations)
    if not absent:
        raise DataError(f"--reject: {split} has no video that another one's sentences could be asked of; leave it out")
    return absent


def _score(
    file: Path,
    experiment: Experiment,
    nms: Nms,
    workers: Workers,
    split: Split,
    found: Retrieved,
    marked: bool,
) -> Scored:
    """Asks the absent sentences of a split, beside what was found for its queries."""
    dataset = _open(experiment, split)
    absent = _absent(dataset, split, marked)
    (asked,) = retrieve([(file, experiment)], split, [nms], 1, workers, asking=absent)
    own = np.array([item.start < item.end for item in dataset.annotations])  # without those that lack their moment
    present = [item for item, kept in zip(dataset.annotations, own, strict=True) if kept]
    videos = video_numbers([*present, *absent])
    scores = [np.nan_to_num(each.scores[:, 0].double().numpy(), nan=-np.inf) for each in (found, asked[nms])]
    return Scored(scores[0][own], scores[1], videos[: len(present)], videos[len(present) :])


def _counts(scored: Scored) -> dict[str, int]:
    return {"present_queries": len(scored.present), "absent_queries": len(scored.absent)}
