"""Metrics of each query: ranks, average precision, groups; equal to loops and to the recorded arrays."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cdn_tune.config.tables import metric_names, table_of
from cdn_tune.moments.baselines import best_constant, best_constant_list, constant_list_top
from cdn_tune.moments.metrics import (
    AP_IOUS,
    Answers,
    average_precision,
    discounted_recall,
    first_iou,
    mean_average_precision,
    measure,
    query_groups,
    recall,
    recall_of_all,
)
from cdn_tune.moments.spans import iou

PARITY = Path(__file__).resolve().parents[3] / "shared" / "parity"


def random_queries(queries: int, moments: int, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    durations = torch.rand(queries, generator=generator, dtype=torch.float64) * 50 + 5
    truth = torch.rand(queries, 2, generator=generator, dtype=torch.float64).sort().values * durations[:, None]
    top = torch.rand(queries, moments, 2, generator=generator, dtype=torch.float64).sort().values
    top = top * durations[:, None, None]
    top[::3, moments // 2 :] = torch.nan
    top[::7] = torch.nan
    return top, truth, durations


def interpolated_average_precision(overlaps: list[float], threshold: float) -> float:
    """Area under the interpolated precision-recall curve of one query with one true moment, spelt out."""
    found, precisions, recalls = False, [], []
    for rank, overlap in enumerate(overlaps[:10], start=1):
        hit = overlap > threshold and not found
        found = found or hit
        precisions.append((1 if found else 0) / rank)
        recalls.append(1.0 if found else 0.0)
    envelope = [max(precisions[index:], default=0.0) for index in range(len(precisions))]
    before = [0.0, *recalls]
    return sum((now - then) * height for now, then, height in zip(recalls, before, envelope, strict=False))


def test_average_precision_is_the_area_under_the_curve() -> None:
    top, truth, durations = random_queries(60, 14, 0)
    found = Answers(top, truth, durations)
    for query in range(len(top)):
        overlaps = iou(top[query], truth[query].expand_as(top[query])).nan_to_num(nan=0.0).tolist()
        for threshold in (0.5, 0.75):
            expected = interpolated_average_precision(overlaps, threshold)
            assert average_precision(found, threshold)[query].item() == pytest.approx(expected)
    mean = torch.stack([average_precision(found, each) for each in AP_IOUS]).mean(dim=0)
    assert torch.equal(mean_average_precision(found), mean)
    assert 0 < mean.mean() < 1


def test_average_precision_looks_at_ten_moments() -> None:
    top = torch.tensor([0.0, 1.0], dtype=torch.float64).repeat(1, 11, 1)
    top[0, 10] = torch.tensor([5.0, 9.0])
    found = Answers(top, torch.tensor([[5.0, 9.0]]), torch.tensor([9.0]))
    assert found.rank(0.5).item() == 11
    assert average_precision(found, 0.5).item() == 0


def area_under_precision_recall(overlaps: np.ndarray, threshold: float) -> float:
    """AP as its definition has it: greedy matches, then the interpolated curve integrated over recall; [n, K]."""
    taken: set[int] = set()
    right = []
    for row in overlaps:
        free = [each for each in np.argsort(-row) if each not in taken and row[each] > threshold]
        right.append(bool(free))
        taken |= set(free[:1])
    points = [(sum(right[:n]) / overlaps.shape[1], sum(right[:n]) / n) for n in range(1, len(right) + 1)]
    steps = sorted({0.0, *(recall for recall, _ in points)})
    return sum(
        (high - low) * max(precision for recall, precision in points if recall >= high) for low, high in pairwise(steps)
    )


def test_average_precision_of_several_true_moments() -> None:
    top, _, durations = random_queries(60, 10, 3)
    generator = torch.Generator().manual_seed(4)
    truth = (
        torch.rand(60, 4, 2, generator=generator, dtype=torch.float64).sort(dim=-1).values * durations[:, None, None]
    )
    counts = torch.arange(60) % 4 + 1
    truth[torch.arange(4) >= counts[:, None]] = torch.nan
    found = Answers(top, truth, durations)
    for threshold in (0.2, 0.5, 0.75):
        ours = average_precision(found, threshold)
        for query in range(60):
            overlaps = found.overlaps[query, :, : counts[query]].numpy()
            assert ours[query].item() == pytest.approx(area_under_precision_recall(overlaps, threshold))
    assert 0 < mean_average_precision(found).mean() < 1


def test_several_true_moments_by_hand() -> None:
    truth = torch.tensor([[[0.0, 10.0], [20.0, 30.0]]])
    top = torch.tensor([[[0.0, 10.0], [0.0, 9.0], [20.0, 29.0]]])
    found = Answers(top, truth, torch.tensor([30.0]))
    assert average_precision(found, 0.5).item() == pytest.approx((1 + 2 / 3) / 2)  # the second is of a moment taken
    assert average_precision(found, 0.95).item() == 0.5  # only the first, and one of two is never found
    assert first_iou(Answers(top.flip(1), truth, torch.tensor([30.0]))).item() == pytest.approx(0.9)
    assert recall(Answers(top.flip(1), truth, torch.tensor([30.0])), 1, 0.7).item() == 1  # the best true moment counts


@pytest.mark.parametrize("closed", [False, True])
def test_an_iou_equal_to_the_threshold_is_a_hit_only_if_closed(closed: bool) -> None:
    found = Answers(torch.tensor([[[0.0, 4.0]]]), torch.tensor([[0.0, 2.0]]), torch.tensor([8.0]), closed=closed)
    assert found.rank(0.5).item() == closed
    assert recall_of_all(found, 1, 0.5).item() == closed
    assert discounted_recall(found, 1, 0.5).item() == closed * 0.75
    assert average_precision(found, 0.5).item() == closed  # with closed, QVHighlights' own


def test_discounted_recall_by_hand() -> None:
    top = torch.tensor([[[0.0, 10.0], [1.0, 8.0], [2.0, 8.0]]])
    found = Answers(top, torch.tensor([[2.0, 8.0]]), torch.tensor([10.0]))
    assert discounted_recall(found, 1, 0.5).item() == pytest.approx(0.8 * 0.8)  # IoU 0.6, both ends 2 s off of 10
    assert discounted_recall(found, 1, 0.7).item() == 0  # no hit
    assert discounted_recall(found, 2, 0.5).item() == pytest.approx(0.9)  # the better of two hits
    assert discounted_recall(found, 3, 0.5).item() == 1  # as annotated
    several = Answers(top, torch.tensor([[[0.0, 10.0], [2.0, 8.0]]]), torch.tensor([10.0]))
    assert discounted_recall(several, 1, 0.5).item() == 1  # the true moment with which the answer counts most


def test_recall_of_all_by_hand() -> None:
    truth = torch.tensor([[[0.0, 10.0], [20.0, 30.0], [21.0, 30.0]]])
    top = torch.tensor([[[20.0, 30.0], [50.0, 60.0], [1.0, 10.0]]])
    found = Answers(top, truth, torch.tensor([60.0]))
    assert found.several
    shares = [recall_of_all(found, n, 0.7).item() for n in (1, 2, 3)]
    assert shares == pytest.approx([2 / 3, 2 / 3, 1])  # one answer hits two that overlap
    assert [recall(found, n, 0.7).item() for n in (1, 2, 3)] == [1, 1, 1]
    assert discounted_recall(found, 1, 0.7).item() == 1


@given(st.integers(0, 10_000), st.integers(1, 4), st.sampled_from([0.0, 0.1, 0.3, 0.5]), st.booleans())
@settings(max_examples=60, deadline=None)
def test_recalls_bound_one_another(seed: int, most: int, threshold: float, closed: bool) -> None:
    top, _, durations = random_queries(20, 6, seed)
    generator = torch.Generator().manual_seed(seed)
    truth = torch.rand(20, most, 2, generator=generator, dtype=torch.float64).sort(dim=-1).values
    truth = truth * durations[:, None, None]
    truth[torch.arange(most) >= (torch.arange(20) % most + 1)[:, None]] = torch.nan
    found = Answers(top, truth, durations, closed=closed)
    assert found.several == (most > 1)
    before = torch.zeros(20, dtype=torch.float64)
    for n in (1, 3, 6):
        some, every, worth = (kind(found, n, threshold) for kind in (recall, recall_of_all, discounted_recall))
        assert torch.equal(some, (every > 0).double())
        assert bool((every <= some).all())
        assert bool((worth <= some).all())
        assert torch.equal(some > 0, worth > 0)
        assert bool((worth >= before).all())  # never falls with n
        assert not some[::7].any()  # padding alone is no hit, also of a threshold of 0 that is closed
        right = found.hits(found.overlaps[:, :n], threshold)
        assert not right[top[:, :n].isnan().any(dim=-1)].any()
        single = found.true.sum(dim=1) == 1
        assert torch.equal(every[single], some[single])
        before = worth


def test_names_of_metrics_that_need_several_true_moments() -> None:
    names = metric_names([1, 5], [0.5])
    assert names == ("R1@0.5", "R5@0.5", "mIoU", "dR1@0.5", "dR5@0.5", "allR1@0.5", "allR5@0.5", "mAP@0.5", "mAP")
    assert set(names) - set(metric_names([1, 5], [0.5], several=False)) == {"allR1@0.5", "allR5@0.5"}
    assert metric_names([1], [0.5], on_val=True) == ("R1@0.5", "mIoU")
    top, truth, durations = random_queries(30, 10, 7)
    found = measure(Answers(top, truth, durations), names)
    assert np.array_equal(found.only(["allR5@0.5"]).values, found.only(["R5@0.5"]).values)
    assert {name: table_of(name) for name in ("R1@0.5", "dR5@0.7", "allR1@0.3", "of@another package")} == {
        "R1@0.5": "",
        "dR5@0.7": "discounted recall",
        "allR1@0.3": "recall of all true moments",
        "of@another package": "",
    }


def test_metrics_are_those_of_a_loop() -> None:
    top, truth, durations = random_queries(80, 5, 1)
    names = [f"R{n}@{threshold}" for n in (1, 2, 5) for threshold in (0.1, 0.3, 0.5)]
    found = measure(Answers(top, truth, durations), [*names, "mIoU"])
    assert found.names == (*names, "mIoU")
    for row, (spans, moment) in enumerate(zip(top, truth, strict=True)):
        overlaps = [iou(span, moment).nan_to_num(nan=0.0).item() for span in spans]
        expected = [float(any(each > t for each in overlaps[:n])) for n in (1, 2, 5) for t in (0.1, 0.3, 0.5)]
        assert found.values[row].tolist() == [*expected, overlaps[0]]
    assert found.means["R2@0.3"] == found.values[:, 4].mean()
    assert found.only(["mIoU"]).means == {"mIoU": found.means["mIoU"]}


def test_a_hit_lies_strictly_above_and_the_first_of_equals_counts() -> None:
    top = torch.tensor([[[0.0, 5.0], [0.0, 6.0], [0.0, 6.0]]], dtype=torch.float64)
    found = Answers(top, torch.tensor([[0.0, 10.0]]), torch.tensor([10.0]))
    assert (found.rank(0.5).tolist(), found.rank(0.6).tolist()) == ([2], [0])
    assert found.scores.tolist() == [[-1, -2, -3]]


def test_what_cannot_be_measured_is_refused() -> None:
    with pytest.raises(ValueError, match="empty"):
        Answers(torch.zeros(0, 1, 2), torch.zeros(0, 2), torch.zeros(0))
    with pytest.raises(ValueError, match="want top"):
        Answers(torch.zeros(2, 2), torch.zeros(2, 2), torch.zeros(2))
    with pytest.raises(ValueError, match=r"R2@0\.5 needs 2 moments per query, and there are 1"):
        measure(Answers(torch.zeros(1, 1, 2), torch.ones(1, 2), torch.ones(1)), ["R2@0.5"])


@pytest.mark.skipif(not PARITY.is_dir(), reason=f"{PARITY} is absent")
@pytest.mark.parametrize("name", ["metrics16", "metrics64"])
def test_recorded_arrays(name: str) -> None:
    with np.load(PARITY / f"{name}.npz", allow_pickle=False) as arrays:
        top, moments, ious = arrays["top5"], arrays["moments"], arrays["tious"].tolist()
        expected, recalls, miou = arrays["recall"], arrays["recalls"].tolist(), float(arrays["miou"])
    found = Answers(top, moments, np.ones(len(top)))
    ours = [[recall(found, count, threshold).mean().item() for threshold in ious] for count in recalls]
    np.testing.assert_array_equal(ours, expected)
    assert measure(found, ["mIoU"]).means["mIoU"] == pytest.approx(miou, abs=1e-6)


def test_the_constant_list_starts_with_the_best_constant_and_covers_more() -> None:
    _, moments, durations = random_queries(300, 1, 2)
    keep = moments[:, 1] > moments[:, 0] + 0.5
    moments, durations = moments[keep], durations[keep]
    answers = best_constant_list(durations, moments, 0.5, 6, steps=20)
    assert answers[0][:2] == best_constant(durations, moments, 0.5, steps=20)
    shares = [answer[2] for answer in answers]
    assert shares == sorted(shares, reverse=True)
    assert len({answer[:2] for answer in answers}) == len(answers)
    found = Answers(constant_list_top(durations, answers), moments, durations)
    recalls = measure(found, [f"R{n}@0.5" for n in (1, 3, 6)]).means
    np.testing.assert_allclose([*recalls.values()], [sum(shares[:n]) for n in (1, 3, 6)])


def test_groups_share_the_queries_out() -> None:
    durations = torch.full((6,), 60.0, dtype=torch.float64)
    moments = torch.tensor(
        [[0.0, 5.0], [0.0, 6.0], [20.0, 40.0], [50.0, 60.0], [0.0, 60.0], [58.0, 60.0]], dtype=torch.float64
    )
    groups = query_groups(durations, moments, [3, 5, 6, 10, 11, 20])
    for masks in groups.values():
        assert torch.stack(list(masks.values())).sum(dim=0).tolist() == [1] * 6
    assert groups["length_seconds"]["up to 5 s"].nonzero().flatten().tolist() == [0, 5]
    assert groups["length_share"]["up to 10 %"].nonzero().flatten().tolist() == [0, 1, 5]
    assert groups["length_share"]["above 50 %"].nonzero().flatten().tolist() == [4]
    assert groups["position"]["last third"].nonzero().flatten().tolist() == [3, 5]
    assert groups["query_words"]["5-10 words"].nonzero().flatten().tolist() == [2, 3]
    assert "above 30 s" in groups["length_seconds"]
    assert "10-25 %" not in query_groups(durations[:1], moments[:1], [1])["length_share"]
