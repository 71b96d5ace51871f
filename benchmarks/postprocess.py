"""From score maps to answers and recall, against sorting every cell and suppressing in a Python loop.

``python -m benchmarks.postprocess [--queries Q]`` times both in turns on the same maps and checks that answers are
equal.
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor

from benchmarks._measure import alternate, publish, table
from cdn_tune.config.tables import metric_names
from cdn_tune.moments.metrics import Answers, measure
from cdn_tune.moments.nms import top_moments
from cdn_tune.moments.spans import iou

CLIPS, TOP, THRESHOLD = 128, 5, 0.4
RECALLS, IOUS = (1, 5), (0.1, 0.3, 0.5)
PLAIN_QUERIES = 40  # of the plain way; it takes long
AIM = 50


def plain_top(scores: Tensor, duration: float) -> Tensor:
    """Returns the best spans [TOP, 2] of one score map [S, S], the plain way: suppress through the whole list first."""
    starts, ends = torch.ones(CLIPS, CLIPS).triu().nonzero().T
    order = scores[starts, ends].argsort(descending=True)
    edges = torch.arange(CLIPS + 1, dtype=torch.float32) / CLIPS * duration
    spans = torch.stack([edges[starts[order]], edges[ends[order] + 1]], dim=1).double()
    dropped = torch.zeros(len(spans), dtype=torch.bool)
    for index in range(len(spans) - 1):
        if not dropped[index]:
            dropped[index + 1 :] |= iou(spans[index + 1 :], spans[index]) > THRESHOLD
    return spans[~dropped][:TOP]


def plain(scores: Tensor, durations: Tensor, moments: Tensor) -> tuple[Tensor, Tensor]:
    """Returns top spans [Q, TOP, 2] and recall [recalls, ious], query by query."""
    top = torch.stack([plain_top(map_, float(length)) for map_, length in zip(scores, durations, strict=True)])
    hits = torch.zeros(len(RECALLS), len(IOUS), dtype=torch.float64)
    for spans, moment in zip(top, moments, strict=True):
        overlaps = iou(spans, moment.double())
        for row, count in enumerate(RECALLS):
            for column, threshold in enumerate(IOUS):
                hits[row, column] += bool((overlaps[:count] > threshold).any())
    return top, hits / len(scores)


def main() -> None:
    """Prints the section of the results and writes it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--queries", type=int, default=1000)
    queries = parser.parse_args().queries
    torch.manual_seed(0)
    starts = torch.rand(queries) * 60
    moments = torch.stack([starts, starts + 20], dim=1)
    durations = torch.rand(queries) * 100 + 100
    scores = torch.randn(queries, CLIPS, CLIPS)
    scores = torch.nn.functional.avg_pool2d(scores[:, None], 9, stride=1, padding=4)[:, 0]  # smooth, as a model's

    def ours(count: int) -> tuple[Tensor, Tensor]:
        few = slice(count)
        top, _ = top_moments(scores[few], durations[few], TOP, THRESHOLD)
        names = metric_names(RECALLS, IOUS, on_val=True)[:-1]  # but mIoU
        means = measure(Answers(top, moments[few], durations[few]), names).means
        return top, torch.tensor([*means.values()], dtype=torch.float64).reshape(len(RECALLS), len(IOUS))

    few = min(PLAIN_QUERIES, queries)
    expected = plain(scores[:few], durations[:few], moments[:few])
    for mine, theirs in zip(ours(few), expected, strict=True):
        torch.testing.assert_close(mine, theirs, atol=0, rtol=0)
    seconds = alternate(
        {"plain": lambda: plain(scores[:few], durations[:few], moments[:few]), "ours": lambda: ours(queries)}, rounds=5
    )
    slow, fast = seconds["plain"] / few, seconds["ours"] / queries
    publish(
        "postprocess",
        [
            "## Post-processing",
            "",
            f"`python -m benchmarks.postprocess`: top {TOP} after suppression, and recall, of {queries} queries at "
            f"{CLIPS}x{CLIPS}, {torch.get_num_threads()} threads; the plain way (sort every cell, suppress in a "
            f"loop to the end) on the first {few} of them, whose answers are equal. Aim: at least {AIM}x.",
            "",
            *table(
                ["what", "time per query", "speed"],
                [["plain", f"{slow * 1e3:.2f} ms", "1x"], ["ours", f"{fast * 1e3:.3f} ms", f"{slow / fast:.0f}x"]],
            ),
        ],
    )


if __name__ == "__main__":
    main()
