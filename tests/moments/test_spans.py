"""Sliding windows cover the video; suppression over any moments agrees with that over a map."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cdn_tune.moments.nms import top_moments, top_spans
from cdn_tune.moments.spans import sliding_windows


@given(
    duration=st.floats(0.5, 5000), frames=st.integers(1, 2000), window=st.floats(0.1, 6000), share=st.floats(0.01, 1)
)
def test_windows_cover_the_video_and_are_alike(duration: float, frames: int, window: float, share: float) -> None:
    windows = sliding_windows(duration, frames, window, window * share)
    assert windows[0][0] == 0
    assert windows[-1][1] == frames
    assert len({last - first for first, last in windows}) == 1
    for (first, last), (then, _) in pairwise(windows):
        assert first < then <= last


def test_windows_as_documented() -> None:
    assert sliding_windows(100.0, 50, 40.0, 20.0) == [(0, 20), (10, 30), (20, 40), (30, 50)]
    assert sliding_windows(90.0, 45, 40.0, 20.0) == [(0, 20), (10, 30), (20, 40), (25, 45)]  # the last ends with it
    assert sliding_windows(30.0, 45, 40.0, 20.0) == [(0, 45)]


@pytest.mark.parametrize(
    ("window", "stride"), [(0.0, 1.0), (float("nan"), 1.0), (float("inf"), 1.0), (2.0, 0.0), (2.0, 3.0)]
)
def test_bad_windows(window: float, stride: float) -> None:
    with pytest.raises(ValueError, match="must be positive"):
        sliding_windows(10.0, 10, window, stride)


def test_any_moments_are_suppressed_as_those_of_a_map() -> None:
    clips, duration = 8, 16.0
    scores = torch.rand(5, clips, clips, generator=torch.Generator().manual_seed(0))
    cells = torch.ones(clips, clips).triu().nonzero()
    spans = (cells + torch.tensor([0, 1])) * (duration / clips)
    wanted = top_moments(scores, torch.full((5,), duration), 6, 0.4)
    before = scores.clone()
    found = top_spans(scores[:, cells[:, 0], cells[:, 1]], spans, 6, 0.4)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(scores, before)


def test_no_moments_have_no_answers() -> None:
    spans, scores = top_spans(torch.zeros(2, 0), torch.zeros(0, 2), 3, 0.5)
    assert spans.shape == (2, 3, 2)
    assert scores.isnan().all()
    with pytest.raises(ValueError, match="want scores"):
        top_spans(torch.zeros(2, 3), torch.zeros(2, 2), 3, 0.5)
    with pytest.raises(ValueError, match="limit"):
        top_spans(torch.zeros(2, 3), torch.zeros(3, 2), 0, 0.5)
