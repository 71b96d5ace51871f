from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cdn_tune.data.clips import resample, to_fixed_length

from .conftest import SHARED

PARITY = SHARED / "parity" / "data.npz"


def plain(features: np.ndarray, length: int) -> np.ndarray:
    """The definition, row by row."""
    norms = np.linalg.norm(features, axis=1, keepdims=True)
    frames = features / np.where(norms > 0, norms, 1)
    bounds = [round(i * len(frames) / length) for i in range(length + 1)]
    rows = []
    for first, last in itertools.pairwise(bounds):
        rows.append(frames[first:last].mean(axis=0) if first < last else frames[min(first, len(frames) - 1)])
    return np.stack(rows)


@pytest.mark.skipif(not PARITY.exists(), reason=f"{PARITY} is absent")
@pytest.mark.parametrize("case", range(8))
def test_legacy_equals_the_published_clips(case: int) -> None:
    with np.load(PARITY) as arrays:
        features, expected = arrays[f"features{case}"], arrays[f"clips{case}"]
    clips = to_fixed_length(features, len(expected), legacy=True)
    np.testing.assert_allclose(clips.numpy(), expected, atol=1e-5, rtol=0)


@given(st.integers(1, 70), st.integers(1, 40), st.integers(0, 1000))
def test_equals_the_definition(count: int, length: int, seed: int) -> None:
    features = np.random.default_rng(seed).standard_normal((count, 3))
    clips = to_fixed_length(features, length)
    assert clips.dtype == torch.float32
    np.testing.assert_allclose(clips.numpy(), plain(features, length), atol=1e-5)


@given(st.integers(1, 30), st.integers(1, 20), st.floats(1e-3, 1e3))
def test_scale_of_a_frame_does_not_matter(count: int, length: int, scale: float) -> None:
    features = np.random.default_rng(count).standard_normal((count, 4))
    torch.testing.assert_close(to_fixed_length(features * scale, length), to_fixed_length(features, length))


@pytest.mark.parametrize("count", [40, 256, 257, 700])
def test_every_frame_counts_unless_legacy(count: int) -> None:
    features = np.random.default_rng(0).standard_normal((count, 4)).astype(np.float32)
    changed = features.copy()
    changed[-1] = [0, 0, 0, 9]
    assert not torch.equal(to_fixed_length(features, 16), to_fixed_length(changed, 16))
    assert torch.equal(to_fixed_length(features, 16, legacy=True), to_fixed_length(changed, 16, legacy=True))


def test_zero_frames_stay_zero() -> None:
    clips = to_fixed_length(np.zeros((5, 3)), 8)
    assert torch.equal(clips, torch.zeros(8, 3))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_numpy_and_torch_give_the_same(dtype: torch.dtype) -> None:
    features = torch.randn(9, 4, generator=torch.Generator().manual_seed(0)).to(dtype)
    before = features.clone()
    assert torch.equal(to_fixed_length(features, 4), to_fixed_length(features.numpy(), 4))
    assert torch.equal(features, before)


@pytest.mark.parametrize(("shape", "length"), [((0, 4), 3), ((4,), 3), ((2, 4, 4), 3), ((4, 4), 0)])
def test_wrong_shapes_are_refused(shape: tuple[int, ...], length: int) -> None:
    with pytest.raises(ValueError, match="must be"):
        to_fixed_length(np.ones(shape), length)


@given(st.integers(1, 40), st.integers(1, 20), st.integers(1, 50), st.booleans())
def test_reading_in_blocks_gives_the_same(count: int, length: int, at_once: int, legacy: bool) -> None:
    frames = np.random.default_rng(count).standard_normal((count, 3), dtype=np.float32)
    read: list[int] = []

    def block(first: int, last: int) -> np.ndarray:
        read.append(last - first)
        return frames[first:last]

    assert torch.equal(resample(block, count, length, legacy, at_once), to_fixed_length(frames, length, legacy))
    assert max(read) <= max(at_once, -(-count // length) + 1)
