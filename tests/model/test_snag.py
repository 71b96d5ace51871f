"""SnAG as a family: its parts, its losses, its answers, and training through the door."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from cdn_tune import load
from cdn_tune.config import Experiment
from cdn_tune.data.fingerprint import fingerprint
from cdn_tune.errors import ConfigError
from cdn_tune.model import families
from cdn_tune.model.layers.span_loss import span_loss
from cdn_tune.model.snag.config import PointConfig, SnAGConfig, SnAGLoss, VideoConfig
from cdn_tune.model.snag.decode import decode
from cdn_tune.model.snag.inference import external_at_points
from cdn_tune.model.snag.loss import assign, focal_loss
from cdn_tune.model.snag.network import SnAG, SnAGOutput
from cdn_tune.model.snag.pyramid import Pyramid, points
from cdn_tune.training.reports import EpochReport, ignore
from cdn_tune.training.runs.checkpoint import BEST, load_checkpoint
from cdn_tune.training.runs.run_folder import claim, describe_run, locked
from cdn_tune.training.train_trial import train_in

SMALL: dict[str, Any] = {
    "text": {"hidden": 8, "layers": 1, "heads": 2, "words": 6},
    "video": {"hidden": 8, "heads": 2, "levels": 3, "length": 32, "stem": 0, "window": 3},
    "fusion": {"layers": 1, "heads": 2},
    "points": {"first_range": 4.0},
}
OVERRIDES = {f"model.{part}.{key}": value for part, keys in SMALL.items() for key, value in keys.items()}


@pytest.fixture(autouse=True)
def snag(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(families.ENVIRONMENT, "snag=cdn_tune.model.snag.config:SnAGConfig")


def small(loss: SnAGLoss | None = None) -> SnAG:
    """A small network whose branches do something."""
    torch.manual_seed(0)
    model = SnAG(SnAGConfig.model_validate(SMALL), 5, 7, loss).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("_scale.scale"):
            torch.nn.init.constant_(parameter, 0.7)
    return model


def batch(queries: int = 3) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    return torch.randn(queries, 16, 5), torch.randn(queries, 4, 7), torch.ones(queries, 4, dtype=torch.bool)


def truth(queries: int = 3) -> Any:
    moments = torch.tensor([[2.0, 9.0], [10.0, 13.0], [0.0, 30.0]], dtype=torch.float64)[:queries]
    return SimpleNamespace(durations=torch.full((queries,), 32.0, dtype=torch.float64), moments=moments)


# ---- the network -----------------------------------------------------------------------------------------------------


def test_levels_end_to_end_are_levels_one_by_one() -> None:
    """Fusion and heads see nothing of a neighbouring level."""
    model = small()
    visual, words, mask = batch()
    text, text_mask = model.text(words, mask)
    pyramid = model.video(visual, torch.ones(3, 16, dtype=torch.bool))
    fused = model.fusion(pyramid, text, text_mask)
    scores = fused.split(model.score(fused))
    assert [level.shape[1] for level in scores] == [16, 8, 4]
    masks = pyramid.split(pyramid.mask)
    for level, features in enumerate(pyramid.split(pyramid.features)):
        alone = model.fusion(Pyramid(features, masks[level], (features.shape[1],)), text, text_mask)
        torch.testing.assert_close(model.score(alone), scores[level])


def test_an_answer_does_not_depend_on_the_batch() -> None:
    """Nor on padded frames and words, nor on whether its video is encoded with others or once for several queries."""
    model = small()
    visual, words, mask = batch()
    together = model(visual, words, mask)
    alone = model(visual[1:2], words[1:2, :2], mask[1:2, :2])
    mask[1, 2:] = False
    padded = model(
        torch.cat([visual, 9 * torch.ones(3, 8, 5)], dim=1),
        words,
        mask,
        (torch.arange(24) < 16).expand(3, -1),
    )
    assert int(padded.mask.sum()) == 3 * 28
    torch.testing.assert_close(padded.logits[1][padded.mask[1]], alone.logits[0], atol=1e-5, rtol=1e-4)
    shared = model(visual, words, mask | True, rows=torch.tensor([1, 1, 0]))
    torch.testing.assert_close(shared.logits[1], together.logits[1])
    (answers,) = model.answer(model.encode(visual[1:2]), words, mask | True)
    torch.testing.assert_close(answers.logits[1], together.logits[1])
    torch.testing.assert_close(answers.offsets[1], together.offsets[1])
    assert torch.equal(answers.mask, together.mask)


def test_long_queries_are_cut_in_training_alone() -> None:
    model = small()
    visual, words, mask = torch.randn(1, 16, 5), torch.randn(1, 9, 7), torch.ones(1, 9, dtype=torch.bool)
    tokens, _ = model.text(words, mask)
    assert tokens.shape[1] == 10  # with the background token
    tokens, _ = model.train().text(words, mask)
    assert tokens.shape[1] == 7
    assert model(visual, words, mask).logits.isfinite().all()


def test_gradients_reach_every_parameter() -> None:
    model = small().train()
    model.loss(model(*batch()), truth()).total.backward()
    unreached = {name for name, parameter in model.named_parameters() if parameter.grad is None}
    assert not unreached


# ---- labels and losses -----------------------------------------------------------------------------------------------


def test_points_and_labels() -> None:
    at = points([8, 4, 2], PointConfig(first_range=2.0, overlap=0.5), length=8)
    assert at.time.tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 0, 2, 4, 6, 0, 4]
    assert at.low.tolist() == [0] * 8 + [1] * 4 + [2] * 2
    assert at.high.tolist() == [2] * 8 + [4] * 4 + [9] * 2
    moments = torch.tensor([[1.0, 5.0], [2.9, 3.5], [2.1, 2.9]])
    near, offsets = assign(at, moments, radius=1.0)
    # Of a moment of 4 steps around 3: no offset of the first level is below 2 beside the centre, which has 2.
    assert near[0].nonzero()[:, 0].tolist() == [9, 10, 13]
    assert offsets[0, 10].tolist() == [1.5, 0.5]  # (4 - 1) / 2 and (5 - 4) / 2
    assert near[1].nonzero()[:, 0].tolist() == [3]
    assert not near[2].any()
    anywhere, _ = assign(at, moments, radius=None)
    assert bool((anywhere | ~near).all())


def test_span_loss() -> None:
    wanted = torch.tensor([[1.0, 3.0], [2.0, 2.0], [0.0, 4.0]])
    assert torch.equal(span_loss(wanted, wanted), torch.zeros(3))
    found = torch.tensor([[1.0, 1.0], [2.0, 2.0], [4.0, 0.0]])
    torch.testing.assert_close(span_loss(found, wanted, "iou"), torch.tensor([0.5, 0.0, 1.0]))
    # Centres 0 and 1 apart in a hull of 4; equal; -2 and 2 in a hull of 8.
    torch.testing.assert_close(span_loss(found, wanted), torch.tensor([0.5 + 1 / 16, 0.0, 1.0 + 1 / 4]))


def test_focal_loss() -> None:
    """Against targets 0.9 and 0.1, of scores 0.5 and 0.9."""
    logits = torch.tensor([0.0, 0.0, math.log(9), math.log(9)])
    entropies = [math.log(2), math.log(2), 0.325083, 2.082862]
    certainties = [0.5, 0.5, 0.9 * 0.9 + 0.1 * 0.1, 0.9 * 0.1 + 0.1 * 0.9]
    expected = [0.5 * own * (1 - certain) ** 2 for own, certain in zip(entropies, certainties, strict=True)]
    found = focal_loss(logits, torch.tensor([True, False, True, False]))
    torch.testing.assert_close(found, torch.tensor(expected))


def test_pieces_of_a_batch_add_up() -> None:
    """Weighted by their queries, as micro-batches and workers are."""
    model = small()
    output, whole = model(*batch()), truth()
    pieces = []
    for part in (slice(0, 1), slice(1, 3)):
        piece = SnAGOutput(output.logits[part], output.offsets[part], output.mask[part], output.points, output.steps)
        own = SimpleNamespace(durations=whole.durations[part], moments=whole.moments[part])
        pieces.append(model.loss(piece, own).total * len(own.moments) / 3)
    torch.testing.assert_close(sum(pieces), model.loss(output, whole).total)


@pytest.mark.parametrize("resumes", [True, False])
def test_the_normaliser_moves_in_training_and_resumes(resumes: bool) -> None:
    model = small(SnAGLoss(normaliser=2.0, normaliser_resumes=resumes))
    output = model(*batch())
    first = model.loss(output, truth())
    assert float(model.positives_per_query) == 2
    model.train().loss(output, truth())
    found = int(model.sums(output, truth().moments / 2 - 0.5).positives)
    assert float(model.positives_per_query) == pytest.approx(0.9 * 2 + 0.1 * found / 3)
    again = model.eval().loss(output, truth())
    torch.testing.assert_close(again.total * model.positives_per_query, first.total * 2)
    assert ("positives_per_query" in model.state_dict()) == resumes


# ---- answers ---------------------------------------------------------------------------------------------------------


def exact() -> SnAGOutput:
    """An output whose positive points have the offsets wanted of `truth`, and the only high scores."""
    model = small()
    output = model(*batch())
    positive, wanted = assign(output.points, (truth().moments / 2 - 0.5).float(), 1.5)
    return output._replace(logits=torch.where(positive, 3.0, -9.0), offsets=wanted.clamp(min=0))


def test_wanted_offsets_are_the_moments() -> None:
    model, output = small(), exact()
    found = model.spans(output, truth().durations)
    best = model.suppress(found, 1, 0.5)
    torch.testing.assert_close(best.spans[:, 0], truth().moments, atol=1e-5, rtol=0)
    assert bool((best.scores > 0.9).all())


def test_what_is_not_finite_is_shown() -> None:
    output = exact()
    output.logits[0, 5] = torch.inf
    output.offsets[1, 6] = torch.nan
    found = decode(output, small().config.evaluation)
    assert found.scores.isnan().sum(dim=1).tolist() == [1, 1, 0]


def test_candidates_are_limited() -> None:
    output = exact()._replace(mask=torch.arange(28).expand(3, -1) < 10)
    settings = small().config.evaluation.model_copy(update={"candidates": 4, "min_score": 0.5, "min_length": 8.0})
    found = decode(output, settings)
    assert found.spans.shape == (3, 4, 2)
    there = found.scores > -torch.inf
    lengths = found.spans[..., 1] - found.spans[..., 0]
    assert bool((lengths[there] > 8).all())
    assert bool((found.scores[there] > 0.5).all())


@pytest.mark.parametrize("stride", [1, 2])
def test_external_scores_reach_every_level(stride: int) -> None:
    """Also those after an input stride: the published code fails there."""
    external = torch.zeros(1, 16 * stride)
    external[0, 7 * stride] = 0.5
    found = external_at_points(external, stride, levels=3)
    assert [found[0, points].amax().item() for points in (slice(0, 16), slice(16, 24), slice(24, 28))] == [0.5] * 3
    assert found.shape == (1, 28)


# ---- configuration and training --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"video": {"window": 4}}, "window=4 is even; use 3 or 5"),
        ({"video": {"stride": 3}}, "stride=3 is no power of two; use 2 or 4"),
        ({"video": {"stride": 8}}, "stride=8 needs 3 convs to halve the input, not 2"),
        ({"video": {"length": 250}}, "length=250 cannot be halved for 6 levels; use 256"),
        ({"video": {"heads": 3}}, "video.hidden=256 is no even multiple of its heads .3, fusion: 4.; use 252"),
        ({"text": {"hidden": 9, "heads": 3}}, "text.hidden=9 is no even multiple of its heads .3.; use 12"),
    ],
)
def test_impossible_values(values: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        SnAGConfig.model_validate(values)


@pytest.mark.parametrize(
    ("frames", "words"),
    [(18, "data.frames=18 cannot be halved .* choose data.frames=16"), (64, "64 is more .* set model.video.length=64")],
)
def test_frames_that_do_not_fit(tiny: Callable[..., Experiment], frames: int, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        tiny(**{"model.name": "snag", **OVERRIDES, "data.frames": frames})


def test_lengths_of_long_videos() -> None:
    assert VideoConfig(levels=8, window=19, length=2304).coarsest == 2304
    assert VideoConfig(window=0).coarsest == 32


def test_it_trains_stops_goes_on_and_answers(tiny: Callable[..., Experiment], tmp_path: Path) -> None:
    """What it has counted resumes with the weights: the same losses to the last bit."""
    experiment = tiny(**{"model.name": "snag", **OVERRIDES, "train.epochs": 2, "loss.normaliser_momentum": 0.99})
    run, again = tmp_path / "run", tmp_path / "again"
    whole: list[EpochReport] = []
    with locked(run):
        claim(
            run,
            describe_run("train", experiment, fingerprint(experiment.data)),
            {"experiment.yaml": experiment.plain()},
        )
        train_in(experiment, run, whole.append)
    assert whole[1].loss < whole[0].loss
    calls = iter(range(100))
    with pytest.raises(KeyboardInterrupt):
        train_in(experiment, again, ignore, stop=lambda: next(calls) > 3)
    reports: list[EpochReport] = []
    train_in(experiment, again, reports.append)
    assert [report.losses for report in reports] == [report.losses for report in whole]
    model = load_checkpoint(run / BEST).model
    assert isinstance(model, SnAG)
    assert float(model.positives_per_query) != SnAGLoss().normaliser
    features = torch.randn(40, 16, generator=torch.Generator().manual_seed(0)).numpy()
    for window in (None, 10.0):
        (answers,) = load(run).retrieve(features, 30.0, ["the person opens a door"], window=window)
        assert answers
        assert all(0 <= answer.start < answer.end <= 30 for answer in answers)
