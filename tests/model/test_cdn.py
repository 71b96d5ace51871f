"""The network as a whole: shapes, masks, what its answers may depend on, every ablation."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from cdn_tune.config import Experiment, load_experiment
from cdn_tune.model.cdn.config import CDNConfig
from cdn_tune.model.cdn.loss import attention_loss, moment_loss
from cdn_tune.model.cdn.network import CDN
from cdn_tune.model.kernels import cell_conv
from cdn_tune.training.memory.estimate import count_parameters
from cdn_tune.training.runs.checkpoint import build_model

FRAMES, FEATURES, WORD, LENGTH, BATCH = 16, 6, 5, 7, 3
SMALL: dict[str, Any] = {
    "clips": 8,
    "hidden": 8,
    "query": {"layers": 2},
    "attention_steps": 2,
    "attention_size": 6,
    "map": {"layers": 3, "kernel_size": 3, "dynamic_layers": 2, "experts": 3},
}
ABLATIONS: dict[str, dict[str, Any]] = {
    "attention": {},
    "mean pooling": {"clip_pool": "mean"},
    "one step": {"attention_steps": 1},
    "conv": {"proposals": "conv"},
    "multi-scale pool": {"scale_layers": [4, 2]},
    "multi-scale conv": {"scale_layers": [4, 2], "proposals": "conv"},
    "all static": {"map": {"layers": 2, "kernel_size": 5, "dynamic_layers": 0}},
    "all dynamic": {"map": {"layers": 2, "kernel_size": 3, "dynamic_layers": 2, "experts": 1}},
    "mixed from the query": {"map": {"layers": 2, "kernel_size": 3, "dynamic_layers": 1, "mixing": "query"}},
    "mixed from the map": {"map": {"layers": 2, "kernel_size": 3, "dynamic_layers": 1, "mixing": "map"}},
    "kernel per layer": {"map": {"layers": 3, "kernel_size": [7, 3, 1], "dynamic_layers": 1}},
    "dynamic by layer": {"map": {"layers": 3, "kernel_size": 3, "dynamic_layers": [False, True, False]}},
    "large kernel": {"map": {"layers": 1, "kernel_size": 9, "dynamic_layers": 1}},
    "no residual": {"map": {"layers": 2, "kernel_size": 3, "dynamic_layers": 1, "residual": False}},
    "no norm": {"map": {"layers": 2, "kernel_size": 3, "dynamic_layers": 1, "batch_norm": False}},
    "norm over valid": {"map": {"layers": 2, "kernel_size": 3, "dynamic_layers": 1, "norm_over": "valid"}},
    "gates": {"gates": True},
    "bidirectional": {"query": {"layers": 2, "bidirectional": True}},
    "bidirectional as published": {"query": {"layers": 2, "bidirectional": True, "read_padding": True}},
}


def build(**changes: Any) -> CDN:
    torch.manual_seed(0)
    return CDN(CDNConfig.model_validate({**SMALL, **changes}), FEATURES, WORD)


def batch() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    visual = torch.randn(BATCH, FRAMES, FEATURES, generator=generator)
    mask = torch.arange(LENGTH) < torch.tensor([[7], [3], [1]])
    words = torch.randn(BATCH, LENGTH, WORD, generator=generator) * mask[..., None]
    return visual, words, mask


@pytest.mark.parametrize("changes", ABLATIONS.values(), ids=ABLATIONS)
def test_every_ablation_trains(changes: dict[str, Any]) -> None:
    model = build(**changes)
    output = model(*batch())
    assert output.logits.shape == (BATCH, 8, 8)
    assert output.mask.shape == (8, 8)
    assert not output.logits[:, ~output.mask].any()
    loss = moment_loss(output.logits, torch.rand(BATCH, 8, 8), output.mask, 0.3, 0.7)
    if changes.get("clip_pool") == "mean":
        assert output.attention is None
    else:
        steps = changes.get("attention_steps", 2)
        assert output.attention.shape == (BATCH, 8, FRAMES // 8, steps)
        torch.testing.assert_close(output.attention.sum(dim=2), torch.ones(BATCH, 8, steps))
        loss = loss + attention_loss(output.attention, 0.3)
    loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


@pytest.mark.parametrize("changes", ABLATIONS.values(), ids=ABLATIONS)
def test_batch_equals_single_in_evaluation(changes: dict[str, Any]) -> None:
    if changes.get("query", {}).get("read_padding"):
        pytest.skip("reading the padding first makes an encoding depend on the batch: that is the published mistake")
    model = build(**changes).eval()
    visual, words, mask = batch()
    with torch.no_grad():
        together = model(visual, words, mask).logits
        for index in range(BATCH):
            length = int(mask[index].sum())
            one = slice(index, index + 1)
            alone = model(visual[one], words[one, :length], mask[one, :length]).logits
            torch.testing.assert_close(alone[0], together[index], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("changes", ABLATIONS.values(), ids=ABLATIONS)
def test_cells_that_nobody_needs_change_nothing(
    changes: dict[str, Any], training: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scores and gradients with the cells that are left out, and with all of them computed."""
    monkeypatch.setattr(cell_conv, "_MIN_SIZE", 1)  # small layers in tiles too
    outputs, gradients = [], []
    for everything in (False, True):
        model = build(**{**changes, "clips": 16} if "scale_layers" not in changes else changes).train(training)
        model = model.double()
        if everything:
            for name, constant in model.map.cells.named_buffers():
                if "_mask_" in name:
                    constant.fill_(True)
        visual, words, mask = batch()
        output = model(visual.double(), words.double(), mask)
        output.logits.square().sum().backward()
        outputs.append(output.logits)
        gradients.append([weight.grad for weight in model.parameters()])
    torch.testing.assert_close(outputs[0], outputs[1])
    torch.testing.assert_close(gradients[0], gradients[1])


def test_the_query_changes_the_answer() -> None:
    model = build().eval()
    visual, words, mask = batch()
    with torch.no_grad():
        assert not torch.allclose(model(visual, words, mask).logits, model(visual, words.flip(0), mask.flip(0)).logits)


def test_published_size() -> None:
    for path in ("charades/CDN-16x16-K5L8-pool", "tacos/CDN-128x128-K5L8-pool"):
        experiment = load_experiment(path)
        assert experiment.data.feature_size == 4096
        assert count_parameters(experiment) == pytest.approx(249e6, rel=0.005)


def test_count_is_that_of_the_built_model(tiny: Callable[..., Experiment]) -> None:
    experiment = tiny()
    assert count_parameters(experiment) == sum(parameter.numel() for parameter in build_model(experiment).parameters())
