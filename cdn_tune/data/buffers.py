"""Buffers: memory of batches that nobody uses any more, used again.

Fresh memory costs a page fault every 4 KiB, which on many machines takes longer than to copy the page.
"""

import sys
import threading

import numpy as np
import numpy.typing as npt
import torch

KEPT = 8


class Buffers:
    """Hands out tensors whose memory is used again once no tensor or view shares it. Threads may share one.

    Args:
        kept: How many buffers are kept at most; further ones are freed after use.
    """

    def __init__(self, kept: int = KEPT) -> None:
        self._kept: list[npt.NDArray[np.uint8]] = []
        self._limit = kept
        self._lock = threading.Lock()

    def take(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """Returns a tensor of any content that shares memory with no other that is alive."""
        size = int(np.prod(shape)) * dtype.itemsize
        with self._lock:
            base = self._free(size)
            # The tensor's storage holds `base` for as long as any view of it lives: that is how `_free` can tell.
            return torch.from_numpy(base)[:size].view(dtype).view(shape)

    def _free(self, size: int) -> npt.NDArray[np.uint8]:
        small = None
        for place in range(len(self._kept)):
            if sys.getrefcount(self._kept[place]) <= _UNUSED:
                if len(self._kept[place]) >= size:
                    return self._kept[place]
                small = place
        base = np.empty(max(size, 1), np.uint8)
        if small is not None:
            self._kept[small] = base
        elif len(self._kept) < self._limit:
            self._kept.append(base)
        return base


def _unused() -> int:
    """Returns the reference count that an array has when only a list holds it (it depends on the interpreter)."""
    probe = [np.empty(1, np.uint8)]
    return sys.getrefcount(probe[0])


_UNUSED = _unused()
