"""The NMS threshold, chosen on val."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cdn_tune.config import Experiment, recall_name
from cdn_tune.evaluation.scoring import Workers, open_split, retrieve
from cdn_tune.moments.metrics import measure

GRID = tuple(round(0.3 + 0.05 * step, 2) for step in range(11))  # 0.3 to 0.8


@dataclass(frozen=True)
class NmsChoice:
    """A threshold and why it was chosen.

    Attributes:
        threshold: IoU above which the lesser of two moments is dropped.
        chosen_on: ``val``, or ``the experiment``.
        metric: What it was chosen by.
        tried: Value on val of each threshold tried.
    """

    threshold: float
    chosen_on: str
    metric: str | None
    tried: dict[float, float]

    def plain(self) -> dict[str, Any]:
        """Returns the choice, ready for JSON."""
        tried = [{"threshold": threshold, "value": value} for threshold, value in self.tried.items()]
        return {"threshold": self.threshold, "chosen_on": self.chosen_on, "metric": self.metric, "tried": tried}


def choose_nms(file: Path, experiment: Experiment, workers: Workers) -> NmsChoice:
    """Chooses the NMS threshold on val, from `GRID` and the experiment's own.

    Suppression never touches the first moment, so R@1 and mIoU are no criterion: it is chosen by the largest n of R@n,
    at the IoU of the experiment's metric (the middle one if it has none). Of equals, the nearest to the experiment's.

    Args:
        file: The checkpoint.
        experiment: Where its data are and how it is evaluated.
        workers: Who computes.

    Raises:
        CdnTuneError: If the checkpoint, the data or the cluster is at fault.
    """
    settings = experiment.eval
    _, _, text = settings.metric.partition("@")
    iou = float(text) if text else settings.ious[len(settings.ious) // 2]
    count = max(settings.recalls)
    own = settings.nms_threshold
    grid = sorted({*GRID, own})
    (found,) = retrieve([(file, experiment)], "val", grid, count, workers)
    val = open_split(experiment.data, "val")
    name = recall_name(count, iou)
    tried = {each: measure(found[each].answers(val), [name]).means[name] for each in grid}
    best = max(tried.values())
    near = min((each for each in grid if tried[each] == best), key=lambda each: (abs(each - own), each))
    return NmsChoice(near, "val", name, tried)
