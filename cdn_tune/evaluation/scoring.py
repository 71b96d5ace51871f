"""What a checkpoint retrieves on a split: computed here or by several workers, with the same numbers."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from cdn_tune.config import DataConfig, Experiment, build
from cdn_tune.data.annotations import Split
from cdn_tune.data.batches import sequential_batches
from cdn_tune.data.dataset import MomentDataset, load_split
from cdn_tune.evaluation.score_maps import ScoreMaps, merge_score_maps
from cdn_tune.moments.metrics import Answers
from cdn_tune.training.evaluate.scores import score_batches
from cdn_tune.training.runs.checkpoint import load_checkpoint
from cdn_tune.training.step.precision import resolve_precision, use_tf32
from cdn_tune.training.step.process_group import this_world


@dataclass(frozen=True)
class Workers:
    """Who computes.

    Attributes:
        count: Ray tasks at a time; 1: this process, without Ray.
        address: Ray cluster to join; None starts Ray on this machine.
    """

    count: int = 1
    address: str | None = None

    @property
    def here(self) -> bool:
        """Whether this process computes alone."""
        return self.count == 1 and self.address is None


class Retrieved(NamedTuple):
    """What is retrieved for each of Q queries.

    Attributes:
        top: Ranked moments in seconds, NaN-padded, float64 [Q, n, 2].
        scores: Their scores in [0, 1], [Q, n].
    """

    top: torch.Tensor
    scores: torch.Tensor

    def answers(self, dataset: MomentDataset) -> Answers:
        """Returns them beside the truth, to be measured.

        Args:
            dataset: The split.
        """
        return Answers(self.top, dataset.moments, dataset.durations, self.scores)


# Positions in the split, and for each NMS threshold what was retrieved there.
_Part = list[tuple[npt.NDArray[np.int64], list[tuple[npt.NDArray[Any], npt.NDArray[Any]]]]]


@lru_cache(maxsize=3)
def open_split(config: DataConfig, split: Split) -> MomentDataset:
    """Opens a split; who asks again in this process gets the same one.

    Raises:
        DataError: If the data cannot be used.
    """
    return load_split(config, split)


def retrieve(
    models: Sequence[tuple[Path, Experiment]],
    split: Split,
    thresholds: Sequence[float],
    limit: int,
    workers: Workers | None = None,
    maps: Path | None = None,
) -> list[dict[float, Retrieved]]:
    """Retrieves moments for all queries of a split with some checkpoints.

    Work is shared out in whole batches, which are the same whatever the number of workers; so are the results.

    Args:
        models: Checkpoints, reachable from every worker's node, and of each where its data are and how it is evaluated.
        split: The split.
        thresholds: NMS thresholds; the model runs once for all of them.
        limit: Moments per query n.
        workers: Who computes; this process if None.
        maps: HDF5 file to write the first checkpoint's score maps to.

    Returns:
        For each checkpoint, what is retrieved at each NMS threshold.

    Raises:
        CdnTuneError: If a checkpoint, the data or the cluster is at fault.
    """
    workers = workers or Workers()
    parts = 1 if workers.here else workers.count
    inputs: list[tuple[Any, ...]] = []
    for number, (file, experiment) in enumerate(models):
        for rank in range(parts):
            target = None if maps is None or number else str(maps.with_name(f".{maps.name}.{rank}"))
            inputs.append((str(file), experiment.plain(), split, tuple(thresholds), limit, rank, parts, target))
    found: list[_Part] = [[] for _ in models]
    if workers.here:
        found = [retrieve_part(*each) for each in inputs]
    else:
        from cdn_tune.distributed.launch import run_tasks

        for position, part in run_tasks(retrieve_part, inputs, workers.count, workers.address):
            found[position // parts] += part
    if maps is not None:
        dataset = open_split(models[0][1].data, split)
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
    dataset = open_split(settings.data, split)
    device = this_world().device
    model = load_checkpoint(Path(file)).model.to(device)
    dtype = resolve_precision(settings.train.precision, device)
    use_tf32(settings.train.tf32)
    batches = sequential_batches(len(dataset), settings.eval.batch_size)[rank::parts]
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
