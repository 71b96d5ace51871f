"""From a path to a retriever: a run, a kept checkpoint, a checkpoint file, or an exported folder."""

from __future__ import annotations

import logging
from pathlib import Path

import torch

from cdn_tune.data.lexicon import open_lexicon
from cdn_tune.errors import RunError
from cdn_tune.evaluation.choose_checkpoint import Choice, choose_best
from cdn_tune.evaluation.exported import CONFIG, is_exported, read_exported
from cdn_tune.evaluation.retriever import Retriever
from cdn_tune.evaluation.test_result import chosen_threshold
from cdn_tune.training.object_store.sync import fetched, fetched_file
from cdn_tune.training.object_store.working_copy import url_of
from cdn_tune.training.runs.checkpoint import BEST, load_checkpoint
from cdn_tune.training.runs.run_folder import MANIFEST

KEPT_CHECKPOINT = "checkpoint.pt"
_LOG = logging.getLogger(__name__)


def load(
    path: str | Path,
    *,
    word_vectors: str | Path | None = None,
    device: torch.device | str | None = None,
    nms_threshold: float | None = None,
) -> Retriever:
    """Loads a trained model to retrieve moments with; no code in any file is run.

    Args:
        path: A run folder of `train` or `search` (its best checkpoint on val), a kept checkpoint's folder such as
            ``RUN/best/trial-0003``, a checkpoint file, a folder written by `cdn-tune export`, or the URL of one of
            these on an object store.
        word_vectors: Where the word vectors are now, if no longer where the experiment says. An exported folder holds
            its own; naming others replaces them.
        device: Where to compute; a GPU if there is one and None is given.
        nms_threshold: A moment that overlaps a better one by more than this IoU is dropped. If None, what the run's
            last evaluation chose on val for this checkpoint (``evaluate --choose-nms``; an exported folder carries
            it), else the experiment's `eval.nms_threshold`.

    Raises:
        CdnTuneError: If there is no model, it is damaged, or its word vectors cannot be found; one line.
    """
    path = Path(path).expanduser() if url_of(path) is None else brought(path)
    vectors = None if word_vectors is None else Path(word_vectors).expanduser()
    if is_exported(path):
        checkpoint, lexicon = read_exported(path)
        if vectors is not None:
            lexicon = open_lexicon(checkpoint.experiment.data, vectors)
    else:
        choice = choose_checkpoint(path)
        for line in choice.damaged:
            _LOG.warning("%s", line)
        checkpoint = choice.checkpoint
        lexicon = open_lexicon(checkpoint.experiment.data, vectors)
        if nms_threshold is None:
            nms_threshold = chosen_threshold(checkpoint)
    return Retriever(
        checkpoint.model, checkpoint.experiment, lexicon, checkpoint.planted, checkpoint.path, device, nms_threshold
    )


def brought(url: str | Path) -> Path:
    """Fetches a run, a kept checkpoint's folder, an exported folder or a checkpoint file from an object store.

    Raises:
        CdnTuneError: If it is a wrong URL, the store cannot be reached, or there is nothing.
    """
    folder = fetched(url, models=True)
    if folder.is_dir() and any(folder.iterdir()):
        return folder
    return fetched_file(url)


def choose_checkpoint(path: Path) -> Choice:
    """Returns the checkpoint that a path means, and what was wrong with those that would have come before it.

    Args:
        path: A run folder, a kept checkpoint's folder, or a checkpoint file.

    Raises:
        RunError: If it is none of these, or has no checkpoint yet.
        CheckpointError: If its checkpoints are damaged.
    """
    if path.is_file():
        return Choice(load_checkpoint(path), ())
    if not path.is_dir():
        raise RunError(f"{path}: no such run, checkpoint or exported folder")
    if not (path / MANIFEST).exists():
        for name in (KEPT_CHECKPOINT, BEST):
            if (path / name).is_file():
                return Choice(load_checkpoint(path / name), ())
        raise RunError(
            f"{path}: is no run folder ({MANIFEST}), kept checkpoint ({KEPT_CHECKPOINT}) or exported folder ({CONFIG})"
            "; name one of these"
        )
    return choose_best(path)
