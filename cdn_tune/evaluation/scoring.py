"""What a checkpoint retrieves on a split, and the suppression by which it does best on val.

Computed in this process or by several workers, with the same numbers.
"""

import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from cdn_tune.config import DataConfig, Experiment, Nms, build, recall_name
from cdn_tune.config.tables import metrics_depth
from cdn_tune.data.annotations import Annotation, Split
from cdn_tune.data.batches import evaluation_batches
from cdn_tune.data.dataset import MomentDataset, load_split
from cdn_tune.evaluation.score_maps import ScoreMaps, merge_score_maps
from cdn_tune.model.family import MomentModel
from cdn_tune.moments.metrics import Answers, measure
from cdn_tune.training.evaluate.evaluation import score_batches
from cdn_tune.training.kernels.choose import use_held
from cdn_tune.training.runs.checkpoint import Checkpoint, load_checkpoint
from cdn_tune.training.step.batch_loss import resolve_precision, use_tf32
from cdn_tune.training.step.process_group import this_world

GRID = tuple(round(0.3 + 0.05 * step, 2) for step in range(11))  # NMS thresholds that are tried, 0.3 to 0.8
SIGMAS = (0.1, 0.3, 0.5, 0.7, 0.9)  # of soft NMS
VOTING = (0.0, 0.8, 0.95)  # IoU from which candidates move an answer


@dataclass(frozen=True)
class Workers:
    """Who computes.

    Attributes:
        count: Ray tasks at a time; 1 without an address: this process, without Ray.
        address: Ray cluster to join; None starts Ray on this machine.
    """

    count: int = 1
    address: str | None = None

    def run(self, task: Callable[..., Any], inputs: Sequence[tuple[Any, ...]]) -> Iterable[tuple[int, Any]]:
        """Yields the position of an input and what the task returns for it, as each is done."""
        if not inputs or (self.count == 1 and self.address is None):
            return ((position, task(*each)) for position, each in enumerate(inputs))
        from cdn_tune.distributed.launch import run_tasks

        return run_tasks(task, inputs, self.count, self.address)


class Retrieved(NamedTuple):
    """Moments retrieved for each of Q queries: ranked, in seconds, NaN-padded, with their scores in [0, 1]."""

    top: torch.Tensor  # float64 [Q, n, 2]
    scores: torch.Tensor  # [Q, n]

    def answers(self, dataset: MomentDataset, closed: bool = False) -> Answers:
        """Returns them beside the truth of the split, to be measured; `closed` is `eval.closed`."""
        return Answers(self.top, dataset.moments, dataset.durations, self.scores, closed)


# Positions in the split, and for each way of suppression what was retrieved there.
_Part = list[tuple[npt.NDArray[np.int64], list[tuple[npt.NDArray[Any], npt.NDArray[Any]]]]]


@lru_cache(maxsize=3)
def open_split(config: DataConfig, split: Split, sequences: bool = False) -> MomentDataset:
    """Returns an opened split, the same one for every call in this process; raises `DataError` if it cannot be used."""
    return load_split(config, split, sequences)


def retrieve(
    models: Sequence[tuple[Path, Experiment]],
    split: Split,
    ways: Sequence[Nms],
    limit: int,
    workers: Workers,
    maps: Path | None = None,
    asking: Sequence[Annotation] | None = None,
) -> list[dict[Nms, Retrieved]]:
    """Retrieves moments for all queries of a split with some checkpoints.

    Work is shared out in whole batches, which are the same whatever the number of workers; so are the results.

    Args:
        models: Checkpoints, reachable from every worker's node, and of each where its data are and how it is evaluated.
        split: The split.
        ways: How overlapping moments are suppressed; the model runs once for all of them.
        limit: Moments per query n.
        workers: Who computes.
        maps: HDF5 file to write the first checkpoint's score maps to.
        asking: Other queries about the split's videos instead of its own (`MomentDataset.asking`).

    Returns:
        For each checkpoint, what is retrieved by way of suppression.

    Raises:
        CdnTuneError: If a checkpoint, the data or the cluster is at fault.
    """
    inputs: list[tuple[Any, ...]] = []
    beside = None if maps is None else maps.with_name(f".{maps.name}")
    for number, (file, experiment) in enumerate(models):
        for rank in range(workers.count):
            target = None if maps is None or number else f"{beside}.{rank}.{os.getpid()}.tmp"  # as `aside` has it
            inputs.append(
                (str(file), experiment.plain(), split, tuple(ways), limit, rank, workers.count, target, asking)
            )
    found: list[_Part] = [[] for _ in models]
    for position, part in workers.run(retrieve_part, inputs):
        found[position // workers.count] += part
    if maps is not None:
        dataset = open_split(models[0][1].data, split, models[0][1].model.inputs.sequences)
        merge_score_maps(maps, [Path(each[7]) for each in inputs if each[7]], dataset.annotations, split)
    return [_assemble(part, ways) for part in found]


def retrieve_part(
    file: str,
    experiment: dict[str, Any],
    split: Split,
    ways: tuple[Nms, ...],
    limit: int,
    rank: int,
    parts: int,
    maps: str | None = None,
    asking: Sequence[Annotation] | None = None,
) -> _Part:
    """Retrieves moments for the queries of every `parts`-th batch from `rank`; module-level, so that it pickles."""
    settings = build(Experiment, experiment, file)
    dataset = open_split(settings.data, split, settings.model.inputs.sequences)
    dataset = dataset if asking is None else dataset.asking(asking)
    model, device, dtype = ready(load_checkpoint(Path(file)), settings)
    batches = evaluation_batches(dataset, np.arange(len(dataset)), settings.eval.batch_size)[rank::parts]
    found: _Part = []
    with ExitStack() as stack:
        writer = None if maps is None else stack.enter_context(ScoreMaps(Path(maps)))
        for scored in score_batches(model, dataset, batches, device, dtype):
            answers = []
            for nms in ways:
                top, scores = model.suppress(scored.found, limit, *nms)
                answers.append((top.cpu().numpy(), scores.cpu().numpy()))
            found.append((scored.indices.numpy(), answers))
            shown = None if writer is None else model.pictures(scored.output).score_map
            if writer is not None and shown is not None:
                writer.add(scored.indices, shown.scores, shown.mask)
    return found


def ready(checkpoint: Checkpoint, settings: Experiment) -> tuple[MomentModel, torch.device, torch.dtype]:
    """Returns a checkpoint's model on this process's device, which, and the format in which it computes there."""
    device = this_world().device
    model = checkpoint.model.to(device)
    dtype = resolve_precision(settings.train.precision, device)
    use_tf32(settings.train.tf32)
    use_held(model, checkpoint.kernels, dtype, device)
    return model, device, dtype


def _assemble(part: _Part, ways: Sequence[Nms]) -> dict[Nms, Retrieved]:
    order = np.concatenate([indices for indices, _ in part]).argsort()
    return {
        nms: Retrieved(
            torch.from_numpy(np.concatenate([answers[number][0] for _, answers in part])[order]),
            torch.from_numpy(np.concatenate([answers[number][1] for _, answers in part])[order]),
        )
        for number, nms in enumerate(ways)
    }


@dataclass(frozen=True)
class NmsChoice:
    """How overlapping moments are suppressed, and why it was chosen."""

    nms: Nms
    chosen_on: str  # ``val``, or ``the experiment``
    metric: str | None  # by which it was chosen
    tried: dict[Nms, float]  # value on val of each way tried

    def plain(self) -> dict[str, Any]:
        """Returns the choice, ready for JSON."""
        tried = [{**nms._asdict(), "value": value} for nms, value in self.tried.items()]
        return {**self.nms._asdict(), "chosen_on": self.chosen_on, "metric": self.metric, "tried": tried}


def choose_nms(file: Path, experiment: Experiment, own: Nms, kinds: bool, workers: Workers) -> NmsChoice:
    """Chooses on val how overlapping moments are suppressed: the threshold (soft: sigma), or all of it.

    Suppression never touches the first moment, so R@1 and mIoU are no criterion: it is chosen by the largest n of R@n,
    at the IoU of the experiment's metric (the middle one if it has none). Voting moves the first one too; of all there
    is, no choice lowers the experiment's metric. Of equals, the nearest to the experiment's.

    Args:
        file: The checkpoint.
        experiment: Where its data are and how it is evaluated.
        own: How the experiment suppresses, complete.
        kinds: Whether hard or soft and voting are chosen too.
        workers: Who computes.

    Raises:
        CdnTuneError: If the checkpoint, the data or the cluster is at fault.
    """
    settings = experiment.eval
    _, _, text = settings.metric.partition("@")
    iou = float(text) if text else settings.ious[len(settings.ious) // 2]
    count = max(settings.recalls)
    name = recall_name(count, iou)
    ways = _ways(own, kinds)
    limit = max(count, metrics_depth([settings.metric])) if kinds else count
    (found,) = retrieve([(file, experiment)], "val", ways, limit, workers)
    val = open_split(experiment.data, "val", experiment.model.inputs.sequences)
    values = {
        nms: measure(found[nms].answers(val, settings.closed), [name, settings.metric] if kinds else [name]).means
        for nms in ways
    }
    least = values[own].get(settings.metric, 0.0)
    tried = {nms: means[name] for nms, means in values.items()}
    able = [nms for nms in ways if not kinds or values[nms][settings.metric] >= least]
    best = max(tried[nms] for nms in able)
    near = min((nms for nms in able if tried[nms] == best), key=lambda nms: _distance(nms, own))
    return NmsChoice(near, "val", name, tried)


def _ways(own: Nms, kinds: bool) -> list[Nms]:
    """Returns the ways that are tried: the experiment's own, and those that differ in its parameter, or in all."""
    voting = sorted({own.voting or 0.0, *VOTING}) if kinds else [own.voting]
    hard = [own._replace(kind="hard", threshold=each) for each in sorted({*GRID, own.threshold})]
    soft = [own._replace(kind="soft", sigma=each) for each in sorted({*SIGMAS, own.sigma or SIGMAS[-1]})]
    either = [*hard, *soft] if kinds else hard if own.kind == "hard" else soft
    return [nms._replace(voting=votes) for nms, votes in product(either, voting)]


def _distance(nms: Nms, own: Nms) -> tuple[float, ...]:
    """Returns what is least for the way nearest to the experiment's own."""
    apart = [abs((mine or 0.0) - (theirs or 0.0)) for mine, theirs in zip(nms[2:], own[2:], strict=True)]
    return (nms.kind != own.kind, abs(nms.threshold - own.threshold), *apart, nms.threshold)
