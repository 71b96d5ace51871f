"""What is planted: word vectors, and frame features that carry the queries of the moments they lie in.

Letters: N frames of a video, D feature size, W word-vector size.

The generative model. Every word has a random vector (normal, of length about 5, as GloVe's). A query's meaning u is
the mean of the vectors of its content words, scaled to length 1. One matrix P [W, D] (normal, variance 1/D) maps
meanings to features.
Frame t of a video, at time (t + 1/2) / frame_rate, is

    noise (normal, variance 1/D, so of length about 1)  +  snr * sum of u P over the queries whose moment holds t

so a frame outside every moment is noise alone, and snr is the length of one query's signal against that of the noise.
`difficulty.py` adds what makes moments harder to find.
"""

import functools
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cdn_tune.data.planted.grammar import STOPWORDS
from cdn_tune.data.tokenizer import words

DECIMALS = 5
VECTOR_LENGTH = 5.0
BLOCK_BYTES = 64 << 20


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


def meaning(query: str, word_size: int, seed: int) -> npt.NDArray[np.float64]:
    """Returns the unit vector a query stands for, float64 [W]; zero for a query without words."""
    total = np.zeros(word_size)
    for token in content_words(query):
        total += word_vector(token, word_size, seed)
    return total / max(float(np.sqrt((total * total).sum())), 1e-12)


def frame_span(start: float, end: float, frame_rate: float, frames: int) -> tuple[int, int]:
    """Returns first and last (open) frame whose time lies in [start, end); at least one frame.

    Args:
        start: Start of the moment, in seconds.
        end: End of the moment, in seconds.
        frame_rate: Frames per second.
        frames: Number of frames N of the video.
    """
    first = min(max(int(np.ceil(start * frame_rate - 0.5)), 0), frames - 1)
    return first, min(max(int(np.ceil(end * frame_rate - 0.5)), first + 1), frames)


def frame_count(duration: float, frame_rate: float) -> int:
    """Returns the number of frames N of a video of `duration` seconds, at least 1."""
    return max(1, round(duration * frame_rate))


@dataclass(frozen=True, eq=False)
class Signal:
    """What is planted over a span of a video.

    Attributes:
        start: Its start, in seconds.
        end: Its end, in seconds.
        meaning: Unit vector, float64 [W].
    """

    start: float
    end: float
    meaning: npt.NDArray[np.float64]


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
