"""Text as a language model encodes it: the last hidden state of every token, from `transformers`, the extra ``text``.

A model is a local folder, or a name on the Hugging Face hub. Only weights in safetensors are read, and no code that
comes with a model is run.

Letters: B texts of a batch, L tokens, W size of a token feature.
"""

import hashlib
import importlib.util
import itertools
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor

from cdn_tune.data.annotations import SPLITS, Split
from cdn_tune.data.files import Progress, brief, sampled_sha256, writing_to
from cdn_tune.data.layouts import layout_of, recognise
from cdn_tune.data.tokens import (
    MOST_TOKENS,
    Features,
    LanguageModel,
    TokenFeatures,
    name_of,
    names_in,
    shown,
    write_tokens,
)
from cdn_tune.errors import ConfigError, DataError

BATCH = 64  # texts encoded at once
PART = 1024  # texts that a killed command may lose
_HUB = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
_FILES = ["*.json", "*.txt", "*.model", "*.safetensors"]  # of a model on the hub, at the top of its folder


class TextEncoder:
    """A language model and its tokenizer.

    Texts keep the tokens that the tokenizer puts around them, such as [CLS] and [SEP]. Of a model of texts and images,
    such as CLIP, it is the text half. A text is cut after as many tokens as the model has positions for.

    Attributes:
        model: Name, digest and size.
        longest: Tokens that it reads of a text.

    Raises:
        ConfigError: If `transformers` is not installed.
        DataError: If there is no such model, or it cannot be read.
    """

    def __init__(self, model: str, device: torch.device | str | None = None) -> None:
        if importlib.util.find_spec("transformers") is None:
            raise ConfigError("token features need transformers; install with: pip install 'cdn-tune[text]'")
        from transformers import AutoModel, AutoTokenizer

        folder = _folder(model)
        local: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        try:
            with _quiet():
                self._tokenizer = AutoTokenizer.from_pretrained(folder, **local)
                whole = AutoModel.from_pretrained(folder, use_safetensors=True, dtype=torch.float32, **local)
            text = getattr(whole, "text_model", whole)
            self._network = text.to(self.device).eval().requires_grad_(False)
            positions = getattr(text.config, "max_position_embeddings", None) or self._tokenizer.model_max_length
            self.longest: int = min(positions, self._tokenizer.model_max_length, MOST_TOKENS)
            size = self._encode([self._tokenizer("a")["input_ids"]]).shape[2]
        except Exception as error:  # transformers raises almost anything
            raise DataError(
                f"{model}: is no language model that can be read ({brief(error)}); name a folder with config.json, a "
                "tokenizer and *.safetensors, such as that of a DistilBERT or CLIP"
            ) from None
        name = model if folder != Path(model).expanduser() else folder.resolve().name
        self.model = LanguageModel(name, _digest(folder), size)

    def tokens(self, texts: Sequence[str]) -> list[list[int]]:
        """Returns the tokens of each text, as many as the model reads."""
        return self._tokens(texts, self.longest)

    def is_cut(self, text: str) -> bool:
        """Returns whether a text has more tokens than the model reads."""
        (tokens,) = self._tokens([text], self.longest + 1)
        return len(tokens) > self.longest

    def _tokens(self, texts: Sequence[str], most: int) -> list[list[int]]:
        found: list[list[int]] = self._tokenizer(list(texts), truncation=True, max_length=most)["input_ids"]
        return found

    def features(self, tokens: Sequence[list[int]]) -> list[Features]:
        """Returns features [L, W], float32, of each text's tokens.

        Texts of as many tokens are encoded together, so that none is padded.

        Raises:
            DataError: If a value is not finite.
        """
        found: dict[int, Features] = {}
        order = sorted(range(len(tokens)), key=lambda place: len(tokens[place]))
        for _, same in itertools.groupby(order, key=lambda place: len(tokens[place])):
            places = list(same)
            for first in range(0, len(places), BATCH):
                batch = places[first : first + BATCH]
                values = self._encode([tokens[place] for place in batch]).cpu().numpy()
                if not np.isfinite(values).all():
                    raise DataError(f"{self.model.name}: its features are not finite; copy the model again")
                found |= dict(zip(batch, values, strict=True))
        return [found[place] for place in range(len(tokens))]

    def encode(self, text: str) -> tuple[Tensor, tuple[str, ...]]:
        """Returns the features of a text, float32 [L, W], and its words without any, of which there are none.

        Raises:
            DataError: If the text is empty.
        """
        if not text.strip():
            raise DataError(f"query {shown(text)}: has no words; write a sentence such as 'a person opens the door'")
        return torch.from_numpy(self.features(self.tokens([text]))[0]), ()

    @torch.inference_mode()
    def _encode(self, tokens: list[list[int]]) -> Tensor:
        """Returns the last hidden states [B, L, W] of B texts of L tokens."""
        ids = torch.tensor(tokens, device=self.device)
        states: Tensor = self._network(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state
        return states.float()


@dataclass(frozen=True)
class Written:
    """A finished file of token features.

    Attributes:
        path: The file.
        model: Who computed it.
        texts: Texts asked for.
        computed: How many of them were computed now; the others were there.
        cut: How many of these have more tokens than the model reads.
    """

    path: Path
    model: LanguageModel
    texts: int
    computed: int
    cut: int


def dataset_texts(root: Path, dataset: str | None = None, splits: Sequence[Split] = SPLITS) -> list[str]:
    """Returns the distinct queries of a data folder's splits, in file order.

    Args:
        root: The folder.
        dataset: Its layout, as for `data.dataset`; recognised by its files if None.
        splits: Which of them.

    Raises:
        DataError: If the folder has no annotations, or one is wrong.
    """
    if not root.is_dir():
        raise DataError(f"{root}: no such folder; name the folder with the annotations")
    found = [dataset] if dataset else recognise(root)
    if len(found) != 1:
        kinds = f"of more than one layout ({', '.join(found)})" if found else "of no known layout"
        raise DataError(f"{root}: has annotation files {kinds}; name the layout with --dataset")
    layout = layout_of(found[0])
    loaded = [layout.load(root, split) for split in splits if layout.files(root, split)]
    texts = list(dict.fromkeys(item.query for part in loaded for item in part.queries))
    if not texts:
        raise DataError(f"{root}: has no queries of {', '.join(splits)}; name splits that {found[0]} has")
    return texts


def compute_tokens(
    texts: Sequence[str], encoder: TextEncoder, out: Path, dtype: str = "float32", progress: Progress | None = None
) -> Written:
    """Writes the token features of texts as one file, for `data.tokens`; what it has of the same model already stays.

    They are computed in parts, kept in a hidden folder beside the file, from which the same command goes on after a
    kill. The file appears, or changes, when all are there.

    Args:
        texts: The texts.
        encoder: Computes them.
        out: The file.
        dtype: What is stored, ``float32`` or ``float16``.
        progress: Called with (texts done, texts).

    Raises:
        DataError: If the file holds something else, or cannot be written.
    """
    wanted = list(dict.fromkeys(texts))
    staging = out.with_name(f".{out.name}.computing")
    with writing_to(out, "is writing it; wait for that"):
        staging.mkdir(parents=True, exist_ok=True)
        with FileLock(staging / ".lock", timeout=0):
            parts = [part for part in sorted(staging.glob("*.hdf5")) if _is_of(part, encoder.model)]
            if out.exists():
                parts.append(_own(out, encoder.model))
            have = {name for part in parts for name in names_in(part)}
            left = [text for text in wanted if name_of(text) not in have]
            tokens = encoder.tokens(left) if left else []
            order = sorted(range(len(left)), key=lambda place: len(tokens[place]))
            for first in range(0, len(left), PART):
                if progress is not None:
                    progress(len(wanted) - len(left) + first, len(wanted))
                chosen = order[first : first + PART]
                values = encoder.features([tokens[place] for place in chosen])
                part = staging / f"{name_of(left[chosen[0]])}.hdf5"
                named = zip((left[place] for place in chosen), values, strict=True)
                write_tokens(part, encoder.model, ((text, _stored(each, dtype)) for text, each in named))
                parts.append(part)
            if progress is not None:
                progress(len(wanted), len(wanted))
            if parts != [out]:
                write_tokens(out, encoder.model, (), *parts)
        shutil.rmtree(staging)
    full = (text for text, each in zip(left, tokens, strict=True) if len(each) == encoder.longest)
    return Written(out, encoder.model, len(wanted), len(left), sum(map(encoder.is_cut, full)))


def _stored(values: Features, dtype: str) -> Features:
    """Returns features as numbers of a type."""
    with np.errstate(over="ignore"):
        stored = values.astype(dtype)
    if not np.isfinite(stored).all():
        raise DataError(f"a feature of {np.abs(values).max():g} is no {dtype}; store them with --dtype float32")
    return stored


def _is_of(part: Path, model: LanguageModel) -> bool:
    """Returns whether a part can be used; one of another model, or damaged, is deleted."""
    try:
        if TokenFeatures(part).model.digest == model.digest:
            return True
    except DataError:
        pass
    part.unlink()
    return False


def _own(out: Path, model: LanguageModel) -> Path:
    """Returns a file of token features that is there; raises `DataError` if it is another model's."""
    held = TokenFeatures(out).model
    if held.digest != model.digest:
        raise DataError(
            f"{out}: holds token features of {held.name} (size {held.size}), not of these weights of {model.name} "
            f"(size {model.size}); delete it, or name another file with --out"
        )
    return out


def _folder(model: str) -> Path:
    """Returns a model's folder: a local one, or that of a name on the hub, fetched unless it is here.

    Raises:
        DataError: If there is none.
    """
    folder = Path(model).expanduser()
    if not folder.is_dir():
        from huggingface_hub import snapshot_download

        if folder.exists() or not _HUB.fullmatch(model):
            raise DataError(f"{model}: no such folder; name the folder of a model, or its name on the hub")
        try:
            folder = Path(snapshot_download(model, allow_patterns=_FILES, ignore_patterns=["*/*"]))
        except Exception as error:  # the hub has many errors
            raise DataError(
                f"{model}: no such folder here, and no model that the hub gives ({brief(error)}); name the folder of a "
                "model, such as a clone of its repository"
            ) from None
    if not any(folder.glob("*.safetensors")):
        raise DataError(f"{model}: has no weights in safetensors, and no others are read; name a model that has some")
    return folder


def _digest(folder: Path) -> str:
    """Returns what identifies a model: samples of its weights."""
    facts = "".join(f"{path.name} {sampled_sha256(path)}\n" for path in sorted(folder.glob("*.safetensors")))
    return hashlib.sha256(facts.encode()).hexdigest()[:32]


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps progress bars and remarks of transformers off the screen."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
