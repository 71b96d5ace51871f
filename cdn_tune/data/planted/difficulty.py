"""Difficulty: what stands between the annotations of a planted video and the signals in its features."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cdn_tune.data.annotations import Annotation
from cdn_tune.data.planted.grammar import ACTIONS, THINGS
from cdn_tune.data.planted.signal import Signal, content_words, generator_for, word_vector

_WORDS = tuple(sorted({verb for verb, _, _ in ACTIONS} | {thing for things in THINGS.values() for thing in things}))


@dataclass(frozen=True)
class Difficulty:
    """How hard planted moments are to find. The defaults are the easiest: what is asked for is there, and nothing else.

    Attributes:
        snr: Length of a query's signal against that of a frame's noise.
        distractors: Moments in every video that nobody asks for, each like a query but for one word.
        paraphrases: Share of content words whose signal is that of a synonym, a vector of its own that no query shows.
        jitter: Standard deviation of a signal's ends around the annotated ones, as a share of the moment's length.
    """

    snr: float = 1.0
    distractors: int = 0
    paraphrases: float = 0.0
    jitter: float = 0.0


def signals_of(
    video: str, items: Sequence[Annotation], difficulty: Difficulty, word_size: int, seed: int
) -> list[Signal]:
    """Returns what is planted into a video: the signals of its queries, then those of its distractors.

    It depends on the video's own queries, the seed and the difficulty alone.

    Args:
        video: Its name.
        items: Its queries and moments; none for a video of noise alone.
        difficulty: How hard they are to find.
        word_size: Size of a word vector W.
        seed: Seed of the planting.
    """
    signals = []
    for item in items:
        generator = generator_for(seed, "query", video, item.query, repr(item.start), repr(item.end))
        tokens = content_words(item.query)
        swapped = generator.random(len(tokens)) < difficulty.paraphrases
        shifts = generator.standard_normal(2) * difficulty.jitter * (item.end - item.start)
        named = [f"{token}/synonym" if swap else token for token, swap in zip(tokens, swapped, strict=True)]
        start, end = float(item.start + shifts[0]), float(item.end + shifts[1])
        if end <= start:
            start, end = item.start, item.end
        signals.append(Signal(max(start, 0.0), min(end, item.duration), direction(named, word_size, seed)))
    generator = generator_for(seed, "distractors", video)
    for _ in range(difficulty.distractors if items else 0):
        item = items[int(generator.integers(len(items)))]
        tokens = content_words(item.query)
        others = [word for word in _WORDS if word not in tokens]
        tokens[int(generator.integers(len(tokens)))] = others[int(generator.integers(len(others)))]
        length = min((item.end - item.start) * float(generator.uniform(0.7, 1.3)), item.duration)
        start = float(generator.uniform(0, item.duration - length))
        signals.append(Signal(start, start + length, direction(tokens, word_size, seed)))
    return signals


def direction(tokens: Sequence[str], word_size: int, seed: int) -> npt.NDArray[np.float64]:
    """Returns the unit vector that some words stand for together, float64 [W]; zero for no word."""
    total = np.zeros(word_size)
    for token in tokens:
        total += word_vector(token, word_size, seed)
    return total / max(float(np.sqrt((total * total).sum())), 1e-12)
