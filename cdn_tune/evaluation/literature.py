"""Published results, to print beside a run's own where the data are the same.

All of them, the published CDN among them, were chosen on the test split: the epoch that is best there is reported.
"""

from pathlib import Path
from typing import Any, NamedTuple

from cdn_tune.config import DataConfig, recall_name
from cdn_tune.data.layouts import layout_of

NOTE = "published; chosen on the test split"
_CDN = "Cross-modal Dynamic Networks, IEEE TMM"
_TAN = "2D-TAN (arXiv 1912.03590), as its authors' repository lists it"


class _Setting(NamedTuple):
    """A dataset as it was published: features and the size of its test split."""

    dataset: str
    features: str
    feature_size: int
    queries: tuple[int, ...]
    ious: tuple[float, ...]
    rows: tuple[tuple[str, str, tuple[float, ...]], ...]  # method, source, R1 at each IoU then R5, in percent


SETTINGS = (
    _Setting(
        *("tacos", "C3D", 4096, (4083, 4001), (0.1, 0.3, 0.5)),
        (
            ("CDN, pool", _CDN, (51.34, 43.09, 32.82, 75.01, 64.98, 52.96)),
            ("CDN, conv", _CDN, (50.99, 40.44, 28.94, 79.48, 64.91, 51.96)),
            ("2D-TAN, pool", _TAN, (47.59, 37.29, 25.32, 70.31, 57.81, 45.04)),
            ("2D-TAN, conv", _TAN, (46.39, 35.17, 25.17, 74.46, 56.99, 44.24)),
        ),
    ),
    _Setting(
        *("charades_sta", "VGG", 4096, (3720,), (0.5, 0.7)),
        (
            ("CDN, pool", _CDN, (45.24, 26.99, 81.18, 57.47)),
            ("CDN, conv", _CDN, (43.90, 25.43, 80.65, 56.37)),
            ("2D-TAN, pool", _TAN, (40.94, 22.85, 83.84, 50.35)),
            ("2D-TAN, conv", _TAN, (42.80, 23.25, 80.54, 54.14)),
        ),
    ),
    _Setting(
        *("activitynet", "C3D", 500, (17031,), (0.3, 0.5, 0.7)),
        (
            ("2D-TAN, pool", _TAN, (59.45, 44.51, 26.54, 85.53, 77.13, 61.96)),
            ("2D-TAN, conv", _TAN, (58.75, 44.05, 27.38, 85.65, 76.65, 62.26)),
        ),
    ),
)


def published_rows(data: DataConfig, facts: dict[str, Any]) -> list[dict[str, Any]]:
    """Returns the published results that were measured on the same data, ready for JSON; none for planted data.

    The data are the same if they are real, the features have the published size and one of the dataset's usual names,
    and the test split has the published number of queries, with or without the entries that are not used.

    Args:
        data: The experiment's data.
        facts: Their fingerprint.
    """
    if facts["planted"] or Path(facts["files"]["features"]["name"]).name not in layout_of(data.dataset).features:
        return []
    queries = facts["splits"]["test"]["queries"]
    whole = queries + len(facts["skipped"]["test"])
    return [
        {
            "method": method,
            "features": setting.features,
            "source": source,
            "note": NOTE,
            "metrics": {
                recall_name(n, iou): round(value / 100, 4)
                for (n, iou), value in zip([(n, iou) for n in (1, 5) for iou in setting.ious], values, strict=True)
            },
        }
        for setting in SETTINGS
        if (setting.dataset, setting.feature_size) == (data.dataset, data.feature_size)
        and (queries in setting.queries or whole in setting.queries)
        for method, source, values in setting.rows
    ]
