"""The metrics of an evaluation as a table of queries and metrics, from which means, intervals and tests follow.

Shape letters: Q queries, M metrics, n moments per query.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from torch import Tensor

from cdn_tune.config import recall_name
from cdn_tune.data.annotations import Annotation
from cdn_tune.moments.outcomes import AP_IOUS, AP_MOMENTS, outcomes

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Measures:
    """What each query adds to each metric.

    Attributes:
        names: M names, e.g. ``R1@0.5``, ``mIoU``, ``mAP@0.5``, ``mAP``.
        values: float64 [Q, M]; a metric is the mean of its column.
    """

    names: tuple[str, ...]
    values: Floats

    @property
    def means(self) -> dict[str, float]:
        """The metrics by name, in [0, 1]."""
        return {name: float(column.mean()) for name, column in zip(self.names, self.values.T.copy(), strict=True)}

    def only(self, names: Sequence[str]) -> Measures:
        """Returns some of the metrics."""
        kept = [index for index, name in enumerate(self.names) if name in names]
        return Measures(tuple(self.names[index] for index in kept), self.values[:, kept])


def depth(recalls: Sequence[int]) -> int:
    """Returns how many moments per query the metrics look at."""
    return max(AP_MOMENTS, *recalls)


def measures(top: Tensor, moments: Tensor, recalls: Sequence[int], ious: Sequence[float]) -> Measures:
    """Measures ranked moments.

    Args:
        top: Spans in seconds, best first, NaN-padded [Q, n, 2].
        moments: Annotated spans in seconds [Q, 2].
        recalls: The n of R@n.
        ious: IoU thresholds of R@n and of mAP@IoU.

    Returns:
        R@n at each IoU, mIoU, mAP at each IoU, and mAP, the mean over IoU 0.5, 0.55 to 0.95; see `moments.outcomes`.
    """
    found = outcomes(top, moments, tuple(dict.fromkeys((*ious, *AP_IOUS))))
    columns = {recall_name(n, iou): found.recall(n, iou) for n in recalls for iou in ious}
    columns["mIoU"] = found.iou
    columns |= {f"mAP@{iou:g}": found.average_precision(iou) for iou in ious}
    columns["mAP"] = found.mean_average_precision()
    return Measures(tuple(columns), np.stack([column.numpy() for column in columns.values()], axis=1))


def mean_measures(many: Sequence[Measures]) -> Measures:
    """Returns the mean over models (seeds) of what each query adds."""
    return Measures(many[0].names, np.mean([each.values for each in many], axis=0))


def video_numbers(annotations: Sequence[Annotation]) -> npt.NDArray[np.int64]:
    """Returns the video of each query as a number [Q]."""
    numbers: dict[str, int] = {}
    return np.array([numbers.setdefault(item.video, len(numbers)) for item in annotations], dtype=np.int64)
