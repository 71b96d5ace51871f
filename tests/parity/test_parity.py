"""Parity with the published implementation, on its recorded arrays (skipped where they are absent)."""

import json
from typing import Any

import numpy as np
import pytest
import torch

from cdn_tune.config import recall_name
from cdn_tune.data.clips import to_fixed_length
from cdn_tune.errors import CheckpointError
from cdn_tune.model.cdn.loss import attention_loss, moment_loss, scale_iou
from cdn_tune.model.cdn.network import CDN
from cdn_tune.model.published import from_published
from cdn_tune.moments.metrics import Answers, measure
from cdn_tune.moments.nms import top_moments
from cdn_tune.moments.temporal_map import iou_map

from .recorded import CHANGES, load, needs_arrays, part, spoil

pytestmark = needs_arrays
MODELS = ["pool16", "conv16", "pool32ms"]


def rebuild(arrays: dict[str, Any]) -> tuple[CDN, dict[str, Any]]:
    settings = json.loads(str(arrays["config"]))
    return from_published(part(arrays, "state."), settings), settings


def losses(model: CDN, given: dict[str, torch.Tensor], settings: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    output = model(given["visual"], given["words"], given["word_mask"][..., 0])
    moment = moment_loss(output.logits, given["iou_map"][:, 0], output.mask, settings["min_iou"], settings["max_iou"])
    return moment, attention_loss(output.attention, settings["att_lambda"])


@pytest.mark.parametrize("name", MODELS)
def test_evaluation_mode(name: str) -> None:
    arrays = load(name)
    model, settings = rebuild(arrays)
    model.eval()
    given, expected = part(arrays, "in."), part(arrays, "eval.")
    with torch.no_grad():
        output = model(given["visual"], given["words"], given["word_mask"][..., 0])
        moment, attention = losses(model, given, settings)
    torch.testing.assert_close(output.logits, expected["logits"][:, 0], atol=1e-4, rtol=0)
    torch.testing.assert_close(output.attention, expected["attention"], atol=1e-4, rtol=0)
    assert torch.equal(output.mask.float(), expected["mask"][0, 0])
    target = scale_iou(given["iou_map"], settings["min_iou"], settings["max_iou"])
    torch.testing.assert_close(target * output.mask, expected["target"] * output.mask, atol=1e-4, rtol=0)
    assert moment.item() == pytest.approx(expected["bce"].item(), abs=1e-4)
    weighted = settings["att_beta"] * attention.item()  # recorded with its weight
    assert weighted == pytest.approx(expected["att_loss"].item(), abs=1e-4)


@pytest.mark.parametrize("name", MODELS)
def test_four_training_steps(name: str) -> None:
    arrays = load(name)
    model, settings = rebuild(arrays)
    model.train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    given = part(arrays, "in.")
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-3)
    seen: list[float] = []
    for step in range(4):
        moment, attention = losses(model, given, settings)
        loss = moment + settings["att_beta"] * attention
        optimiser.zero_grad()
        loss.backward()
        if step == 0:
            norm = torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
            assert norm.item() == pytest.approx(float(arrays["train.grad_norm"]), rel=1e-3)
        optimiser.step()
        seen.append(loss.item())
    assert seen == pytest.approx(arrays["train.losses"].tolist(), rel=1e-3)


@pytest.mark.parametrize("change", CHANGES)
def test_wrong_entries_are_named(change: str) -> None:
    arrays = load("conv16")
    state = part(arrays, "state.")
    name = spoil(state, change, "map_layer.convs.1.weight", "map_layer.convs.9.weight")
    with pytest.raises(CheckpointError, match=name.replace(".", r"\.")):
        from_published(state, json.loads(str(arrays["config"])))


def test_names_of_a_wrapped_model_are_accepted() -> None:
    arrays = load("conv16")
    settings = json.loads(str(arrays["config"]))
    state = part(arrays, "state.")
    wrapped = from_published({f"module.{key}": value for key, value in state.items()}, settings).state_dict()
    for key, value in from_published(state, settings).state_dict().items():
        assert torch.equal(wrapped[key], value)


@pytest.mark.parametrize("name", ["metrics16", "metrics64"])
def test_metrics(name: str) -> None:
    arrays = load(name)
    recalls, ious = arrays["recalls"].tolist(), arrays["tious"].tolist()
    scores, durations = torch.from_numpy(arrays["scores"]), torch.from_numpy(arrays["durations"])
    top, _ = top_moments(scores, durations, max(recalls), float(arrays["nms_threshold"]))
    names = [recall_name(n, iou) for n in recalls for iou in ious]
    found = measure(Answers(top, arrays["moments"], durations), [*names, "mIoU"]).means
    np.testing.assert_array_equal([found[name] for name in names], arrays["recall"].flatten())
    assert found["mIoU"] == pytest.approx(float(arrays["miou"]), abs=1e-6)
    np.testing.assert_allclose(top.numpy(), arrays["top5"], atol=1e-4)


def test_clips_and_iou_maps() -> None:
    arrays = load("data")
    clips, stride = int(arrays["num_sample_clips"]), int(arrays["clip_stride"])
    for index in range(int(arrays["count"])):
        ours = to_fixed_length(arrays[f"features{index}"], clips, legacy=True)
        np.testing.assert_allclose(np.asarray(ours), arrays[f"clips{index}"], atol=1e-5)
        overlap = iou_map(float(arrays[f"duration{index}"]), arrays[f"moment{index}"].tolist(), clips // stride)
        np.testing.assert_allclose(np.asarray(overlap), arrays[f"iou_map{index}"], atol=1e-5)
