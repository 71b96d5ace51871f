"""How well a trial answers single queries, small enough to travel with every epoch's report.

Two trials answer the same val queries, so query by query they can be compared more surely than by their means.
"""

from __future__ import annotations

import base64

import numpy as np
import numpy.typing as npt
import torch

MOST = 256  # queries in a report
_STEPS = 255  # of a byte


def pack_ious(ious: torch.Tensor) -> str:
    """Packs IoUs of the top moment: a byte each, of at most 256 evenly spaced queries, as base64.

    Args:
        ious: IoU in [0, 1] of each query's best-scored moment, [Q].
    """
    chosen = np.linspace(0, len(ious) - 1, min(MOST, len(ious))).round().astype(np.int64)
    values = ious.detach().to("cpu", torch.float64).numpy()[chosen]
    return base64.b64encode((values * _STEPS).round().astype(np.uint8).tobytes()).decode("ascii")


def unpack_ious(packed: str) -> npt.NDArray[np.float64]:
    """Returns packed IoUs, float64 [min(Q, 256)], each within 1/510 of the original; none of an empty text."""
    return np.frombuffer(base64.b64decode(packed), np.uint8) / _STEPS
