"""The exported folder: a model and its words in plain files, which loads anywhere without the data it was trained on.

Weights and word vectors are safetensors, the rest is JSON, YAML and text: opening it never runs code.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import load_file

from cdn_tune.config import Experiment, build
from cdn_tune.config.yaml import read_mapping
from cdn_tune.data.files import sha256
from cdn_tune.data.lexicon import Lexicon
from cdn_tune.errors import CdnTuneError, CheckpointError
from cdn_tune.training.runs.checkpoint import Checkpoint, build_model, load_weights

FORMAT, VERSION = "cdn-tune export", 1
CONFIG, EXPERIMENT, WEIGHTS = "config.json", "experiment.yaml", "model.safetensors"
WORDS, WORD_VECTORS, CARD = "words.json", "word_vectors.safetensors", "README.md"
NEEDED = (EXPERIMENT, WEIGHTS, WORDS, WORD_VECTORS)
_AGAIN = "copy the folder again, or export the run again"


def is_exported(path: Path) -> bool:
    """Returns whether a path is a folder that `export` wrote, or what is left of one."""
    return path.is_dir() and ((path / CONFIG).exists() or (path / WEIGHTS).exists())


def read_exported(folder: Path) -> tuple[Checkpoint, Lexicon]:
    """Rebuilds model and words from an exported folder alone.

    Raises:
        CheckpointError: If a file is missing, damaged, or not of this format; names it.
    """
    config = _read_config(folder)
    for name in NEEDED:
        if not (folder / name).is_file():
            raise CheckpointError(f"{folder / name}: is missing, the exported folder is incomplete; {_AGAIN}")
        if sha256(folder / name) != config["files"].get(name):
            raise CheckpointError(f"{folder / name}: damaged (it does not match its digest in {CONFIG}); {_AGAIN}")
    try:
        experiment = build(Experiment, read_mapping(folder / EXPERIMENT), str(folder / EXPERIMENT))
        model = build_model(experiment)
        load_weights(model, load_file(folder / WEIGHTS), folder / WEIGHTS)
        words = json.loads((folder / WORDS).read_text(encoding="utf-8"))
        vectors = load_file(folder / WORD_VECTORS)["vectors"]
    except CdnTuneError as error:
        raise CheckpointError(str(error)) from None
    except (OSError, ValueError, KeyError, safetensors.SafetensorError) as error:
        raise CheckpointError(f"{folder}: cannot be read ({_brief(error)}); {_AGAIN}") from None
    shape = (len(words), experiment.data.word_size) if isinstance(words, list) else None
    if shape is None or vectors.shape != shape or vectors.dtype != torch.float32:
        raise CheckpointError(f"{folder / WORD_VECTORS}: does not fit {WORDS} and {EXPERIMENT}; {_AGAIN}")
    rows = {word: row for row, word in enumerate(words)}
    data = experiment.data
    lexicon = Lexicon(str(folder / WORDS), data.tokenizer, data.unknown_words, rows, vectors)
    val = {str(name): float(value) for name, value in config["val"].items()}
    epoch, planted = int(config["epoch"]), bool(config["planted"])
    return Checkpoint(folder / WEIGHTS, experiment, model.eval(), epoch, val, planted), lexicon


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path}: is missing, the exported folder is incomplete; {_AGAIN}") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: damaged ({_brief(error)}); {_AGAIN}") from None
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        raise CheckpointError(f"{path}: is not of a folder that cdn-tune exported; name one, or a run folder")
    if config.get("version") != VERSION:
        raise CheckpointError(f"{path}: export version {config.get('version')!r}, but this cdn-tune reads {VERSION}")
    kinds = {"files": dict, "val": dict, "epoch": int, "planted": bool}
    if wrong := [name for name, kind in kinds.items() if not isinstance(config.get(name), kind)]:
        raise CheckpointError(f"{path}: damaged ({', '.join(wrong)} missing or of another type); {_AGAIN}")
    return config


def _brief(error: Exception) -> str:
    return " ".join(str(error).split())[:160]
