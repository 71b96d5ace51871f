"""The probe of a run: what remains of its best checkpoint's score on val once frames, words or times are changed.

Beside it stands the query-blind list. ``probe.json`` holds what was found; test is not opened.
"""

from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from cdn_tune.config import Experiment, override
from cdn_tune.config.tables import find_metric, metrics_depth
from cdn_tune.data.batches import Source, evaluation_batches
from cdn_tune.data.dataset import Indices, MomentDataset, grouped
from cdn_tune.data.fingerprint import fingerprint
from cdn_tune.data.mark import to_mark
from cdn_tune.data.probes import PROBES, Probed
from cdn_tune.data.splits import split_annotations
from cdn_tune.evaluation.evaluate import choose_models, find_changes
from cdn_tune.evaluation.probe_file import HALF, PROBE, Verdict
from cdn_tune.evaluation.request import Request
from cdn_tune.evaluation.scoring import open_split, ready
from cdn_tune.evaluation.summary import BLIND, LEVEL, blind_list
from cdn_tune.moments.baselines import constant_list_top
from cdn_tune.moments.bootstrap import cluster_means, interval
from cdn_tune.moments.metrics import Answers, measure
from cdn_tune.training.evaluate.evaluation import score_batches
from cdn_tune.training.runs.checkpoint import Checkpoint
from cdn_tune.training.runs.files import write_json
from cdn_tune.training.runs.run_folder import locked

SCHEMA = 1
MOST_QUERIES = 2500  # of a larger val split: a model runs six times, and one evaluation of 4 000 queries is the measure

Values = npt.NDArray[np.float64]


def probe_run(
    run: Path,
    overrides: Mapping[str, Any] | None = None,
    request: Request | None = None,
    on_stage: Callable[[str], object] = lambda _: None,
) -> dict[str, Any]:
    """Probes a run's best checkpoint on val and writes ``probe.json``.

    Args:
        run: Folder of a train or search run.
        overrides: As of `evaluate_run`.
        request: Its `checkpoint`, `other_data` and `resamples` count.
        on_stage: Called with the name of each stage as it begins.

    Returns:
        The content of ``probe.json``.

    Raises:
        CdnTuneError: If run, checkpoint or data are at fault.
    """
    request, run = request or Request(), run.absolute()
    choice = choose_models(run, request, overrides or {})
    checkpoint = choice.checkpoint
    experiment = override(checkpoint.experiment.plain(), overrides or {}, str(checkpoint.path))
    with locked(run):
        facts = fingerprint(experiment.data)
        changed = find_changes(run, facts, request.other_data)
        on_stage("opening val")
        val = open_split(experiment.data, "val", experiment.model.inputs.sequences)
        chosen = _some(val, MOST_QUERIES, experiment.seed)
        passes = _passes(checkpoint, experiment, val, chosen, on_stage)
        on_stage("resampling")
        blind = _blind(experiment, val, chosen)
        path = checkpoint.path
        result = {
            "schema": SCHEMA,
            "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "dataset": experiment.data.dataset,
            "planted": to_mark(facts["planted"]) or checkpoint.planted,
            "split": "val",
            "queries": len(chosen),
            "of": len(val),
            "metric": experiment.eval.metric,
            "half": HALF,
            "checkpoint": str(path.relative_to(run)) if path.is_relative_to(run) else str(path),
            "epoch": checkpoint.epoch,
            **_result(experiment, passes, blind, val.videos[chosen], request.resamples),
            "data_changed": changed,
            "damaged_checkpoints": list(choice.damaged),
            "experiment": experiment.plain(),
            "data": facts,
        }
        write_json(run / PROBE, result)
    return result


def _some(dataset: MomentDataset, most: int, seed: int) -> Indices:
    """Returns all queries, or those of videos drawn at random that together have no more than so many."""
    if len(dataset) <= most:
        return np.arange(len(dataset))
    videos = grouped(dataset.videos)
    order = np.random.default_rng(seed).permutation(len(videos))
    ends = np.cumsum([len(videos[video]) for video in order])
    kept = order[: max(1, np.searchsorted(ends, most, side="right"))]
    return np.sort(np.concatenate([videos[video] for video in kept]))


def names_of(experiment: Experiment) -> list[str]:
    """Returns the metrics that are probed: those of the first answer, and the experiment's."""
    settings = experiment.eval
    return [name for name in settings.metrics if find_metric(name).depth == 1 or name == settings.metric]


def _passes(
    checkpoint: Checkpoint,
    experiment: Experiment,
    val: MomentDataset,
    chosen: Indices,
    on_stage: Callable[[str], object],
) -> dict[str, Values]:
    """Returns what each query adds to each metric [Q, M], by probe and, under "", without any; NaN if it counts not."""
    model, device, dtype = ready(checkpoint, experiment)
    settings, names = experiment.eval, names_of(experiment)
    depth = metrics_depth(names)
    batches = evaluation_batches(val, chosen, settings.batch_size)
    sources: dict[str, Source] = {"": val, **{name: Probed(val, name, experiment.seed) for name in PROBES}}
    found = {}
    for name, source in sources.items():
        on_stage(f"probing: {name.replace('_', ' ')}" if name else "answering val")
        tops, truths, places = [], [], []
        for scored in score_batches(model, val, batches, device, dtype, source):
            tops.append(model.suppress(scored.found, depth, *settings.suppression))
            truths.append(scored.batch.all_moments.cpu())
            places.append(scored.indices)
        order = torch.cat(places).argsort()
        truth = torch.cat(truths)[order]
        top, scores = (torch.cat([each.cpu() for each in part])[order] for part in zip(*tops, strict=True))
        answers = Answers(top, truth, val.durations[chosen], scores, settings.closed)
        values = measure(answers, names).values
        values[~truth[:, 0, 0].isfinite().numpy()] = np.nan
        found[name] = values
    return found


def _blind(experiment: Experiment, val: MomentDataset, chosen: Indices) -> Values:
    """Returns what each query adds to each metric [Q, M] by the query-blind list."""
    names, settings = names_of(experiment), experiment.eval
    train = split_annotations(experiment.data, "train").annotations
    durations = val.durations[chosen]
    top = constant_list_top(durations, blind_list(train, settings.ious, metrics_depth(names)))
    return measure(Answers(top, val.moments[chosen], durations, closed=settings.closed), names).values


class _Means(NamedTuple):
    """Means over queries, and of each resample: [1 + R, M], the first row those of the split itself."""

    own: Values
    blind: Values
    probed: Values


def _result(
    experiment: Experiment, passes: Mapping[str, Values], blind: Values, videos: Indices, resamples: int
) -> dict[str, Any]:
    """Returns the numbers of ``probe.json``, given what each query adds to each metric."""
    names, own, seed = names_of(experiment), passes[""], experiment.seed
    columns = [own, blind]
    for name in PROBES:
        counted = np.isfinite(passes[name])
        columns += [np.where(counted, own, np.nan), np.where(counted, blind, np.nan), passes[name]]
    values = np.concatenate(columns, axis=1)
    counting = [column[np.isfinite(column)] for column in values.T]
    whole = np.array([column.mean() if len(column) else np.nan for column in counting])
    means = np.concatenate([whole[None], cluster_means(values, videos, resamples, seed)])
    parts = np.split(means, len(columns), axis=1)
    probes = {
        name: _remains(names, experiment.eval.metric, _Means(*parts[2 + 3 * at : 5 + 3 * at]))
        for at, name in enumerate(PROBES)
    }
    for name, entry in probes.items():
        entry["queries"] = int(np.isfinite(passes[name][:, 0]).sum())
    return {
        "videos": len(np.unique(videos)),
        "metrics": _named(names, parts[0][0]),
        "intervals": _intervals(names, parts[0]),
        "baselines": {BLIND: {"metrics": _named(names, parts[1][0]), "intervals": _intervals(names, parts[1])}},
        "advantage": {
            "over": BLIND,
            "difference": _named(names, (parts[0] - parts[1])[0]),
            "intervals": _intervals(names, parts[0] - parts[1]),
        },
        "probes": probes,
        "bootstrap": {"level": LEVEL, "resamples": resamples, "seed": seed, "clusters": len(np.unique(videos))},
    }


def _remains(names: list[str], metric: str, means: _Means) -> dict[str, Any]:
    """Returns what a probe leaves of each metric, and whether that is more than half of the experiment's."""
    above = means.own - means.blind
    with np.errstate(invalid="ignore", divide="ignore"):
        kept = np.where(above > 0, (means.probed - means.blind) / above, np.nan)
    low = interval(above[1:], LEVEL)[0]
    kept[:, ~(low > 0)] = np.nan  # of nothing, no share is left
    shares, ends = _named(names, kept[0]), _intervals(names, kept)
    return {
        "metrics": {name: value for name, value in _named(names, means.probed[0]).items() if value is not None},
        "intervals": _intervals(names, means.probed),
        "difference": _named(names, (means.probed - means.own)[0]),
        "difference_intervals": _intervals(names, means.probed - means.own),
        "kept": shares,
        "kept_intervals": ends,
        "verdict": _verdict(ends[metric]),
    }


def _verdict(ends: list[float] | None) -> Verdict:
    if ends is None:
        return "none"
    return "kept" if ends[0] >= HALF else "lost" if ends[1] < HALF else "unclear"


def _named(names: list[str], row: Values) -> dict[str, float | None]:
    """Returns numbers by metric; None where there is none."""
    return {name: float(value) if np.isfinite(value) else None for name, value in zip(names, row, strict=True)}


def _intervals(names: list[str], means: Values) -> dict[str, list[float] | None]:
    """Returns intervals by metric, of the resamples' rows; None where there is none."""
    low, high = interval(means[1:], LEVEL)
    return {
        name: [float(first), float(last)] if np.isfinite(first) else None
        for name, first, last in zip(names, low, high, strict=True)
    }
