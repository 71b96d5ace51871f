"""score_maps.hdf5: the whole score map of every query.

Datasets: ``scores`` float32 [Q, S, S], the score in [0, 1] of the moment from the start of clip s to the end of clip e,
NaN where (s, e) is no proposal; ``id`` and ``video``, texts [Q]; ``duration`` float64 [Q], seconds: clip s begins at
``s / S * duration``. Attribute ``split``.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch

from cdn_tune.data.annotations import Annotation
from cdn_tune.data.files import written_whole
from cdn_tune.training.runs.files import write_errors

SCORE_MAPS = "score_maps.hdf5"


class ScoreMaps:
    """Writes the maps of some queries, batch by batch, to a file, which is replaced."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with write_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file: Any = h5py.File(path, "w")

    def add(self, indices: torch.Tensor, scores: torch.Tensor, mask: torch.Tensor) -> None:
        """Adds the maps [B, S, S] of queries at positions [B] of the split; `mask` [S, S] marks the proposals."""
        clips = scores.shape[-1]
        maps = scores.float().masked_fill(~mask, torch.nan).cpu().numpy()
        with write_errors(self._path):
            if "scores" not in self._file:
                self._file.create_dataset("index", (0,), "i8", maxshape=(None,))
                shape = (None, clips, clips)
                self._file.create_dataset("scores", (0, *shape[1:]), "f4", maxshape=shape, chunks=(1, *shape[1:]))
            first = len(self._file["index"])
            for name, values in (("index", indices.numpy()), ("scores", maps)):
                self._file[name].resize(first + len(indices), axis=0)
                self._file[name][first:] = values

    def __enter__(self) -> "ScoreMaps":
        return self

    def __exit__(self, *_: object) -> None:
        with write_errors(self._path):
            self._file.close()


def merge_score_maps(path: Path, parts: Sequence[Path], annotations: Sequence[Annotation], split: str) -> None:
    """Writes the file of a split from the workers' parts, which are deleted.

    Args:
        path: The file; a reader sees the old one or the new one.
        parts: As `ScoreMaps` wrote them, together every query of the split once.
        annotations: Of the split's queries.
        split: Its name.

    Raises:
        RunError: If it cannot be written.
    """
    texts = h5py.string_dtype()
    try:
        with write_errors(path), written_whole(path) as temporary, h5py.File(temporary, "w") as file:
            file.attrs["split"] = split
            file.create_dataset("id", data=[item.id for item in annotations], dtype=texts)
            file.create_dataset("video", data=[item.video for item in annotations], dtype=texts)
            file.create_dataset("duration", data=np.array([item.duration for item in annotations]))
            for part in parts:
                with h5py.File(part) as source:
                    if "scores" not in source:  # a worker without a batch
                        continue
                    clips = source["scores"].shape[-1]
                    if "scores" not in file:
                        packed = {"chunks": (1, clips, clips), "compression": "gzip", "compression_opts": 1}
                        file.create_dataset("scores", (len(annotations), clips, clips), "f4", **packed)
                    for row, index in enumerate(source["index"][:]):
                        file["scores"][index] = source["scores"][row]
    finally:
        for part in parts:
            part.unlink(missing_ok=True)
