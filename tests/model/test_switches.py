"""Switches of the map families: off they change nothing; on they compute what their formulas say, and are trained."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from cdn_tune import load
from cdn_tune.config import Experiment
from cdn_tune.data.fingerprint import fingerprint
from cdn_tune.errors import ConfigError
from cdn_tune.evaluation import graph
from cdn_tune.evaluation.export import export_run
from cdn_tune.model.cdn.config import CDNConfig
from cdn_tune.model.cdn.network import CDN
from cdn_tune.model.layers.map_model import FusedMapModel
from cdn_tune.model.layers.offsets import moved, offset_loss
from cdn_tune.model.published import published_settings
from cdn_tune.model.tan.config import TANConfig
from cdn_tune.model.tan.network import TAN
from cdn_tune.training.memory.estimate import estimate
from cdn_tune.training.reports import EpochReport, ignore
from cdn_tune.training.runs.checkpoint import BEST, build_model, load_checkpoint
from cdn_tune.training.runs.run_folder import claim, describe_run, locked
from cdn_tune.training.train_trial import train_in

Tiny = Callable[..., Experiment]
CPU = torch.device("cpu")
SWITCHES: dict[str, dict[str, Any]] = {
    "diou": {"offsets": "diou"},
    "l1giou": {"offsets": "l1giou"},
    "affine": {"cross_attention": {"layers": 2, "heads": 2}},
    "adaln": {"cross_attention": {"layers": 1, "heads": 2, "mode": "adaln", "stem": 1, "window": 3}},
    "gates": {"gates": True},
    "maps": {"map_scales": 2, "offsets": "diou"},
    "contrastive": {"contrastive": True, "joint": 4},
    "add": {"ends": "add"},
    "concat": {"ends": "concat"},
    "traced": {
        "cross_attention": {"layers": 1, "stem": 1, "heads": 2, "mode": "adaln"},
        "gates": True,
        "contrastive": True,
        "joint": 4,
        "ends": "concat",
    },
    "all": {
        "offsets": "diou",
        "cross_attention": {"layers": 1, "stem": 1, "heads": 2},
        "gates": True,
        "map_scales": 3,
        "contrastive": True,
        "joint": 4,
        "ends": "concat",
    },
}
# Parameters that each switch adds, and parts of the loss.
ADDED: dict[str, tuple[str, ...]] = {
    "diou": ("offset.",),
    "l1giou": ("offset.",),
    "affine": ("cross_attention.",),
    "adaln": ("cross_attention.", "stem."),
    "gates": ("map.gates.",),
    "maps": ("map.coarser_norms.", "offset."),
    "contrastive": ("matching.",),
    "add": (),
    "concat": ("ends.",),
    "traced": ("cross_attention.", "stem.", "map.gates.", "matching.", "ends."),
    "all": ("offset.", "cross_attention.", "stem.", "map.gates.", "map.coarser_norms.", "matching.", "ends."),
}
PARTS = {
    "diou": ("offset_loss",),
    "l1giou": ("offset_loss",),
    "maps": ("offset_loss",),
    "contrastive": ("loss_vid", "loss_sent"),
    "traced": ("loss_vid", "loss_sent"),
    "all": ("loss_vid", "loss_sent", "offset_loss"),
}
SMALL: dict[str, Any] = {"clips": 8, "hidden": 8, "query": {"layers": 1}}
FAMILIES: dict[str, dict[str, Any]] = {
    "cdn": {**SMALL, "attention_size": 8, "map": {"layers": 2, "kernel_size": 3, "dynamic_layers": 1, "experts": 2}},
    "tan": {**SMALL, "query": {"layers": 1, "hidden": 8}, "map": {"layers": 2, "kernel_size": 3}},
}


def build(family: str = "cdn", **changes: Any) -> FusedMapModel:
    torch.manual_seed(0)
    if family == "cdn":
        return CDN(CDNConfig.model_validate({**FAMILIES["cdn"], **changes}), 6, 5)
    return TAN(TANConfig.model_validate({**FAMILIES["tan"], **changes}), 6, 5)


def test_rows_are_the_words_that_clips_attend_to() -> None:
    model = build(cross_attention={"layers": 2, "heads": 2}).eval()
    with torch.no_grad():
        (words,) = model.rows(model(*inputs()), *inputs())
        attended = torch.stack(words.values, dim=2)  # [B, S, L]
        assert model.cross_attention is not None
        model.cross_attention.layers[1].attention.query.weight.mul_(2)
        (others,) = model.rows(None, *inputs())
    assert attended.shape == (3, 8, 6)
    assert words.seconds is None
    torch.testing.assert_close(attended.sum(dim=2), torch.ones(3, 8))
    assert attended[1, :, 3:].abs().max() == 0  # behind its three words
    assert not torch.allclose(torch.stack(others.values, dim=2), attended)  # all layers count
    assert build().rows(None, *inputs()) == ()


def inputs() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    mask = torch.arange(6) < torch.tensor([[6], [3], [4]])
    words = torch.randn(3, 6, 5, generator=generator) * mask[..., None]
    return torch.randn(3, 16, 6, generator=generator), words, mask


def truth() -> Any:
    """A batch of three queries, of which the last is answered by two moments."""
    visual, words, mask = inputs()
    nan = [torch.nan, torch.nan]
    moments = torch.tensor([[[2.0, 9.0], nan], [[10.0, 13.0], nan], [[0.0, 4.0], [20.0, 29.0]]], dtype=torch.float64)
    return SimpleNamespace(
        visual=visual,
        words=words,
        word_mask=mask,
        durations=torch.full((3,), 32.0, dtype=torch.float64),
        all_moments=moments,
        moments=moments[:, 0],
        videos=torch.tensor([4, 2, 4]),
    )


def dotted(switch: str) -> dict[str, Any]:
    """The switch's settings as overrides."""
    found: dict[str, Any] = {}
    for key, value in SWITCHES[switch].items():
        if isinstance(value, dict):
            found |= {f"model.{key}.{name}": each for name, each in value.items()}
        else:
            found[f"model.{key}"] = value
    return found


# ---- every switch ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("switch", SWITCHES)
def test_a_switch_adds_its_own_weights_alone_and_all_are_trained(switch: str, family: str) -> None:
    plain, model = build(family), build(family, **SWITCHES[switch])
    before, after = plain.state_dict(), model.state_dict()
    assert after.keys() - before.keys() == {name for name in after if name.startswith(ADDED[switch])}
    if not SWITCHES[switch].get("gates"):  # whose weights are drawn before those of the score
        assert all(torch.equal(after[name], value) for name, value in before.items())
    assert model.loss_names == (*plain.loss_names, *PARTS.get(switch, ()))

    with torch.no_grad():
        for name, parameter in model.named_parameters():  # those that start at 0 hide others from gradients
            if name not in before and not parameter.any():
                parameter.normal_(std=0.1)
    found = model.loss(model(*model.inputs_of(truth())), truth())
    assert set(found.parts) == set(model.loss_names)
    found.total.backward()  # type: ignore[no-untyped-call]
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in model.parameters())


@pytest.mark.parametrize("switch", SWITCHES)
def test_a_query_is_answered_alike_in_any_company(switch: str) -> None:
    """Alone, in a batch, and by `encode` and `answer`, of which the first does not read the query."""
    model = build(**SWITCHES[switch]).eval()
    visual, words, mask = inputs()
    durations = torch.full((3,), 31.4, dtype=torch.float64)
    with torch.no_grad():
        if model.offset is not None:
            torch.nn.init.normal_(model.offset.weight)
        together = model.spans(model(visual, words, mask), durations)
        encoded = model.encode(visual)
        for row, output in enumerate(model.answer(encoded, words, mask)):
            answered = model.spans(output, durations)
            alone = model.spans(model(*(each[row : row + 1] for each in (visual, words, mask))), durations[:1])
            for other, at in ((answered, row), (alone, 0)):
                torch.testing.assert_close(other.scores[at], together.scores[row])
                torch.testing.assert_close(other.spans[at], together.spans[row], rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("switch", ["traced", "all"])
def test_trains_resumes_predicts_and_exports(switch: str, tiny: Tiny, tmp_path: Path) -> None:
    experiment = tiny(**dotted(switch), **{"train.epochs": 2})
    whole: list[EpochReport] = []
    with locked(tmp_path / "run"):
        claim(
            tmp_path / "run",
            describe_run("train", experiment, fingerprint(experiment.data)),
            {"experiment.yaml": experiment.plain()},
        )
        train_in(experiment, tmp_path / "run", whole.append)
    assert set(PARTS.get(switch, ())) <= set(whole[0].losses)

    again: list[EpochReport] = []
    calls = iter(range(100))
    with pytest.raises(KeyboardInterrupt):
        train_in(experiment, tmp_path / "again", ignore, stop=lambda: next(calls) > whole[0].steps + 1)
    train_in(experiment, tmp_path / "again", again.append)
    assert [(each.loss, each.losses, each.val) for each in again] == [
        (each.loss, each.losses, each.val) for each in whole
    ]
    fresh = build_model(experiment).state_dict()
    trained = load_checkpoint(tmp_path / "run" / BEST).model.state_dict()
    added = [name for name in trained if name.startswith(ADDED[switch])]
    assert not any(torch.equal(trained[name], fresh[name]) for name in added)

    export_run(tmp_path / "run", tmp_path / "out", torch_export=switch == "traced")
    features = np.random.default_rng(0).standard_normal((40, 16)).astype(np.float32)
    answers = [load(tmp_path / name).retrieve(features, 30.0, ["the person opens a door"]) for name in ("run", "out")]
    assert answers[0] == answers[1]
    assert answers[0][0]


@pytest.mark.parametrize("key", ["offsets", "map_scales"])
def test_what_a_graph_cannot_hold_is_told(key: str) -> None:
    model = build(**{key: {"offsets": "diou", "map_scales": 2}[key]})
    with pytest.raises(ConfigError, match=rf"model\.{key}=.* export without --onnx and --torch-export"):
        graph.check_can_trace(model, onnx=False)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("switch", ["affine", "adaln", "gates", "concat", "all"])
def test_memory(switch: str, family: str, tiny: Tiny) -> None:
    """The estimate counts the switch, and the bound that saves its time stays above it."""
    small = {"model.hidden": 32, "model.map.layers": 1, "data.frames": 16, "data.feature_size": 16}
    if family == "tan":
        small |= {"model.name": "tan", "model.clips": 8, "model.query.layers": 1, "model.query.hidden": 8}
    plain, experiment = tiny(**small), tiny(**small, **dotted(switch))
    need = estimate(experiment, torch.float32, CPU)
    assert need.total(8) > estimate(plain, torch.float32, CPU).total(8)
    bound = build_model(experiment).memory(16, 8, torch.float32, CPU)
    assert bound is not None
    assert bound.bound > need.activations + need.temporary


@pytest.mark.parametrize("switch", SWITCHES)
def test_no_published_model_has_one(switch: str, tiny: Tiny) -> None:
    experiment = tiny(**dotted(switch), **{"model.attention_size": 256})
    with pytest.raises(ConfigError, match="the published model has no such thing"):
        published_settings(experiment.model, experiment.data)


def test_what_is_on_is_shown(tiny: Tiny) -> None:
    plain, changed = tiny().model, tiny(**{"model.gates": True, "model.offsets": "diou"}).model
    assert changed.summary() == f"{plain.summary()}, gates=True, offsets=diou"


def test_a_family_without_them_is_told_who_has_them(tiny: Tiny) -> None:
    with pytest.raises(ConfigError, match=r"unknown key of the family mmn; with model.name=cdn or tan it exists"):
        tiny(**{"model.name": "mmn", "model.offsets": "diou"})


# ---- offsets ---------------------------------------------------------------------------------------------------------


def plain_offset_loss(
    offsets: torch.Tensor, cells: torch.Tensor, moments: torch.Tensor, kind: str, least: float
) -> float:
    """The loss in plain Python, a number at a time."""

    def share(a: float, b: float, c: float, d: float) -> float:
        inter = max(min(b, d) - max(a, c), 0.0)
        return inter / (b - a + d - c - inter)

    losses = []
    for row, wanted in enumerate(moments.tolist()):
        real = [each for each in wanted if each[0] == each[0]]
        found = []
        for (s, e), (first, last) in zip(cells.tolist(), offsets[row].tolist(), strict=True):
            a, b = max(real, key=lambda each: share(s, e, *each))
            if share(s, e, a, b) < least:
                continue
            length = e - s
            low, high = sorted((s + length * first, e + length * last))
            iou, hull = share(low, high, a, b), max(high, b) - min(low, a)
            if kind == "diou":
                found.append(1 - iou + (((low + high) / 2 - (a + b) / 2) / hull) ** 2)
            else:
                gaps = [abs(first - (a - s) / length), abs(last - (b - e) / length)]
                smooth = sum(0.5 * gap**2 if gap < 1 else gap - 0.5 for gap in gaps) / 2
                union = (high - low) + (b - a) - max(min(high, b) - max(low, a), 0.0)
                found.append(smooth + 1 - (iou - (hull - union) / hull))
        losses.append(sum(found) / len(found) if found else 0.0)
    return sum(losses) / len(losses)


@pytest.mark.parametrize("kind", ["diou", "l1giou"])
def test_offset_loss_is_the_formula(kind: Any) -> None:
    """On random offsets, of which some turn a span around or move it away from the truth."""
    generator = torch.Generator().manual_seed(0)
    edges = torch.combinations(torch.arange(9.0), 2) / 8
    moments = torch.rand(5, 2, 2, generator=generator).sort(dim=2).values
    moments[:3, 1] = torch.nan
    moments[0, 0] = torch.tensor([0.50, 0.51])  # of no cell's size
    for spread in (0.05, 0.5, 2.0):
        offsets = spread * torch.randn(5, len(edges), 2, generator=generator)
        expected = plain_offset_loss(offsets, edges, moments, kind, 0.3)
        found = offset_loss(offsets, edges, moments, kind, 0.3)
        assert found.item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_offsets_start_at_zero_and_move_spans_within_the_video(family: str) -> None:
    plain, model = build(family).eval(), build(family, offsets="diou").eval()
    durations = torch.tensor([31.37, 8.0, 90.1], dtype=torch.float64)
    with torch.no_grad():
        expected, found = (each.spans(each(*inputs()), durations) for each in (plain, model))
        torch.testing.assert_close(found.spans, expected.spans, rtol=1e-7, atol=0)
        assert torch.equal(found.scores, expected.scores)

        torch.nn.init.normal_(model.offset.weight, std=3.0)  # type: ignore[union-attr, arg-type]
        output = model(*inputs())
        changed = model.spans(output, durations).spans
    starts, ends = changed.unbind(-1)
    assert (starts >= 0).all()
    assert (starts <= ends).all()
    assert (ends <= durations[:, None]).all()
    free = moved(expected.spans, output.offsets.double())
    inside = (free[..., 0] > 0) & (free[..., 1] < durations[:, None])
    torch.testing.assert_close(changed[inside], free[inside])
    assert inside.any()
    assert not inside.all()


def test_real_spans_are_suppressed_not_cells() -> None:
    """Two cells apart that offsets bring to the same place are one answer."""
    model = build("tan", offsets="diou").eval()
    durations = torch.tensor([8.0], dtype=torch.float64)
    logits = torch.full((1, 8, 8), -9.0)
    logits[0, 0, 1], logits[0, 4, 5] = 3.0, 2.0  # [0, 2] and [4, 6]
    output = model(*(each[:1] for each in inputs()))._replace(logits=logits)
    offsets = torch.zeros_like(output.offsets)
    kept = model.suppress(model.spans(output._replace(offsets=offsets), durations), 2, 0.5)
    assert kept.spans[0].tolist() == [[0.0, 2.0], [4.0, 6.0]]
    offsets[0, model.proposals.by_row == 4 * 8 + 5] = -2.0
    found = model.spans(output._replace(offsets=offsets), durations)
    assert model.suppress(found, 2, 0.5).scores[0, 1] < 0.01
    soft = model.suppress(found, 2, 0.5, "soft", 0.5)
    wanted = torch.sigmoid(torch.tensor([3.0, 2.0])) * torch.tensor([1.0, math.exp(-1 / 0.5)])  # decayed as of IoU 1
    torch.testing.assert_close(soft.scores[0], wanted)


def test_an_empty_moment_trains_no_offsets() -> None:
    """A query that nothing answers has none, whatever the least IoU."""
    cells = torch.tensor([[0.0, 0.5], [0.5, 1.0]])
    offsets = torch.ones(1, 2, 2)
    empty = torch.tensor([[[0.0, 0.0], [torch.nan, torch.nan]]])
    for kind in ("diou", "l1giou"):
        assert float(offset_loss(offsets, cells, empty, kind, 0.0)) == 0


def test_moments_move_towards_the_truth_in_training() -> None:
    model = build("tan", offsets="diou", clips=4, map={"layers": 1, "kernel_size": 3})
    optimiser = torch.optim.Adam(model.parameters(), 0.03)
    losses = []
    for _ in range(40):
        found = model.loss(model(*inputs()), truth())
        optimiser.zero_grad()
        found.total.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        losses.append(found.parts["offset_loss"].item())
    assert losses[-1] < 0.3 * losses[0]


# ---- attention -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["affine", "adaln"])
def test_clips_are_scaled_and_shifted_by_what_they_attend_to(mode: str) -> None:
    """A layer with one head, clip by clip and word by word."""
    model = build(cross_attention={"layers": 1, "heads": 1, "mode": mode}).eval()
    assert model.cross_attention is not None
    (layer,) = model.cross_attention.layers
    torch.nn.init.constant_(layer.feed_forward_scale.scale, 0.5)
    generator = torch.Generator().manual_seed(2)
    clips, words = torch.randn(1, 8, 4, generator=generator), torch.randn(2, 5, 8, generator=generator)
    mask = torch.arange(5) < torch.tensor([[5], [2]])

    def normal(x: torch.Tensor) -> torch.Tensor:
        return (x - x.mean()) / (x.var(unbiased=False) + 1e-5).sqrt()

    with torch.no_grad():
        steps = clips.transpose(1, 2).expand(2, -1, -1)
        found = model.cross_attention(steps, torch.ones(2, 4, dtype=torch.bool), words, mask)
        attention = layer.attention
        for query in range(2):
            real = [normal(word) for word in words[query][mask[query]]]
            for clip in range(4):
                x = clips[0, :, clip]
                key = attention.query(normal(x))
                weights = torch.stack([key @ attention.key(word) / 8**0.5 for word in real]).softmax(0)
                attended = attention.out(sum(w * attention.value(word) for w, word in zip(weights, real, strict=True)))
                x = (normal(x) if mode == "adaln" else x) * attended[:8] + attended[8:]
                x = x + 0.5 * layer.feed_forward(normal(x))
                torch.testing.assert_close(found[query, clip], normal(x), rtol=1e-4, atol=1e-4)


def test_a_stem_sees_its_window_alone() -> None:
    model = build(clips=8, cross_attention={"stem": 1, "window": 3, "heads": 2}).eval()
    assert model.stem is not None
    torch.nn.init.constant_(model.stem.blocks[0].attention_scale.scale, 1.0)
    clips = torch.randn(1, 8, 8, generator=torch.Generator().manual_seed(3))
    changed = clips.clone()
    changed[..., 0] += 1
    with torch.no_grad():
        differs = (model.stem(changed) != model.stem(clips)).any(dim=1)[0]
    assert differs.tolist() == [True] * 3 + [False] * 5  # a window of 3 over convolutions of 3 clips


def test_word_order_reaches_the_attention() -> None:
    model = build(cross_attention={"layers": 1, "heads": 2}).eval()
    _, words, mask = inputs()
    with torch.no_grad():
        forth, back = (model.read(each, mask[:1]).words for each in (words[:1], words[:1].flip(1)))
    assert not torch.allclose(forth.flip(1), back, atol=1e-3)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model.cross_attention.window": 4}, "window=4 is even; use 3 or 5"),
        (
            {"model.cross_attention.layers": 1, "model.cross_attention.heads": 3},
            "hidden=8 is no multiple of cross_attention.heads=3; use 9",
        ),
    ],
)
def test_impossible_settings_are_one_line(changes: dict[str, Any], words: str, tiny: Tiny) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        tiny(**changes)
    assert "\n" not in str(caught.value)


# ---- several maps, gates ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("proposals", ["pool", "conv"])
def test_a_coarser_map_is_that_of_a_model_of_fewer_clips(proposals: str) -> None:
    """With the same weights: outputs, candidates and loss."""
    both, coarse = build("tan", map_scales=2, proposals=proposals), build("tan", clips=4, proposals=proposals)
    coarse.load_state_dict({name: both.state_dict()[name] for name in coarse.state_dict()})
    fine = build("tan", proposals=proposals)
    fine.load_state_dict(both.state_dict())
    outputs = [model(*inputs()) for model in (both, fine, coarse)]
    torch.testing.assert_close(outputs[0].logits, outputs[1].logits)
    torch.testing.assert_close(outputs[0].coarser[0].logits, outputs[2].logits)
    totals = [model.loss(output, truth()).total for model, output in zip((both, fine, coarse), outputs, strict=True)]
    torch.testing.assert_close(totals[0], totals[1] + totals[2])
    durations = truth().durations
    found = [model.spans(output, durations) for model, output in zip((both, fine, coarse), outputs, strict=True)]
    for part in (0, 1):
        torch.testing.assert_close(found[0][part], torch.cat([found[1][part], found[2][part]], dim=1))
    shown = both.pictures(outputs[0]).score_map
    assert shown is not None
    assert shown.scores.shape == (3, 8, 8)
    assert both.most_spans == 8 * 8 + 4 * 4


def test_maps_of_one_network_normalise_each_by_itself() -> None:
    model = build(map_scales=2).train()
    model(*inputs())
    counts = [norm.num_batches_tracked.item() for norm in (*model.map.norms, *model.map.coarser_norms[0])]
    assert counts == [1] * 6
    assert not torch.equal(model.map.norms[0].running_mean, model.map.coarser_norms[0][0].running_mean)


@pytest.mark.parametrize("family", FAMILIES)
def test_gates_scale_every_cell_by_their_sigmoid(family: str) -> None:
    """Wide open they change nothing; shut, nothing comes through."""
    plain, model = build(family).eval(), build(family, gates=True).eval()
    model.load_state_dict(plain.state_dict(), strict=False)
    with torch.no_grad():
        for value, same in ((40.0, True), (0.0, False)):
            for gate in model.map.gates:
                torch.nn.init.zeros_(gate.weight)
                torch.nn.init.constant_(gate.bias, value)
            expected, found = plain(*inputs()).logits, model(*inputs()).logits
            assert torch.allclose(found, expected, atol=1e-6) == same
        for gate in model.map.gates:
            torch.nn.init.constant_(gate.bias, -200.0)
        silent = model(*inputs())
        scores = silent.logits[:, silent.mask]
    torch.testing.assert_close(scores, scores[:1, :1].expand_as(scores))


def test_clips_that_cannot_be_halved_are_told(tiny: Tiny) -> None:
    with pytest.raises(ConfigError, match=r"8 clips with scale_layers=\[8\] make 3 maps .*; use map_scales=3"):
        tiny(**{"model.map_scales": 4})


# ---- contrast --------------------------------------------------------------------------------------------------------


def test_moments_are_matched_before_they_meet_a_query() -> None:
    """Each video once, from clips that no query has been seen by; the joint score is the product of both."""
    model = build(contrastive=True, joint=4, score_power=0.3, cross_attention={"layers": 1, "heads": 2}).eval()
    batch = truth()
    batch.visual[2] = batch.visual[0]  # of the same video
    with torch.no_grad():
        output = model(*model.inputs_of(batch))
        other = model(batch.visual, batch.words.flip(0), batch.word_mask.flip(0), batch.videos)
        found, plain = (
            model.spans(output, batch.durations),
            model.spans(output._replace(matching=None), batch.durations),
        )
    assert output.matching is not None
    assert output.matching.moments.shape == (2, 4, 36)
    assert output.matching.rows.tolist() == [1, 0, 1]
    assert torch.equal(output.matching.moments, other.matching.moments)
    assert not torch.allclose(output.logits, other.logits)
    for row in range(3):
        own, sentence = output.matching.moments[output.matching.rows[row]], output.matching.sentences[row]
        cosine = functional.cosine_similarity(own, sentence[:, None], dim=0)
        torch.testing.assert_close(found.scores[row], plain.scores[row] * ((1 + cosine) / 2) ** 0.3)
    shown = model.pictures(output).score_map
    assert shown is not None
    torch.testing.assert_close(shown.scores.flatten(1)[:, model.proposals.by_row], found.scores)


def test_contrast_is_the_formula() -> None:
    """Both losses, a pair at a time: two sentences of one video, of which one is no negative, and one of another."""
    model = build("tan", contrastive=True, joint=4)
    loss = model.loss_config.model_copy(update={"positives": 2, "margin": 0.3, "video_temperature": 0.2})
    model.loss_config = loss
    batch = truth()
    batch.visual[2] = batch.visual[0]
    batch.all_moments[2, 0] = torch.tensor([2.0, 10.0])  # overlaps the first query's moment
    batch.moments = batch.all_moments[:, 0]
    output = model(*model.inputs_of(batch))
    parts = model.loss(output, batch).parts
    matching = type(output.matching)(*(each.detach() for each in output.matching))
    cells = [divmod(cell, 8) for cell in model.proposals.by_row.tolist()]

    def overlap(query: int, first: int, last: int) -> float:
        a, b = batch.moments[query].tolist()
        s, e = 4.0 * first, 4.0 * (last + 1)
        inter = max(min(b, e) - max(a, s), 0.0)
        return inter / (b - a + e - s - inter)

    video, sentence = [], []
    for query in range(3):
        ious = [overlap(query, *cell) for cell in cells]
        best = sorted(range(len(cells)), key=lambda cell: -ious[cell])[:2]
        own, row = matching.moments[matching.rows[query]], int(matching.rows[query])
        others = [each for each in range(3) if each == query or {each, query} != {0, 2}]
        for cell in best:
            logits = [(float(own[:, cell] @ matching.sentences[each]) - 0.3 * (each == query)) / 0.2 for each in others]
            video.append(math.log(sum(map(math.exp, logits))) - logits[others.index(query)])
            positive = (float(own[:, cell] @ matching.sentences[query]) - 0.3) / 0.1
            total = math.exp(positive)
            for number, moments in enumerate(matching.moments):
                for place in range(len(cells)):
                    if number != row or ious[place] < 0.5:
                        total += math.exp(float(moments[:, place] @ matching.sentences[query]) / 0.1)
            sentence.append(math.log(total) - positive)
    assert parts["loss_vid"].item() == pytest.approx(sum(video) / len(video), rel=1e-4)
    assert parts["loss_sent"].item() == pytest.approx(sum(sentence) / len(sentence), rel=1e-4)


# ---- ends ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["add", "concat"])
def test_a_moment_is_joined_with_its_first_and_last_clip(how: str) -> None:
    model = build(ends=how)
    assert model.ends is not None
    clips = torch.randn(2, 8, 8, generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        found = model.ends(model.proposals(clips), clips)
        for cell in model.proposals.by_row.tolist():
            first, last = divmod(cell, 8)
            pooled = clips[:, :, first : last + 1].amax(dim=2)
            expected = pooled + clips[:, :, first] + clips[:, :, last]
            if how == "concat":
                layers = (model.ends.moment, model.ends.first, model.ends.last)
                weight = torch.cat([layer.weight.flatten(1) for layer in layers], dim=1)  # [H, 3H]
                joined = torch.cat([pooled, clips[:, :, first], clips[:, :, last]], dim=1)
                expected = joined @ weight.T + model.ends.moment.bias
            torch.testing.assert_close(found[:, :, first, last], expected)
