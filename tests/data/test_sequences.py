"""Sequences: features of another length, the grid of seconds, crops, queries read together."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cdn_tune.data import sequences
from cdn_tune.moments.grid import Grid

GRID = Grid(clip_size=16, clip_stride=8, fps=25.0)


@given(steps=st.integers(1, 70), length=st.integers(1, 33))
def test_resizing_keeps_what_is_linear(steps: int, length: int) -> None:
    """Constants stay, order stays, and the middle of a ramp stays the middle."""
    ramp = torch.stack([torch.arange(steps).float(), torch.ones(steps)], dim=1)
    found = sequences.resized(ramp, length)
    assert found.shape == (length, 2)
    torch.testing.assert_close(found[:, 1], torch.ones(length))
    assert bool((found[:, 0].diff() >= 0).all())
    assert found[:, 0].mean().item() == pytest.approx((steps - 1) / 2, abs=1e-3)


def test_seconds_and_steps() -> None:
    moments = np.array([[0.0, 0.32], [1.0, 9.0], [30.0, 50.0]])
    steps = GRID.to_steps(moments)
    assert steps[0].tolist() == pytest.approx([-1.0, 0.0])  # the first clip's start and centre
    np.testing.assert_allclose(GRID.to_seconds(steps), moments)


@settings(max_examples=60)
@given(steps=st.integers(20, 200), seed=st.integers(0, 10_000))
def test_crops_keep_their_moments(steps: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    start = generator.uniform(0, steps - 12)
    wanted = start + np.array([[0.0, 4.0], [3.0, 8.0]])
    found = sequences.crop(steps, wanted, 0.5, 64, lambda low, high: int(generator.integers(low, high + 1)))
    assert 0 <= found.first <= found.first + found.length <= steps
    assert found.length == 64 if steps > 64 else 0.9 * steps <= found.length <= steps
    assert found.targets.min() >= -0.5
    assert found.targets.max() <= found.length + 0.5
    shares = np.diff(found.targets) / np.diff(wanted)
    assert bool((shares > 0.5).all())
    assert bool((shares <= 1 + 1e-9).all())


def test_crops_that_cannot_be() -> None:
    apart = np.array([[0.0, 10.0], [150.0, 160.0]])
    with pytest.raises(ValueError, match="no 64 of 200 steps hold all of 2 moments"):
        sequences.crop(200, apart, 0.5, 64, lambda low, _: low)
    whole = sequences.crop(50, apart, 0.5, 64, lambda low, _: low, ratio=None)
    assert (whole.first, whole.length) == (0, 50)


def test_groups_of_queries() -> None:
    generator = np.random.default_rng(0)
    moments = np.array([[5.0, 9.0], [0.0, 3.0], [1.0, 30.0], [2.0, 10.0], [4.0, 11.0]])
    groups = sequences.groups_within(moments, 10.0, 6, generator)
    assert [group.tolist() for group in groups] == [[1, 3, 0], [2], [4]]
    few = sequences.groups_within(moments, 10.0, 2, generator)
    assert [len(group) for group in few] == [2, 1, 1]
    cut = sequences.shuffled_groups(7, 3, generator)
    assert [len(group) for group in cut] == [3, 3, 1]
    assert sorted(np.concatenate(cut).tolist()) == list(range(7))


def test_the_shortest_crop_in_seconds() -> None:
    assert sequences.reach(100, 32, GRID) == pytest.approx((8 * 31 + 16) / 25)
    assert sequences.reach(21, 32, GRID) == pytest.approx((8 * 18 + 16) / 25)
    assert sequences.reach(21, 32, GRID, ratio=None) == pytest.approx((8 * 20 + 16) / 25)
