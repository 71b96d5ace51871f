"""What a checkpoint retrieves on a split, and the NMS threshold by which it does best on val.

Computed in this process or by several workers, with the same numbers.
"""

import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from cdn_tune.config import DataConfig, Experiment, build, recall_name
from cdn_tune.data.annotations import Split
from cdn_tune.data.batches import evaluation_batches
from cdn_tune.data.dataset import MomentDataset, load_split
from cdn_tune.evaluation.score_maps import ScoreMaps, merge_score_maps
from cdn_tune.moments.metrics import Answers, measure
from cdn_tune.training.evaluate.evaluation import score_batches
from cdn_tune.training.runs.checkpoint import load_checkpoint
from cdn_tune.training.step.batch_loss import resolve_precision, use_tf32
from cdn_tune.training.step.process_group import this_world

GRID = tuple(round(0.3 + 0.05 * step, 2) for step in range(11))  # NMS thresholds that are tried, 0.3 to 0.8


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


# Positions in the split, and for each NMS threshold what was retrieved there.
_Part = list[tuple[npt.NDArray[np.int64], list[tuple[npt.NDArray[Any], npt.NDArray[Any]]]]]


@lru_cache(maxsize=3)
def open_split(config: DataConfig, split: Split, sequences: bool = False) -> MomentDataset:
    """Returns an opened split, the same one for every call in this process; raises `DataError` if it cannot be used."""
    return load_split(config, split, sequences)


def retrieve(
    models: Sequence[tuple[Path, Experiment]],
    split: Split,
    thresholds: Sequence[float],
    limit: int,
    workers: Workers,
    maps: Path | None = None,
) -> list[dict[float, Retrieved]]:
    """Retrieves moments for all queries of a split with some checkpoints.

    Work is shared out in whole batches, which are the same whatever the number of workers; so are the results.

    Args:
        models: Checkpoints, reachable from every worker's node, and of each where its data are and how it is evaluated.
        split: The split.
        thresholds: NMS thresholds; the model runs once for all of them.
        limit: Moments per query n.
        workers: Who computes.
        maps: HDF5 file to write the first checkpoint's score maps to.

    Returns:
        For each checkpoint, what is retrieved by NMS threshold.

    Raises:
        CdnTuneError: If a checkpoint, the data or the cluster is at fault.
    """
    inputs: list[tuple[Any, ...]] = []
    beside = None if maps is None else maps.with_name(f".{maps.name}")
    for number, (file, experiment) in enumerate(models):
        for rank in range(workers.count):
            target = None if maps is None or number else f"{beside}.{rank}.{os.getpid()}.tmp"  # as `aside` has it
            inputs.append((str(file), experiment.plain(), split, tuple(thresholds), limit, rank, workers.count, target))
    found: list[_Part] = [[] for _ in models]
    for position, part in workers.run(retrieve_part, inputs):
        found[position // workers.count] += part
    if maps is not None:
        dataset = open_split(models[0][1].data, split, models[0][1].model.inputs.sequences)
        merge_score_maps(maps, [Path(each[-1]) for each in inputs if each[-1]], dataset.annotations, split)
    return [_assemble(part, thresholds) for part in found]


def retrieve_part(
    file: str,
    experiment: dict[str, Any],
    split: Split,
    thresholds: tuple[float, ...],
    limit: int,
    rank: int,
    parts: int,
    maps: str | None = None,
) -> _Part:
    """Retrieves moments for the queries of every `parts`-th batch from `rank`; module-level, so that it pickles."""
    settings = build(Experiment, experiment, file)
    dataset = open_split(settings.data, split, settings.model.inputs.sequences)
    device = this_world().device
    model = load_checkpoint(Path(file)).model.to(device)
    dtype = resolve_precision(settings.train.precision, device)
    use_tf32(settings.train.tf32)
    batches = evaluation_batches(dataset, np.arange(len(dataset)), settings.eval.batch_size)[rank::parts]
    found: _Part = []
    with ExitStack() as stack:
        writer = None if maps is None else stack.enter_context(ScoreMaps(Path(maps)))
        for scored in score_batches(model, dataset, batches, device, dtype):
            answers = []
            for threshold in thresholds:
                top, scores = model.suppress(scored.found, limit, threshold)
                answers.append((top.cpu().numpy(), scores.cpu().numpy()))
            found.append((scored.indices.numpy(), answers))
            shown = None if writer is None else model.pictures(scored.output).score_map
            if writer is not None and shown is not None:
                writer.add(scored.indices, shown.scores, shown.mask)
    return found


def _assemble(part: _Part, thresholds: Sequence[float]) -> dict[float, Retrieved]:
    order = np.concatenate([indices for indices, _ in part]).argsort()
    return {
        threshold: Retrieved(
            torch.from_numpy(np.concatenate([answers[number][0] for _, answers in part])[order]),
            torch.from_numpy(np.concatenate([answers[number][1] for _, answers in part])[order]),
        )
        for number, threshold in enumerate(thresholds)
    }


@dataclass(frozen=True)
class NmsChoice:
    """An NMS threshold and why it was chosen."""

    threshold: float  # IoU above which the lesser of two moments is dropped
    chosen_on: str  # ``val``, or ``the experiment``
    metric: str | None  # by which it was chosen
    tried: dict[float, float]  # value on val of each threshold tried

    def plain(self) -> dict[str, Any]:
        """Returns the choice, ready for JSON."""
        tried = [{"threshold": threshold, "value": value} for threshold, value in self.tried.items()]
        return {"threshold": self.threshold, "chosen_on": self.chosen_on, "metric": self.metric, "tried": tried}


def choose_nms(file: Path, experiment: Experiment, workers: Workers) -> NmsChoice:
    """Chooses the NMS threshold on val, from `GRID` and the experiment's own.

    Suppression never touches the first moment, so R@1 and mIoU are no criterion: it is chosen by the largest n of R@n,
    at the IoU of the experiment's metric (the middle one if it has none). Of equals, the nearest to the experiment's.

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
    val = open_split(experiment.data, "val", experiment.model.inputs.sequences)
    name = recall_name(count, iou)
    tried = {each: measure(found[each].answers(val, settings.closed), [name]).means[name] for each in grid}
    best = max(tried.values())
    near = min((each for each in grid if tried[each] == best), key=lambda each: (abs(each - own), each))
    return NmsChoice(near, "val", name, tried)
