"""Queries per second of one video: encoded once against encoded anew for every query.

``python -m benchmarks.predict [--queries Q]`` asks a model of the demo's size about a short video, and about one of ten
minutes in sliding windows, in turns, and checks that the answers agree.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch

from benchmarks._measure import alternate, publish, table
from cdn_tune import Moment, Retriever, Video
from cdn_tune.config import load_experiment
from cdn_tune.data.lexicon import Lexicon
from cdn_tune.training.runs.checkpoint import build_model

EXPERIMENT = "demo/small.yaml"
RATE = 4.0  # frame features per second, as in the demo
# Name: length of the video in seconds, window, queries as a share of those asked of the first.
VIDEOS = {"30 s": (30.0, None, 1.0), "10 min, 30 s windows": (600.0, 30.0, 0.1)}
WORDS = ("a", "person", "man", "woman", "opens", "closes", "carries", "the", "door", "box", "window", "then", "sits")
AIM = 200  # queries per second, short video, encoded once
ROUNDS = 3


def make_retriever() -> Retriever:
    """Returns a model of the demo's size; what its weights are does not matter here."""
    experiment = load_experiment(EXPERIMENT, {"data.root": "."})
    vectors = torch.randn(len(WORDS), experiment.data.word_size, generator=torch.Generator().manual_seed(0))
    rows = {word: row for row, word in enumerate(WORDS)}
    lexicon = Lexicon("benchmark", experiment.data.tokenizer, experiment.data.unknown_words, rows, vectors)
    return Retriever(build_model(experiment), experiment, lexicon, planted=True, source=Path(EXPERIMENT))


def measure(retriever: Retriever, duration: float, window: float | None, count: int) -> dict[str, float]:
    """Returns queries per second of each way."""
    generator = np.random.default_rng(0)
    features = generator.normal(size=(round(duration * RATE), retriever.experiment.data.feature_size))
    features = features.astype(np.float32)
    queries = [" ".join(generator.choice(WORDS, size=generator.integers(4, 10))) for _ in range(count)]
    video = retriever.encode(features, duration, window=window)

    def anew() -> list[list[Moment]]:
        return [retriever.retrieve(features, duration, [query], window=window)[0] for query in queries]

    def one_by_one(video: Video = video) -> list[list[Moment]]:
        return [retriever.answer(video, [query])[0] for query in queries]

    def together(video: Video = video) -> list[list[Moment]]:
        return retriever.answer(video, queries)

    wanted = anew()
    for found in (one_by_one(), together()):
        for mine, theirs in zip(found, wanted, strict=True):
            scores = [[moment.score for moment in moments] for moments in (mine, theirs)]
            np.testing.assert_allclose(*scores, atol=1e-4)
    seconds = alternate(
        {"encoded anew per query": anew, "encoded once, asked one by one": one_by_one, "asked together": together},
        ROUNDS,
    )
    return {name: count / value for name, value in seconds.items()}


def main() -> None:
    """Prints the section of the results and writes it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--queries", type=int, default=200)
    asked = parser.parse_args().queries
    retriever = make_retriever()
    rows = []
    for name, (duration, window, share) in VIDEOS.items():
        count = max(1, round(asked * share))
        speeds = measure(retriever, duration, window, count)
        slowest = speeds["encoded anew per query"]
        rows += [[name, way, str(count), f"{speed:.0f}", f"{speed / slowest:.1f}x"] for way, speed in speeds.items()]
    publish(
        "predict",
        [
            "## Prediction",
            "",
            f"`python -m benchmarks.predict`: queries per second of one video, a model of the size of `{EXPERIMENT}`, "
            f"{torch.get_num_threads()} threads, {RATE:g} frame features per second; answers agree. Aim: at least "
            f"{AIM} queries per second of the short video, encoded once.",
            "",
            *table(["video", "way", "queries", "queries/s", "speed"], rows),
        ],
    )


if __name__ == "__main__":
    main()
