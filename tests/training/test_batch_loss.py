"""Number formats of a process that trains one trial after the other."""

from collections.abc import Iterator

import pytest
import torch

from cdn_tune.training.step.batch_loss import use_tf32


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    yield
    use_tf32(allowed=False)


def test_tensorfloat_does_not_outlive_its_trial() -> None:
    use_tf32(allowed=True)
    assert torch.get_float32_matmul_precision() == "high"
    assert torch.backends.cudnn.allow_tf32
    use_tf32(allowed=False)
    assert torch.get_float32_matmul_precision() == "highest"
    assert not torch.backends.cudnn.allow_tf32
