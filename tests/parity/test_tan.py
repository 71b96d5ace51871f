"""2D-TAN as published, on its recorded arrays (skipped where they are absent); its size; its settings."""

from typing import Any

import pytest
import torch

from cdn_tune.config import load_experiment
from cdn_tune.errors import CheckpointError
from cdn_tune.model.layers.loss import scale_iou
from cdn_tune.model.published import from_published
from cdn_tune.model.tan.published import published_names
from cdn_tune.moments.metrics import Answers, measure
from cdn_tune.moments.temporal_map import iou_maps
from cdn_tune.training.memory.estimate import count_parameters

from .recorded import check_course, close, grad_norms, load, needs_arrays, part, rebuild, train

NAMES = ["tan_pool", "tan_conv", "tan_sparse"]
SIZES = {
    "charades/2D-TAN-16x16-K5L8-pool": 60_925_953,
    "charades/2D-TAN-16x16-K5L8-conv": 69_060_609,
    "activitynet/2D-TAN-64x64-K9L4-pool": 91_588_609,
    "activitynet/2D-TAN-64x64-K9L4-conv": 108_644_353,
    "tacos/2D-TAN-128x128-K5L8-pool": 60_925_953,
    "tacos/2D-TAN-128x128-K5L8-conv": 82_442_241,
}


@needs_arrays
@pytest.mark.parametrize("name", NAMES)
def test_outputs(name: str) -> None:
    published, arrays, _ = rebuild(name, "tan")
    model, given, expected = published.eval().model, part(arrays, "in."), part(arrays, "eval.")
    rows, columns = expected["cells"].unbind(1)
    with torch.no_grad():
        raw = published.raw(given)
        clips = model.encode(given["visual"])
        query = model.query(given["words"], given["word_mask"][..., 0])
        mask = model.proposals.mask
        moments = model.proposals(clips)
        fused = model.fusion(query, moments, mask)
        hidden = model.map(fused)
    for key in ("logits", "mask", "scores"):
        close(raw[key], expected[key])
    close(clips, expected["clips"])
    for found, key in ((moments, "map"), (fused, "fused"), (hidden, "hidden")):
        close(found[:, :, rows, columns], expected[key])
    for layer, weight in enumerate(model.map.weights()):
        close(weight, expected[f"weight.{layer}"], 1e-7)
    close(published.losses(given)["bce"], expected["bce"])
    loss = model.loss_config
    target = scale_iou(given["iou_map"], loss.min_iou, loss.max_iou, loss.bias)
    close(target * mask, expected["target"] * mask, 1e-6)
    ious = iou_maps(given["durations"], given["moments"], model.config.clips)
    close(ious * mask, given["iou_map"][:, 0] * mask, 1e-5)


@needs_arrays
@pytest.mark.parametrize("name", NAMES)
def test_training(name: str) -> None:
    published, arrays, _ = rebuild(name, "tan")
    given = part(arrays, "in.")
    names = dict(published_names(published.model.config))
    first = grad_norms(published, given, names)
    expected = dict(zip(arrays["train.param_names"].tolist(), arrays["train.param_grad_norms"].tolist(), strict=True))
    assert first == pytest.approx(expected, rel=1e-3, abs=1e-5)
    check_course(arrays, "train.", *train(published, given, torch.optim.Adam(published.parameters(), lr=1e-3)))
    close(published.raw(given)["logits"], arrays["train.final_logits"], 1e-3)


@needs_arrays
@pytest.mark.parametrize("name", NAMES)
def test_published_optimiser(name: str) -> None:
    published, arrays, settings = rebuild(name, "tan")
    optimiser = torch.optim.Adam(published.parameters(), lr=settings["TRAIN"]["LR"], betas=(0.9, 0.999))
    check_course(arrays, "published.", *train(published, part(arrays, "in."), optimiser, clip=10))


@needs_arrays
@pytest.mark.parametrize("name", NAMES)
def test_predictions_and_recall(name: str) -> None:
    published, arrays, settings = rebuild(name, "tan")
    published.eval()
    given = part(arrays, "in.")
    tops = []
    with torch.no_grad():
        spans, scores = published.model.spans(published._output(given), given["durations"])
    for query in range(len(given["moments"])):
        ranked = spans[query][scores[query].argsort(descending=True, stable=True)]
        close(ranked, arrays[f"predict.ranked.{query}"], 1e-3)
        ((top, _),) = published.predict(query, arrays)
        close(top, arrays[f"predict.moments.{query}"], 1e-3)
        tops.append(top)
    answers = Answers(torch.nn.utils.rnn.pad_sequence(tops, batch_first=True), given["moments"], given["durations"])
    ious, ranks = ([float(each) for each in settings["TEST"][key].split(",")] for key in ("TIOU", "RECALL"))
    found = [[measure(answers, [f"R{int(n)}@{iou:g}"]).means.popitem()[1] for n in ranks] for iou in ious]
    close(torch.tensor(found), arrays["predict.recall"], 1e-6)
    assert measure(answers, ["mIoU"]).means["mIoU"] == pytest.approx(float(arrays["predict.miou"]), abs=1e-6)


@needs_arrays
def test_wrong_settings_are_named() -> None:
    _, _, settings = rebuild("tan_pool", "tan")
    params: Any = settings["TAN"]["MAP_MODULE"]["PARAMS"]
    params["PADDINGS"][1] = 1
    with pytest.raises(CheckpointError, match=r"MAP_MODULE\.PARAMS\.PADDINGS"):
        from_published(part(load("tan_pool"), "state."), settings, "tan")
    del settings["TAN"]["FRAME_MODULE"]["PARAMS"]["HIDDEN_SIZE"]
    with pytest.raises(CheckpointError, match=r"no FRAME_MODULE\.PARAMS\.HIDDEN_SIZE"):
        from_published(part(load("tan_pool"), "state."), settings, "tan")


@pytest.mark.parametrize(("experiment", "size"), SIZES.items())
def test_published_size(experiment: str, size: int) -> None:
    assert count_parameters(load_experiment(experiment)) == size
