"""Export: a run's best model as a folder that loads anywhere."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from cdn_tune import __version__
from cdn_tune.config import DataConfig, Experiment, override
from cdn_tune.config.yaml import dump
from cdn_tune.data.annotations import SPLITS
from cdn_tune.data.files import sha256
from cdn_tune.data.lexicon import Lexicon, open_lexicon
from cdn_tune.data.splits import split_annotations
from cdn_tune.data.tokenizer import tokenizer_of
from cdn_tune.data.word_table import pieces
from cdn_tune.errors import ConfigError, DataError, RunError
from cdn_tune.evaluation import exported, graph
from cdn_tune.evaluation.loading import choose_checkpoint
from cdn_tune.evaluation.model_card import Facts, model_card
from cdn_tune.evaluation.test_result import chosen_threshold, read_test_result
from cdn_tune.training.runs.checkpoint import Checkpoint
from cdn_tune.training.runs.files import write_errors

GRAPH, ONNX = "model.pt2", "model.onnx"
# Only where the data lie can change: the words are taken from there.
CHANGEABLE = ("data.root", "data.word_vectors")


@dataclass(frozen=True)
class Export:
    """What was written.

    Attributes:
        folder: Where.
        files: Their names, with sizes in bytes.
        words: How many words have vectors in it.
        damaged: What was wrong with better checkpoints of the run.
    """

    folder: Path
    files: Mapping[str, int]
    words: int
    damaged: tuple[str, ...]


def export_run(
    run: Path,
    out: Path,
    overrides: Mapping[str, Any] | None = None,
    *,
    all_words: bool = False,
    torch_export: bool = False,
    onnx: bool = False,
) -> Export:
    """Writes a run's best checkpoint as a folder that `cdn_tune.load` opens anywhere, without the training data.

    The folder is whole or absent: it is written beside `out` and renamed.

    Args:
        run: A run folder, a kept checkpoint's folder, or a checkpoint file.
        out: Folder to write; must not exist, or be empty.
        overrides: Dotted keys that say where the data are now. Only `CHANGEABLE` keys.
        all_words: Take all words of the vectors file, not only those of the dataset's queries (all splits).
        torch_export: Also write the graph, ``model.pt2``, for `torch.export.load`.
        onnx: Also write ``model.onnx``; needs onnx, onnxscript and onnxruntime.

    Raises:
        CdnTuneError: If run, checkpoint, words or `out` are at fault, or a graph does not compute what the model does.
    """
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise RunError(f"{out}: exists and is not empty; choose another --out folder")
    if exported.is_exported(run):
        raise RunError(f"{run}: is an exported folder already; copy it")
    choice = choose_checkpoint(run)
    checkpoint = choice.checkpoint
    if torch_export or onnx:
        graph.check_can_trace(checkpoint.model, onnx)
    lexicon = _words(_where(checkpoint, overrides or {}), all_words)
    threshold = chosen_threshold(checkpoint)
    with _whole(out) as folder, write_errors(out):
        _write(folder, checkpoint, lexicon, threshold)
        if torch_export or onnx:
            data = checkpoint.experiment.data
            program = graph.trace(checkpoint.model, data)
            if torch_export:
                torch.export.save(program, folder / GRAPH)
            if onnx:
                graph.save_onnx(program, folder / ONNX, checkpoint.model, data)
        test, why_not = read_test_result(run, checkpoint)
        facts = Facts(run.resolve().name, checkpoint, test, why_not, len(lexicon.rows), all_words, threshold)
        names = sorted(path.name for path in folder.iterdir())
        (folder / exported.CARD).write_text(model_card(facts, names), encoding="utf-8")
        config = _config(run, checkpoint, test, all_words, len(lexicon.rows))
        config["files"] = {path.name: sha256(path) for path in sorted(folder.iterdir())}
        text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
        (folder / exported.CONFIG).write_text(text, encoding="utf-8")
    sizes = {path.name: path.stat().st_size for path in sorted(out.iterdir())}
    return Export(out, sizes, len(lexicon.rows), choice.damaged)


def _write(folder: Path, checkpoint: Checkpoint, lexicon: Lexicon, threshold: float | None) -> None:
    weights = {name: value.detach().cpu().clone() for name, value in checkpoint.model.state_dict().items()}
    about = {"format": exported.FORMAT, "cdn_tune": __version__}
    save_file({name: value.contiguous() for name, value in weights.items()}, folder / exported.WEIGHTS, about)
    save_file({"vectors": lexicon.vectors.contiguous()}, folder / exported.WORD_VECTORS, about)
    (folder / exported.WORDS).write_text(json.dumps(list(lexicon.rows), ensure_ascii=False), encoding="utf-8")
    experiment = _without_paths(checkpoint.experiment)
    if threshold is not None:
        experiment["eval"]["nms_threshold"] = threshold
    (folder / exported.EXPERIMENT).write_text(dump(experiment), encoding="utf-8")


def _config(
    run: Path, checkpoint: Checkpoint, test: Mapping[str, Any] | None, all_words: bool, words: int
) -> dict[str, Any]:
    base = run if run.is_dir() else run.parent
    return {
        "format": exported.FORMAT,
        "version": exported.VERSION,
        "cdn_tune": __version__,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "source": {"run": run.resolve().name, "checkpoint": str(checkpoint.path.relative_to(base))},
        "dataset": checkpoint.experiment.data.dataset,
        "planted": checkpoint.planted,
        "epoch": checkpoint.epoch,
        "val": checkpoint.val,
        "test": test,
        "words": {"of": "the whole file" if all_words else "the dataset's queries", "count": words},
    }


def _where(checkpoint: Checkpoint, overrides: Mapping[str, Any]) -> DataConfig:
    for key, value in overrides.items():
        if key not in CHANGEABLE:
            raise ConfigError(f"override {key}={value}: an export can only be told {' and '.join(CHANGEABLE)}")
    return override(checkpoint.experiment.plain(), overrides, str(checkpoint.path)).data


def _words(config: DataConfig, all_words: bool) -> Lexicon:
    """Returns the words to carry: of all queries of the dataset, or all that there are."""
    whole = open_lexicon(config)
    if all_words:
        chosen = list(whole.rows)
    else:
        try:
            queries = {item.query for split in SPLITS for item in split_annotations(config, split).annotations}
        except DataError as error:
            raise DataError(f"{error}; or export the whole vectors file with --all-words") from None
        tokenize = tokenizer_of(config.tokenizer)
        tokens = {token for query in queries for token in tokenize(query)}
        if config.unknown_words == "subword":  # their pieces, so that they are put together as in training
            tokens |= {part for token in tokens if token not in whole.rows for part in pieces(token, whole.rows)}
        chosen = sorted(token for token in tokens if token in whole.rows)
        if not chosen:
            raise DataError(f"{whole.source}: has none of the words of the dataset's queries; name the right file")
    vectors = whole.vectors[torch.tensor([whole.rows[word] for word in chosen])].to(torch.float32)
    rows = {word: row for row, word in enumerate(chosen)}
    return Lexicon(whole.source, config.tokenizer, config.unknown_words, rows, vectors)


def _without_paths(experiment: Experiment) -> dict[str, Any]:
    """Returns the experiment without the folders of the machine it was trained on."""
    plain = experiment.plain()
    for key in ("root", "features", "word_vectors"):
        if plain["data"][key] is not None:
            plain["data"][key] = plain["data"][key].replace("\\", "/").rstrip("/").rpartition("/")[2] or "data"
    return plain


@contextmanager
def _whole(out: Path) -> Iterator[Path]:
    """Yields a new folder that becomes `out` at the end, or goes."""
    partial = out.with_name(f".{out.name}.{os.getpid()}.partial")
    try:
        with write_errors(out):
            out.parent.mkdir(parents=True, exist_ok=True)
            partial.mkdir()
        yield partial
        with write_errors(out):
            partial.replace(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
