"""The exported folder: a run's best model and its words in plain files, which load anywhere without the training data.

Weights and word vectors are safetensors, the rest is JSON, YAML and text: opening it never runs code. For a model that
reads token features there are no words: the folder names the language model that is to compute them.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import load_file, save_file

from cdn_tune import __version__
from cdn_tune.config import DataConfig, Experiment, Nms, build, override
from cdn_tune.config.yaml import dump, read_mapping
from cdn_tune.data.annotations import SPLITS
from cdn_tune.data.files import aside, brief, read_json, sha256
from cdn_tune.data.layouts import tokens_path
from cdn_tune.data.lexicon import Lexicon, open_lexicon
from cdn_tune.data.splits import split_annotations
from cdn_tune.data.tokenizer import tokenizer_of
from cdn_tune.data.tokens import LanguageModel, TokenFeatures
from cdn_tune.data.vectors import pieces
from cdn_tune.errors import CdnTuneError, CheckpointError, ConfigError, DataError, RunError
from cdn_tune.evaluation import graph
from cdn_tune.evaluation.choose_checkpoint import choose_checkpoint
from cdn_tune.evaluation.model_card import Facts, model_card
from cdn_tune.evaluation.test_result import chosen_nms, probe_of, read_test_result
from cdn_tune.training.runs.checkpoint import ENTRIES, Checkpoint, build_model, load_weights
from cdn_tune.training.runs.files import write_errors

FORMAT, VERSION = "cdn-tune export", 1
CONFIG, EXPERIMENT, WEIGHTS = "config.json", "experiment.yaml", "model.safetensors"
WORDS, WORD_VECTORS, CARD = "words.json", "word_vectors.safetensors", "README.md"
GRAPH, ONNX = "model.pt2", "model.onnx"
NEEDED = (EXPERIMENT, WEIGHTS, WORDS, WORD_VECTORS)
TEXT_MODEL = "text_model"  # key of `CONFIG`, in place of the files of words
# What its files raise that hold something else than they should, a model of more weights than fit among it.
_UNREADABLE: tuple[type[Exception], ...] = (OSError, ValueError, LookupError, RuntimeError, TypeError)
_UNREADABLE += (ArithmeticError, MemoryError, safetensors.SafetensorError)
_LONGEST_NAME = 200  # characters of a language model's name
_WORDS_OF = {True: "the whole file", False: "the dataset's queries"}
_AGAIN = "copy the folder again, or export the run again"
# Only where the data lie can change: the words are taken from there.
CHANGEABLE = ("data.root", "data.word_vectors", "data.tokens")


@dataclass(frozen=True)
class Export:
    """What was written."""

    folder: Path
    files: Mapping[str, int]  # sizes in bytes by name
    words: int  # that have vectors in it
    text_model: str | None  # the language model that it needs
    damaged: tuple[str, ...]  # what was wrong with better checkpoints of the run


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
        all_words: Take all words of the vectors file, not only those of the dataset's queries (all splits); without
            meaning for a model that reads token features.
        torch_export: Also write the graph, ``model.pt2``, for `torch.export.load`.
        onnx: Also write ``model.onnx``; needs onnx, onnxscript and onnxruntime.

    Raises:
        CdnTuneError: If run, checkpoint, words or `out` are at fault, or a graph does not compute what the model does.
    """
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise RunError(f"{out}: exists and is not empty; choose another --out folder")
    if is_exported(run):
        raise RunError(f"{run}: is an exported folder already; copy it")
    choice = choose_checkpoint(run)
    checkpoint = choice.checkpoint
    if torch_export or onnx:
        graph.check_can_trace(checkpoint.model, onnx)
    for key, value in (overrides or {}).items():
        if key not in CHANGEABLE:
            raise ConfigError(f"override {key}={value}: an export can only be told {', '.join(CHANGEABLE)}")
    data = override(checkpoint.experiment.plain(), overrides or {}, str(checkpoint.path)).data
    text = _words(data, all_words) if data.text == "words" else TokenFeatures(tokens_path(data), data.word_size).model
    nms = chosen_nms(checkpoint)
    with _whole(out) as folder, write_errors(out):
        about = {"format": FORMAT, "cdn_tune": __version__}
        weights = {name: value.detach().cpu().clone() for name, value in checkpoint.model.state_dict().items()}
        _save({name: value.contiguous() for name, value in weights.items()}, folder / WEIGHTS, about)
        if isinstance(text, Lexicon):
            _save({"vectors": text.vectors.contiguous()}, folder / WORD_VECTORS, about)
            (folder / WORDS).write_text(json.dumps(list(text.rows), ensure_ascii=False), encoding="utf-8")
            count, name = len(text.rows), None
            read: dict[str, Any] = {"words": {"of": _WORDS_OF[all_words], "count": count}}
        else:
            count, name, read = 0, text.name, {TEXT_MODEL: text._asdict()}
        (folder / EXPERIMENT).write_text(dump(_plain(checkpoint.experiment, nms)), encoding="utf-8")
        if torch_export or onnx:
            data = checkpoint.experiment.data
            program = graph.trace(checkpoint.model, data)
            if torch_export:
                torch.export.save(program, folder / GRAPH)
            if onnx:
                graph.save_onnx(program, folder / ONNX, checkpoint.model, data)
        test, why_not = read_test_result(run, checkpoint)
        facts = Facts(
            run.resolve().name, checkpoint, test, why_not, count, all_words, nms, probe_of(run, checkpoint), name
        )
        names = sorted(path.name for path in folder.iterdir())
        (folder / CARD).write_text(model_card(facts, names), encoding="utf-8")
        base = run if run.is_dir() else run.parent
        config = {
            "format": FORMAT,
            "version": VERSION,
            "cdn_tune": __version__,
            "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "source": {"run": run.resolve().name, "checkpoint": str(checkpoint.path.relative_to(base))},
            "dataset": checkpoint.experiment.data.dataset,
            "planted": checkpoint.planted,
            "epoch": checkpoint.epoch,
            "val": checkpoint.val,
            "test": test,
            **read,
            "files": {path.name: sha256(path) for path in sorted(folder.iterdir())},
        }
        (folder / CONFIG).write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    sizes = {path.name: path.stat().st_size for path in sorted(out.iterdir())}
    return Export(out, sizes, count, name, choice.damaged)


def _save(tensors: dict[str, torch.Tensor], path: Path, about: dict[str, str]) -> None:
    """Writes tensors; raises OSError if that fails, as all other writing does."""
    try:
        save_file(tensors, path, about)
    except safetensors.SafetensorError as error:
        raise OSError(brief(error)) from error


def _words(config: DataConfig, all_words: bool) -> Lexicon:
    """Returns the words to carry: of all queries of the dataset, or all that there are."""
    whole = open_lexicon(config)
    if all_words:
        chosen = list(whole.rows)
    else:
        try:
            queries = {item.query for split in SPLITS for item in split_annotations(config, split).queries}
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


def _plain(experiment: Experiment, nms: Nms | None) -> dict[str, Any]:
    """Returns the experiment without the folders of the machine it was trained on, suppressing as was chosen on val."""
    plain = experiment.plain()
    for key in ("root", "features", "word_vectors", "tokens"):
        if plain["data"][key] is not None:
            plain["data"][key] = plain["data"][key].replace("\\", "/").rstrip("/").rpartition("/")[2] or "data"
    if nms is not None:
        plain["eval"] = experiment.eval.with_suppression(nms).plain()
    return plain


@contextmanager
def _whole(out: Path) -> Iterator[Path]:
    """Yields a new folder that becomes `out` at the end, or goes."""
    with write_errors(out):
        out.parent.mkdir(parents=True, exist_ok=True)
    with aside(out) as partial:
        with write_errors(out):
            partial.mkdir()
        yield partial
        with write_errors(out):
            partial.replace(out)


def is_exported(path: Path) -> bool:
    """Returns whether a path is a folder that `export` wrote, or what is left of one."""
    return path.is_dir() and ((path / CONFIG).exists() or (path / WEIGHTS).exists())


def read_exported(folder: Path) -> tuple[Checkpoint, Lexicon | LanguageModel]:
    """Rebuilds the model, and its words or what names its language model, from an exported folder alone.

    Raises:
        CheckpointError: If a file is missing, damaged, or not of this format; names it.
    """
    config = _read_config(folder)
    for name in NEEDED[:2] if TEXT_MODEL in config else NEEDED:
        if not (folder / name).is_file():
            raise CheckpointError(f"{folder / name}: is missing, the exported folder is incomplete; {_AGAIN}")
        if sha256(folder / name) != config["files"].get(name):
            raise CheckpointError(f"{folder / name}: damaged (it does not match its digest in {CONFIG}); {_AGAIN}")
    try:
        experiment = build(Experiment, read_mapping(folder / EXPERIMENT), str(folder / EXPERIMENT))
        model = build_model(experiment)
        load_weights(model, load_file(folder / WEIGHTS), folder / WEIGHTS)
        if (TEXT_MODEL in config) != (experiment.data.text == "tokens"):
            raise CheckpointError(f"{folder / CONFIG}: does not fit {EXPERIMENT} (data.text); {_AGAIN}")
        text = LanguageModel(**config[TEXT_MODEL]) if TEXT_MODEL in config else _read_words(folder, experiment.data)
    except CdnTuneError as error:
        raise CheckpointError(str(error)) from None
    except _UNREADABLE as error:
        raise CheckpointError(f"{folder}: cannot be read ({brief(error)}); {_AGAIN}") from None
    facts = [config[name] for name in ("epoch", "val", "planted")]
    return Checkpoint(folder / WEIGHTS, experiment, model.eval(), *facts), text


def _read_words(folder: Path, data: DataConfig) -> Lexicon:
    """Returns the words of an exported folder."""
    words, vectors = read_json(folder / WORDS), load_file(folder / WORD_VECTORS)["vectors"]
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise CheckpointError(f"{folder / WORDS}: is no list of words; {_AGAIN}")
    shape = (len(words), data.word_size) if len({*words}) == len(words) else None
    if shape is None or vectors.shape != shape or vectors.dtype != torch.float32 or not vectors.isfinite().all():
        raise CheckpointError(f"{folder / WORD_VECTORS}: does not fit {WORDS} and {EXPERIMENT}; {_AGAIN}")
    rows = {word: row for row, word in enumerate(words)}
    return Lexicon(str(folder / WORDS), data.tokenizer, data.unknown_words, rows, vectors)


def _is_language_model(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and value.keys() == set(LanguageModel._fields)
        and all(isinstance(value[key], str) and len(value[key]) <= _LONGEST_NAME for key in ("name", "digest"))
        and isinstance(value["size"], int)
    )


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG
    try:
        config = read_json(path)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: is missing, the exported folder is incomplete; {_AGAIN}") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: damaged ({brief(error)}); {_AGAIN}") from None
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        raise CheckpointError(f"{path}: is not of a folder that cdn-tune exported; name one, or a run folder")
    if config.get("version") != VERSION:
        raise CheckpointError(f"{path}: export version {config.get('version')!r}, but this cdn-tune reads {VERSION}")
    checks: dict[str, Callable[[Any], bool]] = {"files": lambda value: isinstance(value, dict)}
    checks |= {name: ENTRIES[name][1] for name in ("val", "epoch", "planted")}
    if TEXT_MODEL in config:
        checks[TEXT_MODEL] = _is_language_model
    if wrong := [name for name, fits in checks.items() if not fits(config.get(name))]:
        raise CheckpointError(f"{path}: damaged ({', '.join(wrong)} missing or of another type); {_AGAIN}")
    return config
