"""A lack of memory: how libraries tell it, and how we do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from cdn_tune.errors import MemoryShortage

_SIGNS = ("out of memory", "not enough memory", "allocate memory", "alloc_failed")  # in a RuntimeError's message
_LONGEST = 160  # characters of a library's own words


def is_shortage(error: BaseException) -> bool:
    """Whether an error says that memory did not suffice."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error).lower() for sign in _SIGNS)


@contextmanager
def shortage_told(when: str) -> Iterator[None]:
    """Turns a lack of memory within the block into one line.

    Args:
        when: What is under way, such as ``at epoch 2, step 7``.

    Raises:
        MemoryShortage: If the block lacked memory.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_shortage(error):
            raise
        words = " ".join(str(error).split())[:_LONGEST]
        raise MemoryShortage(
            f"out of memory {when}{f' ({words})' if words else ''}; lower train.micro_batch, eval.batch_size, "
            "data.frames or the sizes under model"
        ) from error
