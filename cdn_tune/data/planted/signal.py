"""What is planted: word vectors, and frame features that hold the queries of the moments they lie in.

Letters: N frames of a video, D feature size, W word-vector size.

The generative model. Every word has a random vector (normal, of length about 5, as GloVe's). A query's meaning u is
the mean of the vectors of its content words, scaled to length 1. One matrix P [W, D] (normal, variance 1/D) maps
meanings to features. Where the order of words decides, the k-th content word's vector is first shifted by k places,
cyclically (order as a permutation: Sahlgren, Holst, Kanerva, 2008).
Frame t of a video, at time (t + 1/2) / frame_rate, is

    noise (normal, variance 1/D, so of length about 1)  +  snr * sum of u P over the queries whose moment holds t

so a frame outside every moment is noise alone, and snr is the length of one query's signal against that of the noise.
`Difficulty` adds what makes moments harder to find.
"""

import functools
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cdn_tune.data.annotations import Annotation
from cdn_tune.data.planted.grammar import ACTIONS, STOPWORDS, THINGS
from cdn_tune.data.tokenizer import words

DECIMALS = 5
VECTOR_LENGTH = 5.0
BLOCK_BYTES = 64 << 20
_WORDS = tuple(sorted({verb for verb, _, _ in ACTIONS} | {thing for things in THINGS.values() for thing in things}))


def generator_for(seed: int, *names: str) -> np.random.Generator:
    """Returns a generator that depends on the seed and the names alone, not on what was drawn elsewhere."""
    digest = hashlib.sha256("|".join((str(seed), *names)).encode()).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest[:16], "little")))


@functools.lru_cache(maxsize=1 << 16)
def word_vector(word: str, word_size: int, seed: int) -> npt.NDArray[np.float64]:
    """Returns the vector of a word, float64 [W], rounded as it is written to the word-vector file. Read only."""
    values: npt.NDArray[np.float64] = generator_for(seed, "word", word).standard_normal(word_size)
    vector: npt.NDArray[np.float64] = np.round(values * VECTOR_LENGTH / np.sqrt(word_size), DECIMALS)
    vector.setflags(write=False)
    return vector


def projection(word_size: int, feature_size: int, seed: int) -> npt.NDArray[np.float64]:
    """Returns the matrix P from meanings to features, float64 [W, D]."""
    values: npt.NDArray[np.float64] = generator_for(seed, "projection").standard_normal((word_size, feature_size))
    return values / np.float64(np.sqrt(feature_size))


def content_words(query: str) -> list[str]:
    """Returns the words of a query that are planted: all but the stopwords, or all where nothing else is left."""
    tokens = words(query)
    return [token for token in tokens if token not in STOPWORDS] or tokens


def meaning(tokens: Sequence[str], word_size: int, seed: int, ordered: bool = False) -> npt.NDArray[np.float64]:
    """Returns the unit vector that content words stand for together, float64 [W]; zero for no word.

    Args:
        tokens: The content words.
        word_size: Size of a word vector W.
        seed: Seed of the planting.
        ordered: Whether their order matters: the k-th word's vector is shifted by k places, from 0, cyclically.
    """
    total = np.zeros(word_size)
    for place, token in enumerate(tokens):
        total += np.roll(word_vector(token, word_size, seed), place if ordered else 0)
    return total / max(float(np.sqrt((total * total).sum())), 1e-12)


def frame_span(start: float, end: float, frame_rate: float, frames: int) -> tuple[int, int]:
    """Returns first and last (open) of a video's N frames whose time lies in [start, end) seconds; at least one."""
    first = min(max(int(np.ceil(start * frame_rate - 0.5)), 0), frames - 1)
    return first, min(max(int(np.ceil(end * frame_rate - 0.5)), first + 1), frames)


def frame_count(duration: float, frame_rate: float) -> int:
    """Returns the number of frames N of a video of `duration` seconds, at least 1."""
    return max(1, round(duration * frame_rate))


@dataclass(frozen=True, eq=False)
class Signal:
    """What is planted from start to end of a span of a video, in seconds: a unit vector, float64 [W]."""

    start: float
    end: float
    meaning: npt.NDArray[np.float64]


@dataclass(frozen=True)
class Difficulty:
    """How hard planted moments are to find. The defaults are the easiest: signals of queries alone, as annotated.

    Attributes:
        snr: Length of a query's signal against that of a frame's noise.
        distractors: Moments without a query in every video, each like a query but for one word.
        paraphrases: Share of content words whose signal is that of a synonym, a vector of its own that no query shows.
        jitter: Standard deviation of a signal's ends around the annotated ones, as a share of the moment's length.
    """

    snr: float = 1.0
    distractors: int = 0
    paraphrases: float = 0.0
    jitter: float = 0.0


def signals_of(
    video: str,
    items: Sequence[Annotation],
    difficulty: Difficulty,
    word_size: int,
    seed: int,
    ordered: bool = False,
) -> list[Signal]:
    """Returns what is planted into a video: the signals of its queries, then those of its distractors.

    It depends on the video's own queries (none for a video of noise alone), the seed, the difficulty and whether the
    order of words decides (`ordered`) alone.
    """
    signals = []
    for item, (first, last) in [(each, moment) for each in items for moment in each.moments]:
        generator = generator_for(seed, "query", video, item.query, repr(first), repr(last))
        tokens = content_words(item.query)
        swapped = generator.random(len(tokens)) < difficulty.paraphrases
        shifts = generator.standard_normal(2) * difficulty.jitter * (last - first)
        named = [f"{token}/synonym" if swap else token for token, swap in zip(tokens, swapped, strict=True)]
        start, end = float(first + shifts[0]), float(last + shifts[1])
        if end <= start:
            start, end = first, last
        signals.append(Signal(max(start, 0.0), min(end, item.duration), meaning(named, word_size, seed, ordered)))
    generator = generator_for(seed, "distractors", video)
    for _ in range(difficulty.distractors if items else 0):
        item = items[int(generator.integers(len(items)))]
        tokens = content_words(item.query)
        others = [word for word in _WORDS if word not in tokens]
        tokens[int(generator.integers(len(tokens)))] = others[int(generator.integers(len(others)))]
        length = min((item.end - item.start) * float(generator.uniform(0.7, 1.3)), item.duration)
        start = float(generator.uniform(0, item.duration - length))
        signals.append(Signal(start, start + length, meaning(tokens, word_size, seed, ordered)))
    return signals


def planted_frames(
    video: str,
    frames: int,
    planted: Sequence[Signal],
    matrix: npt.NDArray[np.float64],
    frame_rate: float,
    snr: float,
    seed: int,
) -> Iterator[npt.NDArray[np.float32]]:
    """Yields the features of a video in blocks of rows, float32 [rows, D], so that memory stays bounded.

    Args:
        video: Its name; with the seed it determines the noise.
        frames: Number of frames N.
        planted: Its signals.
        matrix: P [W, D].
        frame_rate: Frames per second.
        snr: Length of one signal against that of the noise.
        seed: Seed of the planting.
    """
    feature_size = matrix.shape[1]
    signals = []
    for item in planted:
        # Summed without BLAS and rounded, so that the bytes do not depend on the machine's linear algebra.
        vector = np.einsum("w,wd->d", item.meaning, matrix) * snr
        signals.append((*frame_span(item.start, item.end, frame_rate, frames), np.round(vector, 6).astype(np.float32)))
    generator = generator_for(seed, "noise", video)
    rows = max(1, BLOCK_BYTES // (4 * feature_size))
    scale = np.float32(1 / np.sqrt(feature_size))
    for at in range(0, frames, rows):
        block = generator.standard_normal((min(rows, frames - at), feature_size), dtype=np.float32) * scale
        for first, last, signal in signals:
            block[max(first - at, 0) : max(last - at, 0)] += signal
        yield block
