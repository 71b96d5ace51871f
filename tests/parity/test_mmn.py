"""MMN as published, on its recorded arrays (skipped where they are absent); its size."""

import json
from typing import Any

import pytest
import torch

from cdn_tune.config import load_experiment
from cdn_tune.model.layers.contrast import moment_logits, negative_sentences, positive_cells, sentence_sums
from cdn_tune.model.layers.loss import scale_iou
from cdn_tune.model.mmn.published import published_names
from cdn_tune.moments.metrics import Answers, measure
from cdn_tune.training.memory.estimate import count_parameters

from .recorded import check_course, close, grad_norms, needs_arrays, part, rebuild, train

NAMES = ["mmn_charades", "mmn_tacos", "mmn_conv", "mmn_late"]
SIZES = {
    "charades/MMN-16x16-K5L8-pool": 55_196_672,
    "activitynet/MMN-64x64-K9L4-pool": 85_855_232,
    "tacos/MMN-128x128-K5L8-pool": 55_196_672,
}


@needs_arrays
@pytest.mark.parametrize("name", NAMES)
def test_outputs(name: str) -> None:
    published, arrays, _ = rebuild(name, "mmn")
    model, given, expected = published.eval().model, part(arrays, "in."), part(arrays, "eval.")
    cells = torch.as_tensor(arrays["target.cells"])
    assert torch.equal(model.proposals.mask, expected["mask2d"])
    assert torch.equal(model.proposals.mask.nonzero(), cells)
    rows, columns = cells.unbind(1)
    with torch.no_grad():
        raw = published.raw(given)
        clips, _ = model.clip_pool(given["feats"])
        moments = model.proposals(clips)
        hidden = model.map(moments)
        words = torch.arange(given["tokens"].shape[1]) < given["word_lens"][:, None]
        mean = (given["tokens"] * words[..., None]).sum(1) / given["word_lens"][:, None]
        sentence = model.sentence.norm(mean)
    close(raw["contrastive_scores"], expected["contrastive_scores"])
    close(raw["iou_scores"], expected["iou_scores"])
    close(clips, expected["clips"])
    close(moments[:, :, rows, columns], expected["map2d"])
    close(model.moment_contrastive(hidden)[:, :, rows, columns], expected["contrastive_map"])
    close(model.moment_iou(hidden)[:, :, rows, columns], expected["iou_map"])
    close(model.sentence.contrastive(sentence), expected["contrastive_sent"])
    close(model.sentence.iou(sentence), expected["iou_sent"])
    for layer, weight in enumerate(model.map.weights()):
        close(weight, expected[f"weight.{layer}"], 1e-7)


@needs_arrays
@pytest.mark.parametrize("name", NAMES)
def test_targets_and_contrasts(name: str) -> None:
    published, arrays, _ = rebuild(name, "mmn")
    model, given, target = published.train().model, part(arrays, "in."), part(arrays, "target.")
    loss = model.loss_config
    output = published._output(given)
    ious = given["iou2d"].flatten(1)[:, model.proposals.by_row]
    top = positive_cells(ious, loss.positives)
    assert torch.equal(top, target["topk"])
    close(scale_iou(ious, loss.min_iou, loss.max_iou), target["iou_scaled"], 1e-6)
    negative = ious < loss.negative_iou
    assert torch.equal(negative, target["negative_proposals"])
    keep = negative_sentences(given["moments"], output.rows, loss.sentence_iou)
    assert torch.equal(keep.float(), target["sentence_mask"])

    first = part(arrays, "train.")
    sentences, cells = output.sentences[:, 0], output.moments[:, 0]
    own = torch.arange(len(sentences))
    logits = moment_logits(sentences, cells, output.rows, top, loss.margin, loss.video_temperature, own)
    close(logits.diagonal(dim1=1, dim2=2), first["vid_pos"])
    close(logits, first["vid_neg"])
    positive, total = sentence_sums(
        output.part(0).all_cosines(), output.rows, top, negative, loss.margin, loss.sentence_temperature, True
    )
    close(positive, first["sent_pos"])
    torch.testing.assert_close(total.exp(), first["sent_neg_sum"], rtol=1e-4, atol=0)
    assert first["sent_neg_count"] == 1 + output.part(0).all_cosines()[0].numel()


@needs_arrays
@pytest.mark.parametrize("name", NAMES)
def test_training(name: str) -> None:
    published, arrays, _ = rebuild(name, "mmn")
    given = part(arrays, "in.")
    names = dict(published_names(published.model.config))
    state = {name: value.clone() for name, value in published.state_dict().items()}
    first = grad_norms(published, given, names)
    published.load_state_dict(state)  # the running statistics
    expected = dict(zip(arrays["train.param_names"].tolist(), arrays["train.param_grad_norms"].tolist(), strict=True))
    assert first == pytest.approx(expected, rel=1e-3, abs=1e-4)
    check_course(arrays, "train.", *train(published, given, torch.optim.Adam(published.parameters(), lr=1e-3)))
    for layer, norm in enumerate(published.model.map.norms):
        torch.testing.assert_close(
            norm.running_var, torch.as_tensor(arrays[f"train.final_running_var.{layer}"]), rtol=1e-3, atol=1e-3
        )
    raw = published.raw(given)  # with statistics of the batch
    close(raw["contrastive_scores"], arrays["train.final_contrastive_scores"], 1e-3)
    close(raw["iou_scores"], arrays["train.final_iou_scores"], 1e-3)


@needs_arrays
@pytest.mark.parametrize("name", NAMES)
def test_published_optimiser(name: str) -> None:
    published, arrays, settings = rebuild(name, "mmn")
    lr = settings["SOLVER"]["LR"]
    optimiser = torch.optim.AdamW(published.parameters(), lr=lr, betas=(0.9, 0.99), weight_decay=1e-5)
    check_course(arrays, "published.", *train(published, part(arrays, "in."), optimiser, clip=5))


@needs_arrays
@pytest.mark.parametrize("name", NAMES)
def test_predictions_and_recall(name: str) -> None:
    published, arrays, _ = rebuild(name, "mmn")
    published.eval()
    given = part(arrays, "in.")
    tops = []
    with torch.no_grad():
        scores = published.model.score_map(published._output(given)).scores
    for query in range(len(scores)):
        close(scores[query], arrays[f"predict.scores2d.{query}"])
        ((top, ranked),) = published.predict(query, arrays)
        close(top, arrays[f"predict.moments.{query}"], 1e-3)
        close(ranked, arrays[f"predict.moment_scores.{query}"])
        tops.append(top[:5])
    durations = given["durations"].repeat_interleave(given["num_sentences"])
    answers = Answers(torch.stack(tops), given["moments"], durations)
    expected: dict[str, Any] = json.loads(str(arrays["predict.recall"]))
    recalls = [key for key in expected if key.startswith("R@")]
    assert recalls
    for key in recalls:
        n, iou = key.removeprefix("R@").split(",IoU@")
        assert measure(answers, [f"R{n}@{float(iou):g}"]).means.popitem()[1] == pytest.approx(expected[key], abs=1e-6)


@pytest.mark.parametrize(("experiment", "size"), SIZES.items())
def test_published_size(experiment: str, size: int) -> None:
    assert count_parameters(load_experiment(experiment, {"data.word_size": 768})) == size  # DistilBERT's tokens
