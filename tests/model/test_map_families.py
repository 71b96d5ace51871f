"""MMN and 2D-TAN as families: trained, resumed, evaluated, exported through the door; what their answers depend on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from cdn_tune import load
from cdn_tune.cli import app
from cdn_tune.config import Experiment, load_space
from cdn_tune.config.yaml import dump
from cdn_tune.data.fingerprint import fingerprint
from cdn_tune.errors import ConfigError
from cdn_tune.evaluation import scoring
from cdn_tune.model.family import Spans
from cdn_tune.model.layers.contrast import sentence_contrast
from cdn_tune.model.mmn.config import MMNConfig
from cdn_tune.model.mmn.network import MMN
from cdn_tune.model.tan.config import TANConfig
from cdn_tune.model.tan.network import TAN
from cdn_tune.moments.metrics import Answers
from cdn_tune.moments.nms import cell_spans
from cdn_tune.training.evaluate import evaluation
from cdn_tune.training.memory.estimate import estimate
from cdn_tune.training.reports import EpochReport, ignore
from cdn_tune.training.runs.checkpoint import LAST, build_model, load_checkpoint, read_checkpoint
from cdn_tune.training.runs.run_folder import claim, describe_run, locked
from cdn_tune.training.step.optimiser import PlateauReversed
from cdn_tune.training.train_trial import open_data, train_in
from cdn_tune.tuning.planning.random_points import draw
from cdn_tune.tuning.study.candidates import Candidates

Tiny = Callable[..., Experiment]
SMALL = {"clips": 8, "hidden": 8, "map": {"layers": 2, "kernel_size": 3}}
CHANGES: dict[str, dict[str, Any]] = {
    "tan": {"model.query.hidden": 8, "model.query.layers": 1},
    "mmn": {"model.joint": 8, "loss.contrastive_epochs": 1},
}
PARTS = {"tan": {"moment_loss"}, "mmn": {"loss_iou", "loss_vid", "loss_sent"}}


def experiment_of(tiny: Tiny, family: str, **more: Any) -> Experiment:
    small = {"model.clips": 8, "model.hidden": 8, "model.map.layers": 2, "model.map.kernel_size": 3}
    return tiny(**{"model.name": family, **small, **CHANGES[family], **more})


def invoke(*arguments: Any) -> str:
    result = CliRunner().invoke(app, list(map(str, arguments)))
    assert result.exit_code == 0, result.output
    return result.output


@pytest.mark.parametrize("family", CHANGES)
def test_trains_resumes_evaluates_predicts_and_exports(family: str, tiny: Tiny, tmp_path: Path) -> None:
    experiment = experiment_of(tiny, family)
    whole: list[EpochReport] = []
    with locked(tmp_path / "whole"):
        claim(
            tmp_path / "whole",
            describe_run("train", experiment, fingerprint(experiment.data)),
            {"experiment.yaml": experiment.plain()},
        )
        train_in(experiment, tmp_path / "whole", whole.append)
    assert whole[-1].loss < whole[0].loss
    assert set(whole[0].losses) == PARTS[family]

    again: list[EpochReport] = []
    calls = iter(range(100))
    with pytest.raises(KeyboardInterrupt):
        train_in(experiment, tmp_path / "again", ignore, stop=lambda: next(calls) > whole[0].steps + 2)
    assert read_checkpoint(tmp_path / "again" / LAST)["within"] is not None
    train_in(experiment, tmp_path / "again", again.append)
    assert [(each.loss, each.losses, each.val) for each in again] == [
        (each.loss, each.losses, each.val) for each in whole
    ]

    invoke("evaluate", tmp_path / "whole", "--score-maps")
    assert json.loads((tmp_path / "whole/evaluation.json").read_text())["metrics"]["mIoU"] > 0
    invoke("export", tmp_path / "whole", "--out", tmp_path / "out", "--torch-export")
    features = np.random.default_rng(0).standard_normal((40, 16)).astype(np.float32)
    for window in (None, 10.0):
        answers = [
            load(path).retrieve(features, 30.0, ["the person opens a door"], window=window)
            for path in (tmp_path / "whole", tmp_path / "out")
        ]
        assert answers[0] == answers[1]
        assert answers[0][0]


def test_one_space_chooses_among_the_map_families(tiny: Tiny, tmp_path: Path) -> None:
    """Keys that all three have need no condition, those of one do."""
    parameters: dict[str, Any] = {
        "model.name": {"type": "categorical", "choices": ["cdn", "mmn", "tan"]},
        "model.hidden": {"type": "int", "low": 8, "high": 16, "step": 4},
        "model.map.layers": {"type": "int", "low": 1, "high": 2},
        "model.map.kernel_size": {"type": "categorical", "choices": [3, 5], "per_layer": True},
        "model.joint": {"type": "int", "low": 4, "high": 8, "when": {"model.name": "mmn"}},
        "model.query.layers": {"type": "int", "low": 1, "high": 2, "when": {"model.name": ["cdn", "tan"]}},
    }
    base = tiny(**{"model.map.dynamic_layers": 0, "model.map.layers": 1})
    (tmp_path / "base.yaml").write_text(dump(base.plain()))
    space = {"name": "s", "experiment": "base.yaml", "parameters": parameters, "overrides": {"model.clips": 16}}
    (tmp_path / "space.yaml").write_text(dump(space))
    seen = set()
    for point in draw(Candidates(*load_space(tmp_path / "space.yaml")), 30):
        if point.experiment is not None:
            seen.add(point.experiment.model.name)
            assert ("model.joint" in point.params) == (point.experiment.model.name == "mmn")
    assert seen >= {"mmn", "tan"}


def test_reversed_plateau_reads_the_loss_on_val(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[float] = []
    monkeypatch.setattr(PlateauReversed, "end_evaluation", lambda _, loss: seen.append(loss))
    experiment = experiment_of(tiny, "tan", **{"optim.schedule": "plateau_reversed", "train.epochs": 1})
    train_in(experiment, tmp_path, ignore)
    val = open_data(experiment.data)["val"]
    model = load_checkpoint(tmp_path / LAST.parent / "best.pt").model.eval()
    batch = val.batch(range(len(val)))
    with torch.no_grad():
        expected = model.loss(model(*model.inputs_of(batch)), batch).total.item()
    assert seen == pytest.approx([expected], rel=1e-5)


def test_recall_counts_equal_ious_where_the_experiment_says_so(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bool] = []

    class Watched(Answers):
        def __init__(self, *arguments: Any, closed: bool = False) -> None:
            super().__init__(*arguments[:4], closed=bool(arguments[4]) if len(arguments) > 4 else closed)
            seen.append(self.closed)

    for module in (evaluation, scoring):
        monkeypatch.setattr(module, "Answers", Watched)
    experiment = experiment_of(tiny, "mmn", **{"eval.closed": True})
    val = open_data(experiment.data)["val"]
    result = evaluation.evaluate_split(build_model(experiment), val, experiment.eval)
    scoring.Retrieved(result.top, result.scores).answers(val, experiment.eval.closed)
    assert seen == [True, True]


@pytest.mark.parametrize("family", CHANGES)
def test_memory_is_estimated_without_computing(family: str, tiny: Tiny) -> None:
    need = estimate(experiment_of(tiny, family), torch.float32, torch.device("cpu"))
    assert need.activations > 0
    assert need.temporary > 0


@pytest.mark.parametrize(
    ("family", "changes", "words"),
    [
        ("tan", {"model.query.hidden": 7, "model.query.bidirectional": True}, "hidden=7 is odd"),
        ("mmn", {"model.clips": 5}, "model.clips=5 does not divide data.frames=16"),
        ("tan", {"loss.count_removed": True}, "unknown key of the family tan; with model.name=mmn"),
        ("mmn", {"loss.min_iou": 1.0}, "must be below max_iou"),
        ("mmn", {"train.batch_of": "moments"}, "train.batch_of: 'moments' is wrong"),
        ("mmn", {"optim.schedule": "milestones"}, "needs the epochs"),
        ("mmn", {"optim.schedule": "milestones", "optim.milestones": [5, 3]}, "must rise"),
    ],
)
def test_impossible_settings_are_one_line(family: str, changes: dict[str, Any], words: str, tiny: Tiny) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        experiment_of(tiny, family, **changes)
    assert "\n" not in str(caught.value)


# ---- 2D-TAN ----------------------------------------------------------------------------------------------------------


def queries(lengths: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    words = torch.randn(len(lengths), max(lengths), 5, generator=generator) * mask[..., None]
    return torch.randn(len(lengths), 16, 6, generator=generator), words, mask


@pytest.mark.parametrize(("read_padding", "alike"), [(False, True), (True, False)])
def test_backward_state_of_a_query_depends_on_its_batch_only_as_published(read_padding: bool, alike: bool) -> None:
    torch.manual_seed(0)
    query = {"layers": 1, "hidden": 8, "bidirectional": True, "read_padding": read_padding}
    model = TAN(TANConfig.model_validate({**SMALL, "query": query}), 6, 5).eval()
    assert model.reads_padding == read_padding
    visual, words, mask = queries((7, 3))
    with torch.no_grad():
        together = model(visual, words, mask).logits[1]
        alone = model(visual[1:], words[1:, :3], mask[1:, :3]).logits[0]
    assert torch.allclose(together, alone, atol=1e-6) == alike


# ---- MMN -------------------------------------------------------------------------------------------------------------


def small_mmn() -> MMN:
    torch.manual_seed(0)
    return MMN(MMNConfig.model_validate({**SMALL, "joint": 8}), 6, 5)


def test_a_video_of_several_queries_counts_once() -> None:
    """Statistics of the batch are those of its videos, and every query meets its own."""
    model = small_mmn().train()
    visual, words, mask = queries((4, 2, 3, 3))
    visual = visual[[0, 1, 0, 0]]
    output = model(visual, words, mask, torch.tensor([7, 3, 7, 7]))
    alone = small_mmn().train()
    expected = alone(visual[:2], words[:2], mask[:2])
    torch.testing.assert_close(model.map.norms[0].running_mean, alone.map.norms[0].running_mean)
    assert len(output.moments) == 2
    assert torch.equal(output.rows[[0, 2, 3]], output.rows[0].expand(3))
    torch.testing.assert_close(output.cosines(0)[:2], expected.cosines(0))


def test_contrastive_losses_fade_after_their_epochs() -> None:
    model = small_mmn()
    model.loss_config = model.loss_config.model_copy(update={"contrastive_epochs": 2})
    output = model(*queries((4, 2)))
    ious = torch.rand(2, output.moments.shape[-1])
    moments = torch.tensor([[0.0, 5.0], [3.0, 9.0]])
    totals = []
    for epoch in (2, 3):
        model.start_epoch(epoch)
        totals.append(model.losses(output, ious, moments))
    iou, both = totals[0].parts["loss_iou"], totals[0].parts["loss_vid"] + totals[0].parts["loss_sent"]
    weight = model.loss_config.contrastive_weight
    torch.testing.assert_close(totals[0].total, iou + weight * both)
    torch.testing.assert_close(totals[1].total, iou + 0.01 * weight * both)


def test_moments_that_are_no_negatives_count_only_as_published() -> None:
    cosines, rows = torch.zeros(1, 1, 3), torch.tensor([0])
    top, negative = torch.tensor([[0]]), torch.tensor([[False, False, True]])
    for count_removed, terms in ((False, 2), (True, 4)):  # the positive, a negative; and, as published, those between
        loss = sentence_contrast(cosines, rows, top, negative, 0.0, 1.0, count_removed)
        assert loss.item() == pytest.approx(np.log(terms), abs=1e-5)


# ---- suppression -----------------------------------------------------------------------------------------------------


def test_overlaps_of_whole_clips_are_exact() -> None:
    """Of all pairs of cells none is dropped whose IoU is exactly the threshold; with rounded seconds some are."""
    duration = torch.tensor([31.37], dtype=torch.float64)
    cells = torch.ones(16, 16, dtype=torch.bool).triu().flatten().nonzero()[:, 0]
    first, last = cells // 16, cells % 16 + 1
    shared = (torch.minimum(last[:, None], last) - torch.maximum(first[:, None], first)).clamp(min=0)
    union = (last - first)[:, None] + (last - first) - shared
    equal = 2 * shared == union
    dropped = {}
    for overlaps in ("exact", "rounded"):
        model = TAN(TANConfig.model_validate({**SMALL, "overlaps": overlaps}), 6, 5)
        spans = cell_spans(cells, 16, duration, model.rounding)[0]
        pairs = torch.stack([spans[:, None].expand(-1, len(cells), 2), spans.expand(len(cells), -1, 2)], dim=2)[equal]
        scores = torch.tensor([[2.0, 1.0]]).expand(len(pairs), 2)
        kept = model.suppress(Spans(pairs, scores), 2, 0.5)
        dropped[overlaps] = int(kept.scores[:, 1].isnan().sum())
    assert dropped["exact"] == 0
    assert dropped["rounded"] > 0
