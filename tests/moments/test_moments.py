"""The maths of moments: properties, and loops that spell the vectorised code out."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cdn_tune.moments.baselines import best_constant, constant_top, random_top
from cdn_tune.moments.metrics import Answers, measure
from cdn_tune.moments.nms import top_moments
from cdn_tune.moments.spans import iou
from cdn_tune.moments.temporal_map import iou_map, iou_maps, valid_mask

point = st.floats(0, 100, allow_nan=False, width=32)
span = st.tuples(point, point).map(sorted)


@given(first=span, second=span)
def test_iou_properties(first: list[float], second: list[float]) -> None:
    a, b = torch.tensor(first, dtype=torch.float64), torch.tensor(second, dtype=torch.float64)
    value = iou(a, b).item()
    assert 0 <= value <= 1
    assert value == iou(b, a).item()
    if a[1] > a[0]:
        assert iou(a, a).item() == 1


def test_iou_of_numpy_and_pairs() -> None:
    spans = np.array([[0.0, 2.0], [1.0, 3.0], [5.0, 6.0]])
    expected = [[1, 1 / 3, 0], [1 / 3, 1, 0], [0, 0, 1]]
    np.testing.assert_allclose(iou(spans[:, None], spans[None]), expected)


@pytest.mark.parametrize(
    ("clips", "scales", "count"), [(16, [16], 136), (64, [16, 8, 8], 0), (128, [16, 8, 8, 8], 2548), (32, [8, 4, 4], 0)]
)
def test_valid_mask(clips: int, scales: list[int], count: int) -> None:
    mask = valid_mask(clips, scales)
    assert not mask.tril(-1).any()
    assert mask.diagonal().all()
    assert mask[0, clips - 1]  # the whole video
    if count:
        assert int(mask.sum()) == count


def test_iou_maps_are_those_of_each_cell() -> None:
    moment, duration, clips = [2.0, 7.0], 10.0, 5
    single = iou_map(duration, moment, clips)
    for start in range(clips):
        for end in range(start, clips):
            cell = torch.tensor([start * 2.0, (end + 1) * 2.0], dtype=torch.float64)
            assert single[start, end].item() == pytest.approx(
                iou(cell, torch.tensor(moment, dtype=torch.float64)).item()
            )
    many = iou_maps(torch.tensor([duration, 20.0]), torch.tensor([moment, [0.0, 20.0]]), clips)
    torch.testing.assert_close(many[0], single)
    assert many[1, 0, -1].item() == 1


def greedy(scores: torch.Tensor, duration: float, limit: int, threshold: float) -> list[list[float]]:
    """Sorts every cell and suppresses in a loop."""
    clips = len(scores)
    edges = (
        torch.arange(clips + 1, dtype=torch.float32) / clips * torch.tensor(duration, dtype=torch.float32)
    ).double()
    cells = [(s, e) for s in range(clips) for e in range(s, clips)]
    cells.sort(key=lambda cell: -scores[cell].item())
    kept: list[list[float]] = []
    for s, e in cells:
        candidate = [edges[s].item(), edges[e + 1].item()]
        overlaps = [iou(torch.tensor(candidate), torch.tensor(other)).item() for other in kept]
        if all(overlap <= threshold for overlap in overlaps):
            kept.append(candidate)
        if len(kept) == limit:
            break
    return kept


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), clips=st.sampled_from([2, 5, 8]), threshold=st.sampled_from([0.0, 0.37, 1.0]))
def test_top_moments_are_those_of_the_greedy_loop(seed: int, clips: int, threshold: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    scores = torch.rand(3, clips, clips, generator=generator, dtype=torch.float64)
    durations = torch.rand(3, generator=generator, dtype=torch.float64) * 50 + 1
    spans, best = top_moments(scores, durations, 4, threshold)
    for query in range(3):
        expected = greedy(scores[query], durations[query].item(), 4, threshold)
        count = len(expected)
        torch.testing.assert_close(spans[query, :count], torch.tensor(expected, dtype=torch.float64))
        assert spans[query, count:].isnan().all()
        assert best[query, count:].isnan().all()


def test_only_valid_cells_are_answers() -> None:
    scores = torch.zeros(1, 4, 4)
    scores[0, 3, 0] = 9.0  # below the diagonal
    scores[0, 0, 3] = 5.0
    scores[0, 1, 2] = 1.0
    spans, best = top_moments(scores, torch.tensor([8.0]), 3, 0.0, valid=scores[0] == 1.0)
    assert spans[0, 0].tolist() == [2.0, 6.0]
    assert best[0, 0] == 1
    assert spans[0, 1:].isnan().all()


def test_recall_counts_iou_strictly_above_and_miou_is_of_the_first() -> None:
    top = torch.tensor([[[0.0, 5.0], [0.0, 10.0]], [[8.0, 9.0], [float("nan")] * 2]], dtype=torch.float64)
    moments = torch.tensor([[0.0, 10.0], [8.0, 9.0]], dtype=torch.float64)
    answers = Answers(top, moments, torch.tensor([10.0, 10.0]))
    found = measure(answers, ["R1@0.49", "R1@0.5", "R2@0.49", "R2@0.5", "mIoU"]).means
    assert [*found.values()] == pytest.approx([1.0, 0.5, 1.0, 1.0, 0.75])


def test_best_constant_finds_what_was_planted() -> None:
    generator = torch.Generator().manual_seed(0)
    durations = torch.rand(200, generator=generator, dtype=torch.float64) * 30 + 5
    moments = durations[:, None] * torch.tensor([0.25, 0.6], dtype=torch.float64)
    moments[150:] = torch.rand(50, 2, generator=generator, dtype=torch.float64).sort().values * durations[150:, None]
    answer = best_constant(durations, moments, 0.5)
    answers = Answers(constant_top(durations, answer), moments, durations)
    assert measure(answers, ["R1@0.5"]).means["R1@0.5"] >= 0.75
    assert answer == pytest.approx((0.25, 0.6), abs=0.2)


def test_random_moments_follow_their_generator_and_stay_inside() -> None:
    durations = torch.tensor([3.0, 50.0], dtype=torch.float64)
    first = random_top(durations, 5, torch.Generator().manual_seed(1))
    assert torch.equal(first, random_top(durations, 5, torch.Generator().manual_seed(1)))
    assert (first[..., 0] <= first[..., 1]).all()
    assert (first >= 0).all()
    assert (first <= durations[:, None, None]).all()
