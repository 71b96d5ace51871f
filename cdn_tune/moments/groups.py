"""Groups of queries whose metrics are told apart: by length and position of the moment, by length of the query.

Shape letters: Q queries.
"""

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

Groups = dict[str, dict[str, Tensor]]

LENGTH_SHARES = (0.1, 0.25, 0.5)
LENGTH_SECONDS = (5.0, 10.0, 30.0)
POSITIONS = (1 / 3, 2 / 3)
QUERY_WORDS = (5, 10)


def query_groups(durations: Tensor, moments: Tensor, words: Sequence[int]) -> Groups:
    """Returns bool masks [Q] by kind and label; of each kind every query is in one group. Empty groups are left out.

    Kinds: ``length_share`` (of the moment, as a share of its video), ``length_seconds`` (of the moment), ``position``
    (of its centre in the video), ``query_words``. A value at an edge is in the lower group.

    Args:
        durations: Seconds [Q].
        moments: Annotated spans in seconds [Q, 2].
        words: Words of each query.
    """
    length = moments[:, 1] - moments[:, 0]
    centre = moments.mean(dim=1) / durations
    count = torch.tensor(list(words), dtype=torch.float64)
    thirds = ("first third", "middle third", "last third")
    return {
        "length_share": _cut(length / durations, LENGTH_SHARES, _percent(LENGTH_SHARES)),
        "length_seconds": _cut(length, LENGTH_SECONDS, _ranges([f"{edge:g}" for edge in LENGTH_SECONDS], "s")),
        "position": _cut(centre, POSITIONS, thirds),
        "query_words": _cut(count, QUERY_WORDS, _ranges([str(edge) for edge in QUERY_WORDS], "words")),
    }


def _cut(values: Tensor, edges: Sequence[float], labels: Sequence[str]) -> dict[str, Tensor]:
    index = torch.bucketize(values.double(), torch.tensor(list(edges), dtype=torch.float64))
    masks = {label: index == number for number, label in enumerate(labels)}
    return {label: mask for label, mask in masks.items() if bool(mask.any())}


def _percent(edges: Sequence[float]) -> list[str]:
    return _ranges([f"{100 * edge:g}" for edge in edges], "%")


def _ranges(edges: Sequence[str], unit: str) -> list[str]:
    inner = [f"{low}-{high} {unit}" for low, high in itertools.pairwise(edges)]
    return [f"up to {edges[0]} {unit}", *inner, f"above {edges[-1]} {unit}"]
