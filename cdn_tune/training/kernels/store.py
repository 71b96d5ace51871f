"""What was measured on a card, kept in the cache folder: one JSON file for each kind of card and its software."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Annotated, Literal

from filelock import FileLock, Timeout
from pydantic import BaseModel, Field, ValidationError

from cdn_tune.data.cache import user_cache
from cdn_tune.data.files import brief, read_json, written_whole
from cdn_tune.training.kernels.card import Card

_MOST = 1 << 20  # bytes of a file
_WAIT = 120.0  # seconds for another process that measures
_LOG = logging.getLogger(__name__)
Name = Literal["published", "rows", "cudnn", "triton", "fused"]


class Choice(BaseModel, frozen=True):
    """The product that was chosen for a case, and why."""

    product: Name
    milliseconds: dict[Name, Annotated[float, Field(gt=0, allow_inf_nan=False)]] = {}  # forward and backward
    dropped: dict[Name, str] = {}  # why others are not used


class _File(BaseModel):
    """A file's content."""

    format: Literal[1] = 1
    card: Card
    choices: dict[str, Choice] = {}


def store_path(card: Card) -> Path:
    """Returns the file of a card."""
    return user_cache() / "kernels" / f"{card.digest}.json"


def read_choices(card: Card, path: Path | None = None) -> dict[str, Choice]:
    """Returns what is kept of a card, by case; nothing, with a line in the log, if the file is not sound."""
    path = path or store_path(card)
    try:
        if not path.is_file():
            return {}
        if path.stat().st_size > _MOST:
            raise ValueError(f"more than {_MOST} bytes")
        held = _File.model_validate(read_json(path))
        if held.card != card:
            raise ValueError("of another card")
    except ValidationError as error:
        fault = error.errors()[0]
        reason = f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}"
    except (OSError, ValueError) as error:
        reason = brief(error)
    else:
        return held.choices
    _tell(f"{path}: is not used, and written anew ({brief(ValueError(reason))})")
    return {}


@cache
def _tell(message: str) -> None:
    """Logs a message once: a file is read several times until it is written."""
    _LOG.warning("%s", message)


def keep_choices(card: Card, choices: dict[str, Choice]) -> None:
    """Adds to what is kept of a card; a folder that cannot be written to is a line in the log."""
    path = store_path(card)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        content = _File(card=card, choices={**read_choices(card), **choices})
        with written_whole(path) as partial:
            partial.write_text(content.model_dump_json(indent=1), encoding="utf-8")
    except OSError as error:
        _LOG.warning("%s: cannot be written (%s); kernels are measured again next time", path, brief(error))


@contextmanager
def alone(card: Card) -> Iterator[None]:
    """Waits until no other process measures this kind of card; some minutes, or not where nothing can be locked."""
    lock = FileLock(store_path(card).with_suffix(".lock"), timeout=_WAIT)
    try:
        store_path(card).parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except (OSError, NotImplementedError, Timeout):
        pass
    try:
        yield
    finally:
        lock.release()
