"""IoUs of single queries: a byte each, evenly spaced."""

import numpy as np
import pytest
import torch

from cdn_tune.training.reports import pack_ious, unpack_ious


@pytest.mark.parametrize("count", [0, 1, 7, 256])
def test_a_few_are_all_kept(count: int) -> None:
    ious = torch.rand(count, generator=torch.Generator().manual_seed(count), dtype=torch.float64)
    back = unpack_ious(pack_ious(ious))
    assert back.shape == (count,)
    assert np.abs(back - ious.numpy()).max(initial=0.0) <= 1 / 510
    assert pack_ious(torch.from_numpy(back)) == pack_ious(ious)


def test_of_many_256_are_kept_first_and_last_among_them() -> None:
    back = unpack_ious(pack_ious(torch.linspace(0, 1, 1001)))
    assert len(back) == 256
    assert (back[0], back[-1]) == (0.0, 1.0)
    assert back == pytest.approx(np.linspace(0, 1, 256), abs=0.003)


def test_the_ends_are_exact() -> None:
    assert unpack_ious(pack_ious(torch.tensor([0.0, 1.0]))).tolist() == [0.0, 1.0]
