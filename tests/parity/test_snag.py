"""Parity with the published SnAG, on its recorded arrays (skipped where they are absent)."""

import json
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import clip_grad_norm_, get_total_norm

from cdn_tune.config import DataConfig, OptimConfig, SequenceConfig
from cdn_tune.data import sequences
from cdn_tune.data.sequence_store import sequence_of, timed
from cdn_tune.errors import CheckpointError, ConfigError
from cdn_tune.model.cdn.config import CDNConfig
from cdn_tune.model.snag.config import SnAGConfig, SnAGLoss
from cdn_tune.model.snag.network import SnAG
from cdn_tune.model.snag.published import PublishedSnag, from_published, import_state, nms, published_name
from cdn_tune.moments.metrics import Answers, recall
from cdn_tune.training.step.optimiser import Ema, build_optimiser, build_schedule

from .recorded import CHANGES, load, needs_arrays, part, spoil

pytestmark = needs_arrays
MODELS = ["snag_anet", "snag_charades", "snag_mad"]
PARTS = {"video": "vid_net", "text": "text_net", "fusion": "fusion", "score": "cls_head", "offset": "reg_head"}


def rebuild(arrays: dict[str, Any]) -> tuple[PublishedSnag, dict[str, Any]]:
    config = json.loads(str(arrays["config"]))
    return from_published(part(arrays, "state."), config), config


def raw(model: PublishedSnag, given: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    model.eval()
    with torch.no_grad():
        return model.raw(given)


@pytest.mark.parametrize("name", MODELS)
def test_evaluation_mode(name: str) -> None:
    """Also at every stage on the way: tokens, pyramid, fused pyramid; where there is something."""
    arrays = load(name)
    model, _ = rebuild(arrays)
    given, expected = part(arrays, "in."), part(arrays, "eval.")
    found = raw(model, given)
    assert set(expected) == set(found)
    for key, value in expected.items():
        stage, _, level = key.partition(".")
        ours, theirs = found[key], value
        if stage == "text":
            ours, theirs = (each * expected["text_mask"][:, None] for each in (ours, theirs))
        elif stage in ("fpn", "fused"):
            mask = expected[f"fpn_mask.{level}"]
            mask = mask if stage == "fpn" else mask.repeat_interleave(given["text_size"], dim=0)
            ours, theirs = (each * mask[:, None] for each in (ours, theirs))
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", MODELS)
def test_label_assignment(name: str) -> None:
    arrays = load(name)
    model, _ = rebuild(arrays)
    found = model.targets(part(arrays, "in."))
    assert torch.equal(found["labels"], torch.from_numpy(arrays["target.labels"]))
    torch.testing.assert_close(found["offsets"], torch.from_numpy(arrays["target.offsets"]), atol=1e-5, rtol=0)
    assert int(found["positives"]) == int(arrays["target.positives"])


@pytest.mark.parametrize("name", MODELS)
def test_four_training_steps(name: str) -> None:
    arrays = load(name)
    model, _ = rebuild(arrays)
    given = part(arrays, "in.")
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-3)
    for step in range(4):
        losses = model.losses(given)
        optimiser.zero_grad()
        losses["total"].backward()
        if step == 0:
            gradients = {name: parameter.grad for name, parameter in model.model.named_parameters()}
            norms = {published_name(name): float(gradient.norm()) for name, gradient in gradients.items()}
            theirs = dict(zip(arrays["train.param_names"].tolist(), arrays["train.param_grad_norms"], strict=True))
            assert norms == pytest.approx(theirs, rel=1e-4, abs=1e-5)
            assert float(get_total_norm(gradients.values())) == pytest.approx(
                float(arrays["train.grad_norm"]), rel=1e-4
            )
        optimiser.step()
        for key in ("total", "cls", "reg", "loss_norm"):
            recorded = arrays["train.losses" if key == "total" else f"train.{key}"][step]
            assert losses[key].item() == pytest.approx(recorded, rel=1e-4), (key, step)
    found = raw(model, given)
    for key in ("logits", "offsets"):
        torch.testing.assert_close(found[key], torch.from_numpy(arrays[f"train.final_{key}"]), atol=1e-3, rtol=0)


@pytest.mark.parametrize("name", MODELS)
def test_published_optimiser(name: str) -> None:
    """Warm-up, ten parameter groups, clipping, and the average of weights."""
    arrays = load(name)
    model, config = rebuild(arrays)
    given, options = part(arrays, "in."), config["train"]["optimizer"]
    assert {key for key in options if key.endswith("_lr")} <= {"text_net_lr"}
    settings = OptimConfig(
        name="adamw",
        lr=options["lr"],
        text_lr=options.get("text_net_lr"),
        weight_decay=options["weight_decay"],
        warmup_epochs=1,
        warmup_from_zero=True,
    )
    optimiser = build_optimiser(model.model, settings, model.model.text_part)
    schedule = build_schedule(optimiser, settings, total_steps=8, epoch_steps=4)
    group_of = {id(weight): group for group in optimiser.param_groups for weight in group["params"]}
    parts = {ours: list(getattr(model.model, ours).parameters()) for ours in PARTS}
    decays = [[weight for weight in parts[ours] if group_of[id(weight)]["weight_decay"]] for ours in PARTS]
    sizes = [
        count for ours, mine in zip(PARTS, decays, strict=True) for count in (len(mine), len(parts[ours]) - len(mine))
    ]
    assert sizes == arrays["published.group_sizes"].tolist()
    assert max(group["weight_decay"] for group in optimiser.param_groups) == pytest.approx(
        float(arrays["published.weight_decay"].max())
    )
    averaged = Ema(model, float(arrays["published.ema_beta"]), warmup=False)
    for step in range(6):
        rates = [group_of[id(parts[ours][0])]["lr"] for ours in PARTS]
        assert np.repeat(rates, 2) == pytest.approx(arrays["published.lr"][step].tolist())
        losses = model.losses(given)
        optimiser.zero_grad()
        losses["total"].backward()
        norm = clip_grad_norm_(model.parameters(), config["train"]["clip_grad_norm"])
        optimiser.step()
        schedule.step()
        averaged.update(model)
        assert norm.item() == pytest.approx(arrays["published.grad_norm"][step], rel=1e-3)
        for key in ("total", "cls", "reg", "loss_norm"):
            recorded = arrays["published.losses" if key == "total" else f"published.{key}"][step]
            assert losses[key].item() == pytest.approx(recorded, rel=1e-4), (key, step)
    for kind, weights in (("final", model), ("ema", averaged.model)):
        recorded = torch.from_numpy(arrays[f"published.{kind}_logits"])
        torch.testing.assert_close(raw(weights, given)["logits"], recorded, atol=1e-3, rtol=0)


@pytest.mark.parametrize("name", MODELS)
def test_predictions(name: str) -> None:
    """Whole videos and windows, longer and shorter than the model, with external scores: candidates, NMS, seconds."""
    arrays = load(name)
    model, _ = rebuild(arrays)
    model.eval()
    cases = sorted({int(key.split(".")[1]) for key in arrays if key.startswith("predict.")})
    for case in cases:
        prefix = f"predict.{case}."
        parameters = json.loads(str(arrays[f"{prefix}config"]))["nms"]
        for query, (spans, scores) in enumerate(model.candidates(case, arrays)):
            np.testing.assert_allclose(scores, arrays[f"{prefix}pre_scores.{query}"], atol=1e-4)
            np.testing.assert_allclose(spans, arrays[f"{prefix}pre_segments.{query}"], atol=1e-3)
            spans, scores = nms(spans, scores, parameters)
            np.testing.assert_allclose(spans, arrays[f"{prefix}nms_segments.{query}"], atol=1e-3)
            np.testing.assert_allclose(scores, arrays[f"{prefix}nms_scores.{query}"], atol=1e-4)
        for query, (seconds, scores) in enumerate(model.predict(case, arrays)):
            np.testing.assert_allclose(seconds, arrays[f"{prefix}segments.{query}"], atol=1e-3)
            np.testing.assert_allclose(scores, arrays[f"{prefix}scores.{query}"], atol=1e-4)


@pytest.mark.parametrize("name", MODELS)
def test_a_fresh_model_is_drawn_as_published(name: str) -> None:
    """The same constants; drawn weights of the same spread, within the error of the sample."""
    arrays = load(name)
    model, config = rebuild(arrays)
    recorded = json.loads(str(arrays["init"]))
    torch.manual_seed(0)
    sizes = [config["model"][net]["in_dim"] for net in ("vid_net", "text_net")]
    fresh = SnAG(model.model.config, *sizes, model.model.loss_config)
    for ours, parameter in fresh.named_parameters():
        value = parameter.detach()
        mean, spread, largest = recorded[published_name(ours)]
        if spread < 1e-6:
            torch.testing.assert_close(value, torch.full_like(value, mean), atol=1e-4, rtol=0)
        else:
            error = 5 * spread / value.numel() ** 0.5
            assert float(value.mean()) == pytest.approx(mean, abs=2 * error), ours
            assert float(value.std()) == pytest.approx(spread, abs=error), ours
            assert float(value.abs().max()) == pytest.approx(largest, rel=0.6), ours


def test_suppression() -> None:
    arrays = load("snag_nms")
    for case, parameters in enumerate(json.loads(str(arrays["config"]))):
        spans, scores = nms(arrays[f"segments{case}"], arrays[f"scores{case}"], parameters)
        np.testing.assert_allclose(scores, arrays[f"out_scores{case}"], atol=1e-6)
        np.testing.assert_allclose(spans, arrays[f"out_segments{case}"], atol=1e-4)


def videos(form: str, **changes: Any) -> list[tuple[int, dict[str, Any], SequenceConfig]]:
    """Number, arrays and settings of each recorded video."""
    arrays = load("snag_data")
    config = json.loads(str(arrays["config"]))
    keys = ("features", "segments", "duration", "num_frames", "fps")
    found = []
    for video in range(config["count"]):
        own = {key: arrays[f"{key}{video}"] for key in keys}
        settings = SequenceConfig(
            form=form,
            length=config["max_vid_len"],
            every=1 if form == "fixed" else config["downsample_rate"],
            normalise=form == "variable",
            clip_size=config["clip_size"],
            clip_stride=config["clip_stride"],
            fps=float(own["fps"]),
            **changes,
        )
        found.append((video, own | {"all": arrays}, settings))
    return found


def moments_of(own: dict[str, Any]) -> np.ndarray:
    """The moments, cut to the video, that are not empty; ours refuses a negative start instead."""
    cut = np.clip(own["segments"], 0, float(own["duration"]))
    return cut[cut[:, 1] > cut[:, 0]]


@pytest.mark.parametrize("form", ["fixed", "variable"])
def test_features_and_targets(form: str) -> None:
    for video, own, settings in videos(form):
        found = sequence_of(own["features"], settings)
        steps, grid = timed(settings, len(own["features"]), float(own["duration"]))
        assert len(found) == steps
        recorded = {key: own["all"][f"{form}.{key}{video}"] for key in ("vid", "target", "segment", "clip")}
        moments = moments_of(own)
        np.testing.assert_allclose(found.T, recorded["vid"], atol=1e-5)
        np.testing.assert_allclose(moments, recorded["segment"], atol=1e-9)
        assert [grid.clip_size, grid.clip_stride] == pytest.approx(recorded["clip"].tolist())
        last = int(own["num_frames"]) / float(own["fps"])
        np.testing.assert_allclose(grid.to_steps(np.minimum(moments, last)), recorded["target"], atol=1e-5)


@pytest.mark.parametrize(("form", "ratio"), [("crop", (0.9, 1.0)), ("nocrop", None)])
def test_groups(form: str, ratio: tuple[float, float] | None) -> None:
    found = []
    for video, own, settings in videos("variable", crop=ratio):
        moments = moments_of(own)
        steps, grid = timed(settings, len(own["features"]), float(own["duration"]))
        seconds = sequences.reach(steps, settings.length, grid, settings.crop)
        for group in sequences.groups_within(moments, seconds, 6, np.random.default_rng(0)):
            found.append([f"v{video}", group.tolist()])
    assert found == json.loads(str(load("snag_data")[f"groups.{form}"]))


def replay(draws: list[list[int]]) -> sequences.Draw:
    """Returns recorded draws, if they are between what they were drawn between."""
    left = iter(draws)

    def draw(low: int, high: int) -> int:
        recorded_low, recorded_high, drawn = next(left)
        assert (low, high) == (recorded_low, recorded_high)
        return drawn

    return draw


def test_crops() -> None:
    arrays = load("snag_data")
    most = json.loads(str(arrays["config"]))["max_vid_len"]
    count = sum(key.startswith("crop.draws") for key in arrays)
    assert count
    for case in range(count):
        own = {
            key: arrays[f"crop.{key}{case}"] for key in ("vid", "target", "offset", "draws", "out_vid", "out_target")
        }
        found = sequences.crop(
            own["vid"].shape[1], own["target"], float(own["offset"]), most, replay(own["draws"].tolist())
        )
        ours = own["vid"][:, found.first : found.first + found.length]
        np.testing.assert_array_equal(ours, own["out_vid"])
        np.testing.assert_allclose(found.targets, own["out_target"], atol=1e-5)


def test_learning_rates() -> None:
    arrays = load("snag_data")
    for case, config in enumerate(json.loads(str(arrays["schedule.config"]))):
        warmup, steps = config["warmup_epochs"], config["itrs_per_epoch"]
        drops = [warmup + epoch for epoch in config.get("steps", ()) if epoch >= 0]
        kind = "cosine" if config["name"] == "cosine" else "milestones" if drops else "constant"
        settings = OptimConfig(
            lr=1e-3, text_lr=2e-4, schedule=kind, milestones=drops, warmup_epochs=warmup, warmup_from_zero=True
        )
        model = nn.ModuleDict({"others": nn.Linear(1, 1), "text": nn.Linear(1, 1)})
        optimiser = build_optimiser(model, settings, "text")
        schedule = build_schedule(optimiser, settings, steps * (warmup + config["epochs"]), steps)
        recorded, ours = arrays[f"schedule.lr{case}"], []
        for step in range(1, len(recorded) + 1):
            ours.append([group["lr"] for group in optimiser.param_groups[::2]])
            schedule.step()
            if step % steps == 0:
                schedule.end_epoch(0.0)
        # The published cosine ends at 1e-8, not at 0.
        np.testing.assert_allclose(ours, recorded, rtol=1e-6, atol=1.1e-8)


def test_recall() -> None:
    arrays = load("snag_data")
    order = np.argsort(-arrays["metrics.scores"], axis=1, kind="stable")
    best = np.take_along_axis(arrays["metrics.segments"], order[..., None], axis=1)
    answers = Answers(best, arrays["metrics.targets"], np.full(len(best), 1e9), closed=True)
    ours = [
        [float(recall(answers, n, iou).mean()) for iou in arrays["metrics.ious"].tolist()]
        for n in arrays["metrics.ranks"].tolist()
    ]
    np.testing.assert_allclose(ours, arrays["metrics.recall"], atol=1e-9)


PUBLISHED = {  # feature size, text, video, fusion, parameters
    "charades C3D": (4096, {}, {}, {}, 10_408_073),
    "charades I3D": (2048, {}, {}, {}, 9_883_785),
    "tacos": (4096, {"words": 48}, {"stem": 0, "levels": 8, "window": 19, "length": 2304}, {}, 11_202_187),
    "activitynet": (500, {"words": 48}, {"hidden": 128, "stem": 0, "levels": 7}, {"mode": "adaln"}, 3_228_042),
}


@pytest.mark.parametrize("setting", PUBLISHED)
def test_parameters_of_the_published_settings(setting: str) -> None:
    features, text, video, fusion, count = PUBLISHED[setting]
    config = SnAGConfig.model_validate({"text": text, "video": video, "fusion": fusion})
    with torch.device("meta"):
        model = SnAG(config, features, 300, SnAGLoss())
    assert sum(parameter.numel() for parameter in model.parameters()) == count


def test_weights_are_imported_into_an_experiment() -> None:
    """Into its own network, whose normaliser starts from the experiment's."""
    arrays = load("snag_charades")
    published, config = rebuild(arrays)
    data = DataConfig(
        dataset="charades_sta",
        root=".",
        feature_size=config["model"]["vid_net"]["in_dim"],
        word_size=config["model"]["text_net"]["in_dim"],
    )
    imported = import_state(part(arrays, "state."), published.model.config, data)
    assert "normaliser" in imported.state_dict()
    for name, value in published.model.named_parameters():
        assert torch.equal(imported.get_parameter(name), value)
    with pytest.raises(ConfigError, match=r"model\.name=cdn: these weights are those of a snag"):
        import_state({}, CDNConfig(), data)


@pytest.mark.parametrize("change", [*CHANGES, "another family"])
def test_wrong_entries_are_named(change: str) -> None:
    arrays = load("snag_charades")
    state, config = part(arrays, "state."), json.loads(str(arrays["config"]))
    if change == "another family":
        name, config = "model", {"num_clips": 16}
    else:
        name = spoil(state, change, "vid_net.branch.1.attn.q_norm.weight", "vid_net.branch.9.ln_ffn.weight")
    with pytest.raises(CheckpointError, match=name.replace(".", r"\.")):
        from_published(state, config)
