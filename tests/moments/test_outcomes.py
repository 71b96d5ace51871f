"""What each query adds: ranks, average precision, groups; equal to loops and to the recorded arrays."""

from pathlib import Path

import numpy as np
import pytest
import torch

from cdn_tune.moments.baselines import best_constant, best_constant_list, constant_list_top
from cdn_tune.moments.groups import query_groups
from cdn_tune.moments.metrics import measure
from cdn_tune.moments.outcomes import AP_IOUS, outcomes
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
    top, truth, _ = random_queries(60, 14, 0)
    found = outcomes(top, truth, AP_IOUS)
    for query in range(len(top)):
        overlaps = iou(top[query], truth[query].expand_as(top[query])).nan_to_num(nan=0.0).tolist()
        for threshold in (0.5, 0.75):
            expected = interpolated_average_precision(overlaps, threshold)
            assert found.average_precision(threshold)[query].item() == pytest.approx(expected)
    mean = torch.stack([found.average_precision(each) for each in AP_IOUS]).mean(dim=0)
    assert torch.equal(found.mean_average_precision(), mean)
    assert 0 < mean.mean() < 1


def test_average_precision_looks_at_ten_moments() -> None:
    top = torch.tensor([0.0, 1.0], dtype=torch.float64).repeat(1, 11, 1)
    top[0, 10] = torch.tensor([5.0, 9.0])
    found = outcomes(top, torch.tensor([[5.0, 9.0]]), [0.5])
    assert found.rank.item() == 11
    assert found.average_precision(0.5).item() == 0


def test_outcomes_average_to_the_metrics() -> None:
    top, truth, _ = random_queries(80, 5, 1)
    ious, recalls = (0.1, 0.3, 0.5), (1, 2, 5)
    metrics, found = measure(top, truth, recalls, ious), outcomes(top, truth, ious)
    for row, count in enumerate(recalls):
        for column, threshold in enumerate(ious):
            assert found.recall(count, threshold).mean() == metrics.recall[row, column]
    assert found.iou.mean().item() == pytest.approx(metrics.miou, abs=1e-14)


def test_a_hit_lies_strictly_above_and_the_first_of_equals_counts() -> None:
    top = torch.tensor([[[0.0, 5.0], [0.0, 6.0], [0.0, 6.0]]], dtype=torch.float64)
    found = outcomes(top, torch.tensor([[0.0, 10.0]]), [0.5, 0.6])
    assert found.rank.tolist() == [[2, 0]]


def test_what_cannot_be_measured_is_refused() -> None:
    with pytest.raises(ValueError, match="empty"):
        outcomes(torch.zeros(0, 1, 2), torch.zeros(0, 2), [0.5])
    with pytest.raises(ValueError, match="want top"):
        outcomes(torch.zeros(2, 2), torch.zeros(2, 2), [0.5])
    with pytest.raises(ValueError, match=r"0\.4 is not among"):
        outcomes(torch.zeros(1, 1, 2), torch.ones(1, 2), [0.5]).recall(1, 0.4)


@pytest.mark.skipif(not PARITY.is_dir(), reason=f"{PARITY} is absent")
@pytest.mark.parametrize("name", ["metrics16", "metrics64"])
def test_recorded_arrays(name: str) -> None:
    with np.load(PARITY / f"{name}.npz", allow_pickle=False) as arrays:
        top, moments, ious = arrays["top5"], arrays["moments"], arrays["tious"].tolist()
        recall, recalls, miou = arrays["recall"], arrays["recalls"].tolist(), float(arrays["miou"])
    found = outcomes(top, moments, ious)
    ours = [[found.recall(count, threshold).mean().item() for threshold in ious] for count in recalls]
    np.testing.assert_array_equal(ours, recall)
    assert found.iou.mean().item() == pytest.approx(miou, abs=1e-6)


def test_the_constant_list_starts_with_the_best_constant_and_covers_more() -> None:
    _, moments, durations = random_queries(300, 1, 2)
    keep = moments[:, 1] > moments[:, 0] + 0.5
    moments, durations = moments[keep], durations[keep]
    answers = best_constant_list(durations, moments, 0.5, 6, steps=20)
    assert answers[0][:2] == best_constant(durations, moments, 0.5, steps=20)
    shares = [answer[2] for answer in answers]
    assert shares == sorted(shares, reverse=True)
    assert len({answer[:2] for answer in answers}) == len(answers)
    recall = measure(constant_list_top(durations, answers), moments, (1, 3, 6), (0.5,)).recall[:, 0]
    np.testing.assert_allclose(recall, [sum(shares[:n]) for n in (1, 3, 6)])


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
