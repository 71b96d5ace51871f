"""From what was retrieved to what is reported: metrics with intervals, groups, baselines, the gain over the bias."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from cdn_tune.config import recall_name
from cdn_tune.config.tables import find_metric, metrics_depth
from cdn_tune.data.annotations import Annotation, true_moments
from cdn_tune.data.tokenizer import words
from cdn_tune.evaluation.queries import video_numbers
from cdn_tune.moments.baselines import best_constant, best_constant_list, constant_list_top, constant_top, random_top
from cdn_tune.moments.bootstrap import RESAMPLES, cluster_means, compare_paired, interval
from cdn_tune.moments.metrics import Answers, Measures, measure, query_groups

Mask = NDArray[np.bool_]
Ends = dict[str, list[float] | None]  # of the interval of each metric

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
        Ready for JSON: ``metrics``, ``intervals``, ``models`` (the same of each by name), ``parts`` of the split and
        ``gaps`` between them, ``groups``, ``baselines``, ``advantage`` (over the query-blind list), ``bootstrap``.
        docs/reference/run-folder.md describes each.
    """
    first = next(iter(models.values()))
    videos = video_numbers(annotations)
    answers, facts = _baselines(annotations, train, first.names, ious, seed, closed)
    groups = query_groups(*_times(annotations), [len(words(item.query)) for item in annotations])
    parts = parts_of(annotations)
    columns = {f"model {name}": each for name, each in models.items()}
    columns |= {f"baseline {name}": each for name, each in answers.items()}
    for kind, masks in groups.items():
        for label, mask in masks.items():
            columns[f"group {kind} {label}"] = first.within(mask.numpy())
    for label, inside in parts.items():
        columns[f"part {label}"] = first.within(inside)
        columns[f"blind {label}"] = answers[BLIND].within(inside)
    pairs = [(f"part {one}", f"part {other}") for one, other in _gaps(parts)]
    ends, between = _intervals(columns, videos, seed, resamples, pairs)
    reported = {name: {"metrics": each.means, "intervals": ends[f"model {name}"]} for name, each in models.items()}
    blind = answers[BLIND].only(first.names)
    paired = compare_paired(first.values, blind.values, videos, resamples, seed)
    return {
        **next(iter(reported.values())),
        "models": reported,
        "parts": [
            {
                **_group(label, mask, videos, first, ends[f"part {label}"]),
                BLIND: {"metrics": answers[BLIND].of(mask).means, "intervals": ends[f"blind {label}"]},
            }
            for label, mask in parts.items()
        ],
        "gaps": [
            {
                "of": one,
                "minus": other,
                "difference": _named(
                    first.names, first.of(parts[one]).values.mean(axis=0) - first.of(parts[other]).values.mean(axis=0)
                ),
                "intervals": between[f"part {one}", f"part {other}"],
            }
            for one, other in _gaps(parts)
        ],
        "groups": {
            kind: [
                _group(label, mask.numpy(), videos, first, ends[f"group {kind} {label}"])
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


def parts_of(annotations: Sequence[Annotation]) -> dict[str, Mask]:
    """Returns a mask [Q] for each part of a split, in the order in which they come; a query may be of none."""
    labels = dict.fromkeys(item.part for item in annotations if item.part is not None)
    return {label: np.array([item.part == label for item in annotations]) for label in labels}


def _gaps(parts: Mapping[str, Mask]) -> list[tuple[str, str]]:
    """Returns the pairs of parts whose difference is reported: the first with each other one."""
    first, *others = parts or [""]
    return [(first, other) for other in others]


def _group(
    label: str, mask: Mask, videos: NDArray[np.int64], measures: Measures, intervals: Mapping[str, Any]
) -> dict[str, Any]:
    """Returns what is reported of some queries."""
    return {
        "label": label,
        "queries": int(mask.sum()),
        "videos": len(np.unique(videos[mask])),
        "metrics": measures.of(mask).means,
        "intervals": intervals,
    }


def _intervals(
    columns: Mapping[str, Measures],
    videos: NDArray[np.int64],
    seed: int,
    resamples: int,
    pairs: Sequence[tuple[str, str]] = (),
) -> tuple[dict[str, Ends], dict[tuple[str, str], Ends]]:
    """Returns intervals by model and metric, all from the same resamples; None where no resample holds a query.

    And by pair, those of the difference of the two in each of `pairs`: one resample of the videos gives both, so that
    it does not matter whether the two share videos.
    """
    values = np.concatenate([each.values for each in columns.values()], axis=1)
    drawn = cluster_means(values, videos, resamples, seed)  # [R, M of all]
    ends = np.cumsum([len(each.names) for each in columns.values()])[:-1]
    means = dict(zip(columns, np.split(drawn, ends, axis=1), strict=True))
    found = {title: _ends(columns[title].names, each) for title, each in means.items()}
    gaps = {(one, other): _ends(columns[one].names, means[one] - means[other]) for one, other in pairs}
    return found, gaps


def _ends(names: Sequence[str], means: NDArray[np.float64]) -> Ends:
    low, high = interval(means, LEVEL)
    ends = zip(low.tolist(), high.tolist(), strict=True)
    return {name: None if np.isnan(start) else [start, end] for name, (start, end) in zip(names, ends, strict=True)}


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
