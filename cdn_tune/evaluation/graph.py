"""The model as a graph for other runtimes: `torch.export` and ONNX, each checked against the model it came from.

Shape letters: T frames, D feature size, L words, W word size, S clips.
"""

import importlib
import importlib.util
import logging
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cdn_tune.config import DataConfig
from cdn_tune.errors import ConfigError, RunError
from cdn_tune.model.family import MomentModel

WORDS = 32
INPUTS = ("features", "words", "word_mask")
TOLERANCE = 1e-4  # of a score in [0, 1]; runtimes order their sums differently
_NEEDED = ("onnx", "onnxscript", "onnxruntime")  # the last one for the check


def check_can_trace(model: MomentModel, onnx: bool) -> None:
    """Checks, before anything is written, that the model has a graph of fixed size.

    Raises:
        ConfigError: If its family has none, its query encoder reads the padding, or `onnx` is wanted and packages are
            missing.
    """
    _module(model)
    if model.reads_padding:
        raise ConfigError(
            "this model's encoding of a query depends on how far it is padded (model.query.read_padding=true), which a "
            "graph of fixed length cannot follow; export without --onnx and --torch-export"
        )
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if onnx and missing:
        raise ConfigError(f"--onnx needs {', '.join(missing)}; install with: pip install {' '.join(missing)}")


def trace(model: MomentModel, data: DataConfig) -> torch.export.ExportedProgram:
    """Returns the graph of one video and one query of up to `WORDS` words, as `torch.export` makes it.

    Args:
        model: In eval mode, on the CPU; its family has a graph.
        data: Frame features per video and sizes.

    Raises:
        RunError: If the model cannot be traced, or the graph's scores differ from the model's by more than `TOLERANCE`.
    """
    scores = _module(model)
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of LSTM weights that are not buffers
            program = torch.export.export(scores, example(data, WORDS))
    except Exception as error:  # torch raises almost anything
        raise RunError(f"torch.export: this model has no graph ({' '.join(str(error).split())[:200]})") from None
    graph = program.module()
    _compare("torch.export", model, data, lambda *inputs: graph(*inputs))
    return program


def save_onnx(program: torch.export.ExportedProgram, path: Path, model: MomentModel, data: DataConfig) -> None:
    """Writes a graph as ONNX, and checks in onnxruntime that it computes the same.

    Raises:
        RunError: If it has no ONNX form, or its scores differ by more than `TOLERANCE`.
    """
    onnxruntime = importlib.import_module("onnxruntime")  # optional
    quiet = logging.getLogger("torch.onnx")
    level = quiet.level
    size = sum(weight.numel() * weight.element_size() for weight in model.state_dict().values())  # bytes
    quiet.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                *(program, (), path),
                dynamo=True,
                verbose=False,
                input_names=INPUTS,
                output_names=("scores",),
                external_data=size > 1 << 30,
            )
            session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    except Exception as error:
        raise RunError(f"ONNX: this model has no such graph ({' '.join(str(error).split())[:200]})") from None
    finally:
        quiet.setLevel(level)

    def run(*inputs: Tensor) -> Tensor:
        feed = {name: value.numpy() for name, value in zip(INPUTS, inputs, strict=True)}
        return torch.from_numpy(session.run(None, feed)[0])

    _compare("ONNX", model, data, run)


def example(data: DataConfig, words: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Returns inputs of the graph: features [1, T, D], words [1, L, W], word mask [1, L]; `words` of L are words."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.arange(WORDS)[None] < words
    features = torch.randn(1, data.frames, data.feature_size, generator=generator)
    vectors = torch.randn(1, WORDS, data.word_size, generator=generator) * mask[..., None]
    return features, vectors, mask


def _compare(what: str, model: MomentModel, data: DataConfig, graph: Any) -> None:
    """Compares a graph's scores with the model's, for queries of several lengths, which the model reads unpadded."""
    scores = _module(model)
    for seed, words in enumerate((1, 7, WORDS)):
        features, vectors, mask = example(data, words, seed)
        with torch.no_grad():
            wanted = scores(features, vectors[:, :words], mask[:, :words])
            gap = float((graph(features, vectors, mask) - wanted).abs().max())
        if not gap <= TOLERANCE:  # NaN too
            raise RunError(f"{what}: scores differ from the model's by {gap:.2g}, more than {TOLERANCE:g}")


def _module(model: MomentModel) -> nn.Module:
    graph = model.graph()
    if graph is None:
        raise ConfigError(f"model.name={model.config.name} has no graph; export without --onnx and --torch-export")
    return graph.module.eval()
