"""From what was retrieved to what is reported: metrics with intervals, groups, baselines, the gain over the bias."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from cdn_tune.config import recall_name
from cdn_tune.config.tables import find_metric, metrics_depth
from cdn_tune.data.annotations import Annotation, true_moments
from cdn_tune.data.tokenizer import words
from cdn_tune.evaluation.queries import video_numbers
from cdn_tune.moments.baselines import best_constant, best_constant_list, constant_list_top, constant_top, random_top
from cdn_tune.moments.bootstrap import RESAMPLES, cluster_means, compare_paired, interval
from cdn_tune.moments.metrics import Answers, Measures, measure, query_groups

LEVEL = 0.95
BLIND = "query_blind"
# What needs no model, as it is called wherever it is shown.
BASELINES = {"best_constant": "best constant answer", BLIND: "query-blind list", "random": "random moments"}


def summarise(
    models: Mapping[str, Measures],
    annotations: Sequence[Annotation],
    train: Sequence[Annotation],
    ious: Sequence[float],
    seed: int = 0,
    resamples: int = RESAMPLES,
    closed: bool = False,
) -> dict[str, Any]:
    """Summarises an evaluation; the first model is the one that is reported, split into groups and compared.

    Args:
        models: What each query adds to the metrics of each model.
        annotations: The queries.
        train: Those on which the answers that need no model are chosen.
        ious: IoU thresholds, at the middle one of which constant answers are chosen.
        seed: Of the random answers and of the resamples.
        resamples: Of intervals and tests.
        closed: Whether an IoU equal to a threshold is a hit, in `models` and so in the baselines.

    Returns:
        Ready for JSON: ``metrics``, ``intervals``, ``models`` (the same of each by name), ``groups``, ``baselines``,
        ``advantage`` (over the query-blind list), ``bootstrap``. docs/reference/run-folder.md describes each.
    """
    first = next(iter(models.values()))
    videos = video_numbers(annotations)
    answers, facts = _baselines(annotations, train, first.names, ious, seed, closed)
    groups = query_groups(*_times(annotations), [len(words(item.query)) for item in annotations])
    columns = {f"model {name}": each for name, each in models.items()}
    columns |= {f"baseline {name}": each for name, each in answers.items()}
    for kind, masks in groups.items():
        for label, mask in masks.items():
            values = np.where(mask.numpy()[:, None], first.values, np.nan)
            columns[f"group {kind} {label}"] = Measures(first.names, values)
    ends = _intervals(columns, videos, seed, resamples)
    reported = {name: {"metrics": each.means, "intervals": ends[f"model {name}"]} for name, each in models.items()}
    blind = answers[BLIND].only(first.names)
    paired = compare_paired(first.values, blind.values, videos, resamples, seed)
    return {
        **next(iter(reported.values())),
        "models": reported,
        "groups": {
            kind: [
                {
                    "label": label,
                    "queries": int(mask.sum()),
                    "videos": len(np.unique(videos[mask.numpy()])),
                    "metrics": Measures(first.names, first.values[mask.numpy()]).means,
                    "intervals": ends[f"group {kind} {label}"],
                }
                for label, mask in masks.items()
            ]
            for kind, masks in groups.items()
        },
        "baselines": {
            name: {**facts[name], "metrics": each.means, "intervals": ends[f"baseline {name}"]}
            for name, each in answers.items()
        },
        "advantage": {
            "over": BLIND,
            "difference": _named(first.names, paired.difference),
            "intervals": {
                name: [float(low), float(high)]
                for name, low, high in zip(first.names, paired.low, paired.high, strict=True)
            },
            "p_values": _named(first.names, paired.p_value),
        },
        "bootstrap": {"level": LEVEL, "resamples": resamples, "seed": seed, "clusters": int(videos.max()) + 1},
    }


def _intervals(
    columns: Mapping[str, Measures], videos: Any, seed: int, resamples: int
) -> dict[str, dict[str, list[float] | None]]:
    """Returns intervals by model and metric, all from the same resamples; None where no resample holds a query."""
    values = np.concatenate([each.values for each in columns.values()], axis=1)
    low, high = interval(cluster_means(values, videos, resamples, seed), LEVEL)
    at = 0
    found: dict[str, dict[str, list[float] | None]] = {}
    for title, each in columns.items():
        ends = zip(low[at : at + len(each.names)].tolist(), high[at : at + len(each.names)].tolist(), strict=True)
        found[title] = {
            name: None if np.isnan(start) else [start, end] for name, (start, end) in zip(each.names, ends, strict=True)
        }
        at += len(each.names)
    return found


def _baselines(
    annotations: Sequence[Annotation],
    train: Sequence[Annotation],
    names: Sequence[str],
    ious: Sequence[float],
    seed: int,
    closed: bool,
) -> tuple[dict[str, Measures], dict[str, dict[str, Any]]]:
    """Measures what needs no model: the best constant answer, the best constant list, chance."""
    iou = _constant_iou(ious)
    count = metrics_depth(names)
    durations, moments = _times(annotations)[0], true_moments(annotations)
    answer = best_constant(*_times(train), iou)
    listed = blind_list(train, ious, count)
    generator = torch.Generator().manual_seed(seed)
    tops = {
        "best_constant": constant_top(durations, answer),
        BLIND: constant_list_top(durations, listed),
        "random": random_top(durations, count, generator),
    }
    of_one = [name for name in names if find_metric(name).depth == 1]  # all that can be measured of one answer
    measured = {"best_constant": of_one, BLIND: names, "random": names}
    found = {
        name: measure(Answers(top, moments, durations, closed=closed), measured[name]) for name, top in tops.items()
    }
    return found, {
        "best_constant": {"answer": list(answer), "chosen_for": recall_name(1, iou)},
        BLIND: {"answers": [list(each) for each in listed], "chosen_for": f"coverage@{iou:g}"},
        "random": {},
    }


def blind_list(
    train: Sequence[Annotation], ious: Sequence[float], count: int
) -> tuple[tuple[float, float, float], ...]:
    """Returns the query-blind list of so many answers, as `best_constant_list` does, chosen on train."""
    return best_constant_list(*_times(train), _constant_iou(ious), count)


def _constant_iou(ious: Sequence[float]) -> float:
    """Returns the threshold at which constant answers are chosen: 0.5, or the middle one."""
    return 0.5 if 0.5 in ious else ious[len(ious) // 2]


def _times(annotations: Sequence[Annotation]) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns durations [Q] and annotated moments [Q, 2], in seconds; of several moments, the first."""
    durations = torch.tensor([item.duration for item in annotations], dtype=torch.float64)
    return durations, torch.tensor([item.moments[0] for item in annotations], dtype=torch.float64)


def _named(names: Sequence[str], values: Any) -> dict[str, float]:
    return {name: float(value) for name, value in zip(names, values, strict=True)}
