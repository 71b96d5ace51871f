"""Token features: queries as a language model's features of their tokens, in an HDF5 file with a dataset per text.

A dataset [tokens, size] of floats is named by the digest of its text, and has the text as its attribute. The file's
attributes name the format, the model and the size. Datasets lie in one piece, so that the file is mapped into memory,
read only: all trials and workers of a node share one copy, and take from it what a batch needs.

Letters: Q queries, L tokens of the longest, W size of a token feature.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cdn_tune.data.files import brief, written_whole
from cdn_tune.data.hdf5 import UNREADABLE, check_dataset, find, open_features
from cdn_tune.errors import DataError

VERSION = 1
MOST_TOKENS = 4096  # of a text; a batch is padded to its longest
FORMAT, MODEL, DIGEST, SIZE = "cdn_tune_tokens", "model", "model_digest", "size"  # attributes of the file
TEXT = "text"  # attribute of a dataset
_LONGEST_ATTRIBUTE = 1 << 16  # bytes, as much as HDF5 stores in one
_SHOWN = 80  # characters of a text in a message

Features = npt.NDArray[np.floating]


class LanguageModel(NamedTuple):
    """What a file of token features says of the model that computed them."""

    name: str  # of its folder, or on the hub
    digest: str  # of its files
    size: int  # of a token feature W


class _Place(NamedTuple):
    """Where the features of a text lie in the file."""

    first: int  # byte
    tokens: int  # how many
    dtype: np.dtype[Any]


class TokenFeatures:
    """The token features of texts, in a file. Picklable; each process maps the file when it first reads.

    Attributes:
        path: The file.
        model: Who computed it.

    Raises:
        DataError: If the file cannot be read, is no file of token features, or they are of another size.
    """

    def __init__(self, path: Path, size: int | None = None) -> None:
        self.path = path
        self._places: dict[str, _Place] = {}
        self._map: npt.NDArray[np.uint8] | None = None
        self._seen = _state(path)
        with _reading(path) as file:
            self.model = _model_of(file, path)
        if size not in (None, self.model.size):
            raise DataError(
                f"{path}: token features of size {self.model.size} but data.word_size={size}; "
                f"set data.word_size={self.model.size} or data.tokens to another file"
            )

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_map": None}

    def require(self, texts: Iterable[str], root: Path) -> None:
        """Checks that all texts have features, and those of the first; the others are checked when they are first read.

        Args:
            texts: The texts.
            root: The data folder, for the error message.

        Raises:
            DataError: If not; names the first text without any, and how many there are.
        """
        wanted, present = dict.fromkeys(texts), names_in(self.path)
        missing = [text for text in wanted if name_of(text) not in present]
        if missing:
            raise DataError(
                f"{self.path}: no token features of {len(missing)} of {len(wanted)} queries ({shown(missing[0])}"
                f"{', ...' if len(missing) > 1 else ''}), which are new or have changed; {self._remedy(root)}"
            )
        self.gather([*wanted][:1])

    def check(self, texts: Iterable[str], root: Path, every: int = 1) -> dict[str, DataError]:
        """Returns what is wrong with the features of texts; `root` is the data folder, for error messages.

        All have to be there; those of one in so many are read.

        Raises:
            DataError: If the file cannot be read.
        """
        wanted, present = dict.fromkeys(texts), names_in(self.path)
        absent = DataError(f"queries without token features in {self.path}; {self._remedy(root)}")
        faults = {text: absent for text in wanted if name_of(text) not in present}
        held = [text for text in wanted if text not in faults]
        with _reading(self.path) as file:
            for text in held[::every]:
                try:
                    self._find(file, text)
                    self.gather([text])
                except DataError as error:
                    faults[text] = error
        return faults

    def gather(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Returns the features of Q >= 1 texts, zero after the last token, and where tokens are.

        Returns:
            float32 [Q, L, W] and bool [Q, L].

        Raises:
            DataError: If features cannot be used, or the file has changed.
            KeyError: If a text has none.
        """
        if new := [text for text in dict.fromkeys(texts) if text not in self._places]:
            self._unchanged()
            with _reading(self.path) as file:
                missing = [text for text in new if not self._find(file, text)]
            if missing:
                raise KeyError(missing[0])
        rows = [self._read(text) for text in texts]
        lengths = np.array([len(row) for row in rows])
        features = np.zeros((len(rows), lengths.max(), self.model.size), dtype=np.float32)
        with np.errstate(over="ignore"):  # float64
            for place, row in enumerate(rows):
                features[place, : len(row)] = row
        if not np.isfinite(features).all():
            text = texts[int(np.argwhere(~np.isfinite(features))[0][0])]
            raise DataError(
                f"{self.path}: the features of {shown(text)} have a value that is not finite; compute the file again"
            )
        return torch.from_numpy(features), torch.from_numpy(np.arange(lengths.max()) < lengths[:, None])

    def table(self, texts: Sequence[str]) -> "TokenTable":
        """Returns texts as numbered queries."""
        return TokenTable(self, tuple(texts))

    def encode(self, text: str) -> tuple[Tensor, tuple[str, ...]]:
        """Returns the features of a text, float32 [L, W], and its words without any, of which there are none.

        Raises:
            DataError: If the file has none.
        """
        with _reading(self.path) as file:
            found = self._find(file, text)
        if not found:
            raise DataError(
                f"query {shown(text)}: has no token features in {self.path}; name the folder of {self.model.name}, "
                "which computes them: --text-model DIR (in Python, text_model=)"
            )
        return self.gather([text])[0][0], ()

    def describe(self) -> dict[str, Any]:
        """Returns what the queries are read with, ready for JSON."""
        return {"text": "tokens", "text_model": self.model.name}

    def _unchanged(self) -> None:
        if _state(self.path) != self._seen:
            raise DataError(f"{self.path}: has changed since it was opened; start again")

    def _remedy(self, root: Path) -> str:
        return f"add them with: cdn-tune data text {root} --model {self.model.name} --out {self.path}"

    def _find(self, file: Any, text: str) -> bool:
        """Returns whether a text has features, whose place is checked and kept."""
        if text in self._places:
            return True
        where = f"{self.path}: the features of {shown(text)}"
        try:
            entry = find(file, name_of(text), where)
            if entry is None:
                return False
            check_dataset(entry, where)
            self._places[text] = self._checked(entry, text, where)
        except UNREADABLE as error:
            raise DataError(f"{where} cannot be read ({brief(error)}); copy or compute the file again") from None
        return True

    def _checked(self, entry: Any, text: str, where: str) -> _Place:
        """Returns where the numbers of a text's dataset lie, once it is what it should be."""
        shape, size = list(entry.shape), self.model.size
        if len(shape) != 2 or shape[1] != size or not 0 < shape[0] <= MOST_TOKENS or entry.dtype.kind != "f":
            raise DataError(
                f"{where} have shape {shape} of {entry.dtype}, expected floats [tokens, {size}] of 1 to {MOST_TOKENS} "
                "tokens; compute the file again"
            )
        if _attribute(entry, TEXT) != _stored(text).decode():
            raise DataError(f"{where} are those of another text, by its attribute {TEXT!r}; compute the file again")
        first = entry.id.get_offset()
        last = None if first is None else first + shape[0] * size * entry.dtype.itemsize
        if entry.is_virtual or entry.external or last is None or last > self._seen[0]:
            raise DataError(f"{where} do not lie in one piece in the file; rewrite it with: h5repack -l CONTI FILE NEW")
        return _Place(first, shape[0], entry.dtype)

    def _read(self, text: str) -> Features:
        """Returns the features of a text as stored [tokens, W]."""
        if self._map is None:
            self._unchanged()
            self._map = np.memmap(self.path, dtype=np.uint8, mode="r")
        first, count, dtype = self._places[text]
        block = self._map[first : first + count * self.model.size * dtype.itemsize]
        return block.view(dtype).reshape(count, self.model.size)


@dataclass(frozen=True, eq=False)
class TokenTable:
    """Numbered queries, whose token features lie in a file."""

    features: TokenFeatures
    texts: tuple[str, ...]

    def batch(self, at: Tensor) -> tuple[Tensor, Tensor]:
        """Returns features [B, L, W] and mask [B, L] of the queries of these numbers (see `TokenFeatures.gather`)."""
        return self.features.gather([self.texts[place] for place in at.tolist()])


def write_tokens(path: Path, model: LanguageModel, features: Iterable[tuple[str, Features]], *others: Path) -> None:
    """Writes texts with their features [tokens, size] as a file, and what other files have besides, in one step.

    Raises:
        OSError: If it cannot be written.
    """
    with written_whole(path) as partial, h5py.File(partial, "w", libver="latest") as file:
        file.attrs.update({FORMAT: VERSION, MODEL: model.name, DIGEST: model.digest, SIZE: model.size})
        for text, values in features:
            entry = file.create_dataset(name_of(text), data=values, track_times=False)
            entry.attrs[TEXT] = _stored(text)
        for other in others:
            with open_features(other) as source:
                for name in source.keys() - file.keys():
                    source.copy(name, file)


def names_in(path: Path) -> set[str]:
    """Returns the names of the datasets of a file.

    Raises:
        DataError: If it cannot be read.
    """
    with _reading(path) as file:
        return set(file)


def name_of(text: str) -> str:
    """Returns the name of a text's dataset."""
    return hashlib.sha256(_stored(text)).hexdigest()[:32]


def shown(text: str) -> str:
    """Returns a text as a message shows it."""
    return repr(text if len(text) <= _SHOWN else f"{text[:_SHOWN]}...")


@contextmanager
def _reading(path: Path) -> Iterator[Any]:
    """Yields an open file; raises what h5py does as a `DataError`."""
    try:
        with open_features(path) as file:
            yield file
    except UNREADABLE as error:
        raise DataError(f"{path}: cannot be read ({brief(error)}); copy or compute it again") from None


def _stored(text: str) -> np.bytes_:
    """Returns a text as an attribute has it: a JSON string, in which any character is ASCII."""
    return np.bytes_(json.dumps(text).encode())


def _model_of(file: Any, path: Path) -> LanguageModel:
    version, name, digest, size = (_attribute(file, key) for key in (FORMAT, MODEL, DIGEST, SIZE))
    if version is None:
        raise DataError(f"{path}: is no file of token features; write one with: cdn-tune data text")
    if version != VERSION:
        what = f"{path}: token features of format {shown(str(version))}"
        raise DataError(f"{what}, but this cdn-tune reads {VERSION}; compute the file again")
    if not isinstance(name, str) or not isinstance(digest, str) or not isinstance(size, np.integer) or size < 1:
        raise DataError(f"{path}: its attributes {MODEL}, {DIGEST} and {SIZE} are damaged; compute the file again")
    return LanguageModel(shown(name)[1:-1], digest, int(size))


def _attribute(entry: Any, name: str) -> Any:
    """Returns a scalar attribute, bytes as text; None if there is none, or one that is too large."""
    if name not in entry.attrs:
        return None
    held = entry.attrs.get_id(name)
    if held.shape != () or held.dtype.itemsize > _LONGEST_ATTRIBUTE:
        return None
    value = entry.attrs[name]
    return value.decode(errors="replace") if isinstance(value, bytes) else value


def _state(path: Path) -> tuple[int, int]:
    """Returns size and time of change of a file; zeros where there is none."""
    try:
        stat = path.stat()
    except OSError:
        return 0, 0
    return stat.st_size, stat.st_mtime_ns
