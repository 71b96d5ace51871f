"""The final evaluation after the model has scored: answers, metrics, intervals, tests, predictions on disk.

``python -m benchmarks.evaluation [--queries Q]`` takes score maps as large as TACoS's (128x128) and as many videos as
Charades-STA's test split has; and the bootstrap against drawing videos and averaging their queries in a loop, whose
numbers are equal.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch

from benchmarks._measure import alternate, publish, table
from cdn_tune.config.tables import metric_names, metrics_depth
from cdn_tune.data.annotations import Annotation
from cdn_tune.evaluation.queries import query_results, video_numbers, write_query_results
from cdn_tune.evaluation.summary import summarise
from cdn_tune.moments.bootstrap import RESAMPLES, cluster_means, interval
from cdn_tune.moments.metrics import Answers, Measures, measure
from cdn_tune.moments.nms import top_moments

Result = TypeVar("Result")

CLIPS, VIDEOS, THRESHOLD = 128, 1334, 0.4
IOUS = (0.1, 0.3, 0.5)
NAMES = metric_names((1, 5), IOUS)
CHUNK = 500  # maps held at once
PLAIN_RESAMPLES = 50  # of the plain way; it takes long
AIM_EVALUATION, AIM_BOOTSTRAP = 15, 5


def annotate(count: int, generator: torch.Generator) -> list[Annotation]:
    """Returns queries with random moments of random videos."""
    durations = (torch.rand(VIDEOS, generator=generator) * 100 + 20).tolist()
    ends = torch.rand(count, 2, generator=generator, dtype=torch.float64).sort().values.tolist()
    videos = torch.arange(count).remainder(VIDEOS).tolist()
    return [
        Annotation(
            f"q:{number}",
            f"v{video}",
            durations[video],
            start * durations[video],
            end * durations[video],
            "a person opens the door and walks out of the room",
        )
        for number, (video, (start, end)) in enumerate(zip(videos, ends, strict=True))
    ]


def plain_means(values: np.ndarray, videos: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """Returns the means [R, M] of the same draws, query by query of each drawn video."""
    rows = [np.flatnonzero(videos == video) for video in range(VIDEOS)]
    draws = np.random.Generator(np.random.PCG64(seed)).integers(0, VIDEOS, size=(resamples, VIDEOS))
    return np.stack([values[np.concatenate([rows[video] for video in drawn])].mean(axis=0) for drawn in draws])


def main() -> None:
    """Prints the section of the results and writes it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--queries", type=int, default=4000)
    queries = parser.parse_args().queries
    generator = torch.Generator().manual_seed(0)
    items = annotate(queries, generator)
    durations = torch.tensor([item.duration for item in items], dtype=torch.float64)
    moments = torch.tensor([(item.start, item.end) for item in items], dtype=torch.float64)
    maps = torch.randn(min(CHUNK, queries), CLIPS, CLIPS, generator=generator)
    maps = torch.nn.functional.avg_pool2d(maps[:, None], 9, stride=1, padding=4)[:, 0]  # smooth, as a model's

    parts: dict[str, tuple[float, float]] = {}

    def timed(what: str, work: Callable[[], Result]) -> Result:
        start, busy = time.perf_counter(), time.process_time()
        done = work()
        parts[what] = (time.perf_counter() - start, time.process_time() - busy)
        return done

    top, scores = timed("answers: top 10 after suppression", lambda: answers(maps, durations))
    measured = timed("metrics of every query", lambda: measure(Answers(top, moments, durations, scores), NAMES))
    timed(
        f"{RESAMPLES} resamples of metrics, groups, baselines; paired test",
        lambda: summarise({"model": measured}, items, items, IOUS),
    )
    timed("predictions.jsonl", lambda: write(items, top, scores))
    whole = [sum(column) for column in zip(*parts.values(), strict=True)]

    videos = video_numbers(items)
    plain = plain_means(measured.values, videos, PLAIN_RESAMPLES, 0)
    np.testing.assert_allclose(plain, cluster_means(measured.values, videos, PLAIN_RESAMPLES, 0), rtol=1e-9)
    seconds = alternate(
        {
            "plain": lambda: plain_means(measured.values, videos, PLAIN_RESAMPLES, 0),
            "ours": lambda: bootstrap(measured, videos),
        },
        rounds=3,
    )
    slow, fast = seconds["plain"] / PLAIN_RESAMPLES, seconds["ours"] / RESAMPLES
    publish(
        "evaluation",
        [
            "## Final evaluation",
            "",
            f"`python -m benchmarks.evaluation`: {queries} queries of {VIDEOS} videos at {CLIPS}x{CLIPS}, after the "
            f"model has scored, {torch.get_num_threads()} threads. Aims: at most {AIM_EVALUATION} s in all; at most "
            f"{AIM_BOOTSTRAP} s for {RESAMPLES} resamples of {len(measured.names)} metrics. The plain way averages "
            f"the drawn videos' queries ({PLAIN_RESAMPLES} resamples of it); its means are equal.",
            "",
            *table(
                ["what", "time", "processor time"],
                [
                    [what, f"{took:.2f} s", f"{busy:.2f} s"]
                    for what, (took, busy) in [*parts.items(), ("in all", whole)]
                ],
            ),
            "",
            *table(
                ["bootstrap", "per resample", f"{RESAMPLES} resamples", "speed"],
                [
                    ["plain", f"{slow * 1e3:.2f} ms", f"{slow * RESAMPLES:.1f} s", "1x"],
                    ["ours", f"{fast * 1e3:.3f} ms", f"{fast * RESAMPLES:.2f} s", f"{slow / fast:.0f}x"],
                ],
            ),
        ],
    )


def answers(maps: torch.Tensor, durations: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns every query's answers and their scores; the maps are used in turns."""
    found = []
    for first in range(0, len(durations), CHUNK):
        few = durations[first : first + CHUNK]
        found.append(top_moments(maps[: len(few)], few, metrics_depth(NAMES), THRESHOLD))
    top, scores = (torch.cat(each) for each in zip(*found, strict=True))
    return top, scores


def write(items: list[Annotation], top: torch.Tensor, scores: torch.Tensor) -> None:
    """Writes predictions.jsonl."""
    with tempfile.TemporaryDirectory() as folder:
        write_query_results(Path(folder) / "predictions.jsonl", query_results(items, top, scores, "test"))


def bootstrap(measured: Measures, videos: np.ndarray) -> np.ndarray:
    """Returns the intervals of the metrics."""
    return interval(cluster_means(measured.values, videos, RESAMPLES, 0))


if __name__ == "__main__":
    main()
