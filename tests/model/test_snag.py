"""SnAG as a family: its parts, its losses, its answers, and training through the door."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from pydantic import ValidationError
from typer.testing import CliRunner

from cdn_tune import load
from cdn_tune.cli import app
from cdn_tune.config import Experiment
from cdn_tune.data.fingerprint import fingerprint
from cdn_tune.data.lexicon import open_lexicon
from cdn_tune.errors import ConfigError
from cdn_tune.evaluation.retriever import Retriever
from cdn_tune.model.layers.span_loss import span_loss
from cdn_tune.model.snag.config import PointConfig, SnAGConfig, SnAGLoss, VideoConfig
from cdn_tune.model.snag.decode import decode
from cdn_tune.model.snag.inference import external_at_points
from cdn_tune.model.snag.loss import assign, focal_loss
from cdn_tune.model.snag.network import SnAG, SnAGOutput
from cdn_tune.model.snag.pyramid import Pyramid, points
from cdn_tune.training.memory.estimate import _kept, estimate
from cdn_tune.training.reports import EpochReport, ignore
from cdn_tune.training.runs.checkpoint import BEST, LAST, build_model, load_checkpoint, read_checkpoint
from cdn_tune.training.runs.run_folder import claim, describe_run, locked
from cdn_tune.training.state import with_epochs
from cdn_tune.training.train_trial import train_in

SMALL: dict[str, Any] = {
    "text": {"hidden": 8, "layers": 1, "heads": 2, "words": 6},
    "video": {"hidden": 8, "heads": 2, "levels": 3, "length": 32, "stem": 0, "window": 3},
    "fusion": {"layers": 1, "heads": 2},
    "points": {"first_range": 4.0},
}
OVERRIDES = {f"model.{part}.{key}": value for part, keys in SMALL.items() for key, value in keys.items()}
OVERRIDES |= {"model.name": "snag", "data.sequence.length": 16}
Given = tuple[torch.Tensor, ...]


def small(loss: SnAGLoss | None = None) -> SnAG:
    """A small network whose branches do something."""
    torch.manual_seed(0)
    model = SnAG(SnAGConfig.model_validate(SMALL), 5, 7, loss).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("_scale.scale"):
            torch.nn.init.constant_(parameter, 0.7)
    return model


def video(visual: torch.Tensor) -> Given:
    """Frame features of whole videos, as the network reads them: steps of two seconds, the first at one."""
    times = torch.tensor([1.0, 2.0], dtype=torch.float64).expand(len(visual), 2)
    return visual, torch.ones(visual.shape[:2], dtype=torch.bool), times


def batch() -> Given:
    torch.manual_seed(1)
    return *video(torch.randn(3, 16, 5)), torch.randn(3, 4, 7), torch.ones(3, 4, dtype=torch.bool)


def truth() -> Any:
    moments = torch.tensor([[2.0, 9.0], [10.0, 13.0], [0.0, 30.0]], dtype=torch.float64)
    return SimpleNamespace(durations=torch.full((3,), 32.0, dtype=torch.float64), moments=moments)


# ---- the network -----------------------------------------------------------------------------------------------------


def test_levels_end_to_end_are_levels_one_by_one() -> None:
    """Fusion and heads see nothing of a neighbouring level."""
    model = small()
    visual, frames, _, words, mask = batch()
    text, text_mask = model.text(words, mask)
    pyramid = model.video(visual, frames)
    fused = model.fuse(pyramid, text, text_mask)
    scores = fused.split(model.score(fused))
    assert [level.shape[1] for level in scores] == [16, 8, 4]
    masks = pyramid.split(pyramid.mask)
    for level, features in enumerate(pyramid.split(pyramid.features)):
        alone = model.fuse(Pyramid(features, masks[level], (features.shape[1],)), text, text_mask)
        torch.testing.assert_close(model.score(alone), scores[level])


def test_an_answer_does_not_depend_on_the_batch() -> None:
    """Nor on padded frames and words, nor on whether its video is encoded with others or once for several queries."""
    model = small()
    visual, frames, times, words, mask = batch()
    together = model(visual, frames, times, words, mask)
    alone = model(*video(visual[1:2, :13]), words[1:2, :2], mask[1:2, :2])
    assert alone.mask.sum() == 13 + 7 + 4
    cut = mask.clone()
    cut[1, 2:] = False
    longer = torch.cat([visual, 9 * torch.ones(3, 23, 5)], dim=1)  # longer than the table of positions
    lengths = torch.tensor([[16], [13], [39]])
    padded = model(longer, torch.arange(39) < lengths, times, words, cut)
    torch.testing.assert_close(padded.logits[1][padded.mask[1]], alone.logits[0][alone.mask[0]], atol=1e-5, rtol=1e-4)
    shared = model(visual, frames, times, words, mask, rows=torch.tensor([1, 1, 0]))
    torch.testing.assert_close(shared.logits[1], together.logits[1])
    encoded = model.encode(*(each[1:] for each in (longer, torch.arange(39) < lengths, times)))
    answers, _ = model.answer(encoded, words, cut)
    torch.testing.assert_close(answers.logits[1], padded.logits[1])
    torch.testing.assert_close(answers.offsets[1], padded.offsets[1])
    assert torch.equal(answers.mask[1], padded.mask[1])


def test_long_queries_are_cut_in_training_alone() -> None:
    model = small()
    words, mask = torch.randn(1, 9, 7), torch.ones(1, 9, dtype=torch.bool)
    tokens, _ = model.text(words, mask)
    assert tokens.shape[1] == 10  # with the background token
    tokens, _ = model.train().text(words, mask)
    assert tokens.shape[1] == 7
    assert model(*video(torch.randn(1, 16, 5)), words, mask).logits.isfinite().all()


def test_rows_are_the_scores_of_each_level_and_the_words_attended_to() -> None:
    model = small()
    given = batch()
    frames = torch.arange(16) < torch.tensor([[16], [16], [9]])
    rows = torch.tensor([2, 0, 2])
    inputs = (given[0], frames, *given[2:])
    with torch.no_grad():
        output = model(*inputs, rows)
        levels, words = model.rows(output, *inputs, rows)
    assert [each.shape for each in levels.values] == [(3, 16), (3, 8), (3, 4)]
    assert levels.names == ("level 1", "level 2", "level 3")
    torch.testing.assert_close(torch.cat(levels.values, dim=1), output.logits.sigmoid() * output.mask)
    assert levels.values[0][0, 9:].abs().max() == 0  # after the end of the third video, the first query's
    assert levels.seconds is not None
    assert levels.seconds.tolist() == [[1.0, 33.0]] * 3  # steps of two seconds
    attended = torch.stack(words.values, dim=2)  # [N, T, L']
    assert attended.shape == (3, 16, len(words.names) + 4)
    real = frames[rows]
    torch.testing.assert_close(attended.sum(dim=2)[real], torch.ones(int(real.sum())))
    assert attended[~real].abs().max() == 0


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


def part_of(output: SnAGOutput, queries: slice) -> tuple[SnAGOutput, Any]:
    whole = truth()
    logits, offsets, mask, at, times = output
    piece = SnAGOutput(logits[queries], offsets[queries], mask[queries], at, times[queries])
    return piece, SimpleNamespace(durations=whole.durations[queries], moments=whole.moments[queries])


def test_pieces_of_a_batch_add_up() -> None:
    """Weighted by their queries, as micro-batches and workers are; the normaliser follows the whole batch."""
    models = [small(SnAGLoss(normaliser=7.0)) for _ in range(2)]
    output = models[0](*batch())
    for step in range(2):
        models[0].start_step(3)
        whole = models[0].loss(output, truth()).total
        models[0].end_step(lambda mine: mine)
        models[1].start_step(3)
        parts = [part_of(output, queries) for queries in (slice(0, 1), slice(1, 3))]
        pieces = [models[1].loss(*piece).total * len(piece[1].moments) / 3 for piece in parts]
        models[1].end_step(lambda mine: mine)
        torch.testing.assert_close(sum(pieces), whole)
        assert float(models[0].normaliser) == float(models[1].normaliser) != 7, step


@pytest.mark.parametrize("resumes", [True, False])
def test_the_normaliser_moves_after_a_step_alone(resumes: bool) -> None:
    """By the positive points of all workers, at least 1; and checkpoints hold it, unless as published."""
    model = small(SnAGLoss(normaliser=20.0, normaliser_resumes=resumes)).train()
    output = model(*batch())
    found = model.sums(output, (truth().moments - 1) / 2)
    first = model.loss(output, truth())
    torch.testing.assert_close(first.parts["score_loss"], found.score / 20)
    assert float(model.normaliser) == 20
    model.start_step(3)
    model.loss(output, truth())
    model.end_step(lambda mine: 4 * mine)
    assert float(model.normaliser) == pytest.approx(0.9 * 20 + 0.1 * 4 * int(found.positives))
    model.start_step(3)
    model.end_step(lambda mine: mine)  # without a loss, as where a step was left out
    model.start_step(3)
    model.loss(output, truth())
    before = float(model.normaliser)
    model.end_step(torch.zeros_like)
    assert float(model.normaliser) == pytest.approx(0.9 * before + 0.1)
    assert ("normaliser" in model.state_dict()) == resumes


# ---- answers ---------------------------------------------------------------------------------------------------------


def exact() -> SnAGOutput:
    """An output whose positive points have the offsets wanted of `truth`, and the only high scores."""
    model = small()
    output = model(*batch())
    positive, wanted = assign(output.points, ((truth().moments - 1) / 2).float(), 1.5)
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
        ({"video": {"length": 250}}, "length=250 cannot be halved for 6 levels; use 224 or 256"),
        ({"video": {"heads": 3}}, "video.hidden=256 is no even multiple of its heads .3, fusion: 4.; use 252"),
        ({"text": {"hidden": 9, "heads": 3}}, "text.hidden=9 is no even multiple of its heads .3.; use 12"),
    ],
)
def test_impossible_values(values: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        SnAGConfig.model_validate(values)


def test_batches_are_of_videos(tiny: Callable[..., Experiment]) -> None:
    assert tiny(**OVERRIDES).batch_of == tiny(**OVERRIDES, **{"train.batch_of": "videos"}).batch_of == "videos"
    with pytest.raises(
        ConfigError, match=r"train\.batch_of=queries: model\.name=snag reads some queries of .*queries=1"
    ):
        tiny(**OVERRIDES, **{"train.batch_of": "queries"})


def test_sequences_longer_than_the_table(tiny: Callable[..., Experiment]) -> None:
    with pytest.raises(ConfigError, match=r"data.sequence.length=50 is more .* set model.video.length=52"):
        tiny(**{**OVERRIDES, "data.sequence.length": 50})


def test_lengths_of_long_videos() -> None:
    assert VideoConfig(levels=8, window=19, length=2304).coarsest == 2304
    assert VideoConfig(window=0).coarsest == 32


VARIABLE = {"data.sequence.form": "variable", "data.sequence.crop": [0.6, 0.9], "data.sequence.length": 24}


def test_memory_is_estimated_without_computing(tiny: Callable[..., Experiment]) -> None:
    """What the backward pass keeps is that of a real forward pass; the bound is above all that a query takes."""
    experiment = tiny(**{**OVERRIDES, **VARIABLE})
    need = estimate(experiment, torch.float32, torch.device("cpu"))
    model = build_model(experiment).train()
    two, three = (_kept(model, experiment, torch.float32, queries) for queries in (2, 3))
    assert need.activations == pytest.approx(three - two, rel=0.1)  # attention on the CPU keeps less
    known = model.memory(24, 8, torch.float32, torch.device("cpu"))
    assert known is not None
    assert known.bound > need.activations + known.temporary


def test_it_trains_stops_goes_on_and_answers(tiny: Callable[..., Experiment], tmp_path: Path) -> None:
    """Parts of videos, in pieces: what it has counted and averaged resumes with the weights, to the last bit."""
    changes = {**OVERRIDES, **VARIABLE, "train.epochs": 2, "train.batch_size": 3, "train.micro_batch": 2}
    changes |= {"train.ema": 0.9, "optim.text_lr": 1e-3, "optim.warmup_epochs": 1, "loss.normaliser_momentum": 0.99}
    experiment = tiny(**changes)
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
    assert whole[0].steps > 2
    calls = iter(range(100))
    with pytest.raises(KeyboardInterrupt):
        train_in(experiment, again, ignore, stop=lambda: next(calls) > 1)
    assert read_checkpoint(again / LAST)["within"] is not None
    reports: list[EpochReport] = []
    train_in(experiment, again, reports.append)
    assert [(report.losses, report.val) for report in reports] == [(report.losses, report.val) for report in whole]
    model = load_checkpoint(run / BEST).model
    assert isinstance(model, SnAG)
    assert float(model.normaliser) != SnAGLoss().normaliser
    features = torch.randn(40, 16, generator=torch.Generator().manual_seed(0)).numpy()
    for window in (None, 10.0):
        (answers,) = load(run).retrieve(features, 30.0, ["the person opens a door"], window=window)
        assert answers
        assert all(0 <= answer.start < answer.end <= 30 for answer in answers)


def test_the_normaliser_is_lost_on_resume_if_as_published(tiny: Callable[..., Experiment], tmp_path: Path) -> None:
    changes = {**OVERRIDES, "train.batch_size": 3, "loss.normaliser": 5000.0}
    losses = {}
    for resumes in (True, False):
        experiment = tiny(**{**changes, "train.epochs": 1, "loss.normaliser_resumes": resumes})
        train_in(experiment, tmp_path / f"{resumes}", ignore)
        longer = with_epochs(experiment, 2)
        reports: list[EpochReport] = []
        train_in(longer, tmp_path / f"{resumes}", reports.append)
        losses[resumes] = [report.loss for report in reports]
    assert losses[True][0] == losses[False][0]
    assert losses[True][1] > 1.1 * losses[False][1]


def test_evaluate_predict_export_and_report(tiny: Callable[..., Experiment], planted: Path, tmp_path: Path) -> None:
    experiment, run, out = tiny(**{**OVERRIDES, **VARIABLE, "train.epochs": 1}), tmp_path / "run", tmp_path / "out"
    with locked(run):
        about = describe_run("train", experiment, fingerprint(experiment.data))
        claim(run, about, {"experiment.yaml": experiment.plain()})
        train_in(experiment, run, ignore)
    assert "--score-maps: model.name=snag has no score maps" in invoke("evaluate", run, "--score-maps", code=2)
    assert "SnAG, best on val" in invoke("evaluate", run)
    predictions = [json.loads(line) for line in (run / "predictions.jsonl").read_text().splitlines()]
    retriever, item = load(run), predictions[0]
    with h5py.File(planted / "vgg_rgb_features.hdf5") as file:
        frames = file[item["video"]][:]
    (answers,) = retriever.retrieve(frames, item["duration"], [item["query"]])
    told = [[answer.start, answer.end, answer.score] for answer in answers]
    np.testing.assert_allclose(told, item["moments"][: len(told)], atol=1e-3)
    assert "model.name=snag has no graph" in invoke("export", run, "--out", out, "--onnx", code=2)
    invoke("export", run, "--out", out)
    assert load(out).retrieve(frames, item["duration"], [item["query"]]) == [answers]
    assert "size 16, as they are; word vectors" in (out / "README.md").read_text()
    assert "SnAG, chosen on val" in (invoke("report", run) and (run / "report/index.html").read_text(encoding="utf-8"))


def invoke(*arguments: Any, code: int = 0) -> str:
    result = CliRunner().invoke(app, list(map(str, arguments)))
    assert result.exit_code == code, result.output
    return " ".join(result.output.split())


@pytest.mark.parametrize("form", ["fixed", "variable"])
def test_windows_are_parts_of_the_video(tiny: Callable[..., Experiment], form: str) -> None:
    """A window's answers are those of its frame features as a video of their own, at the window's seconds."""
    experiment = tiny(**{**OVERRIDES, "data.sequence.form": form, "data.sequence.clip_size": 3})
    torch.manual_seed(0)
    lexicon = open_lexicon(experiment.data)
    retriever = Retriever(build_model(experiment), experiment, lexicon, True, Path("none"), "cpu")
    frames = torch.randn(40, 16).numpy()
    video = retriever.encode(frames, 42.0, window=21.0, stride=21.0)
    assert video.windows == ((0, 20), (20, 40))
    begin, step = video.encoded[0].times.T.tolist()
    assert begin[1] - begin[0] == pytest.approx(20.0)  # 20 clips, one begun every second
    assert step == pytest.approx([1.0, 1.0] if form == "variable" else [22 / 16, 22 / 16])
    assert begin[0] == pytest.approx(1.5 if form == "variable" else 11 / 16)
    whole = retriever.encode(frames[20:], 22.0)
    mine, theirs = (each.encoded[0].pyramid.features for each in (video, whole))
    torch.testing.assert_close(mine[1:], theirs)
