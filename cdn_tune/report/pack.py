"""Data as the page carries them: compact JSON, gzipped, in base64, which no text within can break out of."""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
from plotly.offline import get_plotlyjs  # type: ignore[import-untyped]

from cdn_tune.report.figures import Figure
from cdn_tune.report.predictions import Cases, Predictions
from cdn_tune.report.viewer import TOP, Views


def pack(value: Any) -> str:
    """Returns a plain value packed; the same value gives the same text."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return _packed(text)


@cache
def packed_plotly() -> tuple[str, str]:
    """Returns plotly.js packed, and as it is (its hash goes into the page's policy)."""
    source: str = get_plotlyjs()
    return _packed(source), source


def base64_of(values: npt.NDArray[Any]) -> str:
    """Returns an array's bytes, little-endian, in base64."""
    return base64.b64encode(np.ascontiguousarray(values).astype(values.dtype.newbyteorder("<")).tobytes()).decode()


def figure_data(figures: Sequence[Figure]) -> dict[str, Any]:
    """Returns the figures by id, for the page's script."""
    return {figure.id: {"views": figure.views, "height": figure.height, "width": figure.width} for figure in figures}


def query_data(predictions: Predictions, cases: Cases, views: Views | None) -> dict[str, Any]:
    """Returns the queries for the page's script: columns, since thousands of equal keys would be waste.

    ``moments`` and ``truth`` are seconds; ``views`` is by position.
    """
    queries = predictions.queries
    videos = {name: at for at, name in enumerate(dict.fromkeys(query.video for query in queries))}
    at = {query.id: position for position, query in enumerate(queries)}
    return {
        "split": predictions.split,
        "id": [query.id for query in queries],
        "query": [query.query for query in queries],
        "videos": list(videos),
        "video": [videos[query.video] for query in queries],
        "duration": [round(query.duration, 2) for query in queries],
        "truth": [[round(end, 2) for end in query.truth] for query in queries],
        "moments": [
            [[round(start, 2), round(end, 2), round(score, 4)] for start, end, score in query.moments[:TOP]]
            for query in queries
        ],
        "iou": [round(query.iou, 4) for query in queries],
        "cases": {"best": cases.best, "typical": cases.typical, "worst": cases.worst, "sample": cases.sample},
        "views": None
        if views is None
        else {
            "clips": views.clips,
            "cells": base64_of(views.cells),
            "of": {
                str(at[name]): {
                    "top": round(view.top, 4),
                    "scores": base64_of(view.scores),
                    "attention": None if view.attention is None else base64_of(view.attention),
                    "steps": 0 if view.attention is None else view.attention.shape[0],
                }
                for name, view in views.by_id.items()
                if name in at
            },
        },
    }


def _packed(text: str) -> str:
    return base64.b64encode(gzip.compress(text.encode(), compresslevel=9, mtime=0)).decode()
