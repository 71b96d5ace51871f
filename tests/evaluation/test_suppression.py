"""How overlapping answers are suppressed: by key, as published, or chosen on val and used from then on."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from cdn_tune import load
from cdn_tune.cli import app
from cdn_tune.config import Experiment, Nms, load_space
from cdn_tune.config.experiment import EvalConfig
from cdn_tune.config.yaml import dump
from cdn_tune.data.dataset import load_split
from cdn_tune.errors import ConfigError
from cdn_tune.evaluation import scoring
from cdn_tune.evaluation.evaluate import evaluate_run
from cdn_tune.evaluation.export import export_run
from cdn_tune.evaluation.queries import read_query_results
from cdn_tune.evaluation.request import Request
from cdn_tune.evaluation.scoring import NmsChoice
from cdn_tune.model.cdn.config import CDNConfig
from cdn_tune.model.family import Spans
from cdn_tune.model.mmn.config import MMNConfig
from cdn_tune.model.snag.config import SnAGConfig
from cdn_tune.model.tan.config import TANConfig
from cdn_tune.moments.nms import Suppression, suppress
from cdn_tune.training.evaluate.evaluation import evaluate_split
from cdn_tune.training.runs.checkpoint import BEST, load_checkpoint

SOFT = Nms(0.6, "soft", 0.3, 0.8)
OWN = [
    (CDNConfig(), Suppression()),
    (TANConfig(), Suppression(slack=1e-9)),
    (MMNConfig(), Suppression(slack=1e-9)),
    (MMNConfig(overlaps="rounded"), Suppression(dtype=torch.float32)),
    (SnAGConfig(), Suppression("soft", sigma=0.9, candidates=2000, min_score=0.001, voting=0.95)),
]


@pytest.mark.parametrize(("config", "how"), OWN)
def test_what_is_unset_is_as_published(
    tiny: Callable[..., Experiment], config: CDNConfig | TANConfig | MMNConfig | SnAGConfig, how: Suppression
) -> None:
    with torch.device("meta"):
        model = config.build(tiny().data, config.loss())
    assert model.suppression == how
    assert model.complete(EvalConfig(nms_threshold=0.4).suppression) == (0.4, how.kind, how.sigma, how.voting)
    asked = EvalConfig().with_suppression(SOFT).suppression
    assert model.complete(asked) == SOFT
    torch.manual_seed(0)
    found = Spans(torch.rand(2, 9, 2, dtype=torch.float64).sort(dim=2).values, torch.rand(2, 9))
    expected = suppress(found.scores, found.spans, 4, replace(how, **SOFT._asdict()))
    for ours, theirs in zip(model.suppress(found, 4, *asked), expected, strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("key", ["eval.nms", "eval.nms_sigma", "eval.nms_voting"])
def test_trials_that_differ_in_it_cannot_be_compared(tiny: Callable[..., Experiment], tmp_path: Path, key: str) -> None:
    (tmp_path / "experiment.yaml").write_text(dump(tiny().plain()))
    choices = ["hard", "soft"] if key == "eval.nms" else [0.5, 0.9]
    plain = {"name": "x", "experiment": "experiment.yaml", "parameters": {}}
    plain["parameters"] = {key: {"type": "categorical", "choices": choices}}
    (tmp_path / "space.yaml").write_text(dump(plain))
    with pytest.raises(ConfigError, match=rf"{key}: trials that differ in it cannot be compared; put it in overrides"):
        load_space(tmp_path / "space.yaml")


def test_it_is_chosen_on_val_with_the_threshold(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, values in (("GRID", (0.3, 0.7)), ("SIGMAS", (0.2, 0.9)), ("VOTING", (0.0, 0.8))):
        monkeypatch.setattr(scoring, name, values)
    result = evaluate_run(trained, None, Request(choose_nms_kind=True, resamples=20))
    nms = result["nms"]
    tried = {Nms(*(each[name] for name in Nms._fields)): each["value"] for each in nms["tried"]}
    hard, soft = ([each for each in tried if each.kind == kind] for kind in ("hard", "soft"))
    assert {each.threshold for each in hard} == {0.3, 0.5, 0.7}
    assert {each.sigma for each in soft} == {0.2, 0.9}
    assert len(tried) == 2 * (3 + 2)
    best = load_checkpoint(trained / BEST)
    val = load_split(best.experiment.data, "val")
    values = {
        each: evaluate_split(best.model, val, best.experiment.eval.with_suppression(each)).metrics for each in tried
    }
    own = evaluate_split(best.model, val, best.experiment.eval).metrics
    assert {each: metrics["R5@0.5"] for each, metrics in values.items()} == pytest.approx(tried)
    chosen = Nms(*(nms[name] for name in Nms._fields))
    able = [each for each, metrics in values.items() if metrics["R1@0.5"] >= own["R1@0.5"]]
    assert chosen in able
    assert tried[chosen] == max(tried[each] for each in able)
    test = load_split(best.experiment.data, "test")
    measured = evaluate_split(best.model, test, best.experiment.eval.with_suppression(chosen)).metrics
    assert result["metrics"]["R5@0.5"] == pytest.approx(measured["R5@0.5"])


def test_voting_that_lowers_the_metric_is_not_chosen(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It moves the first moment as well: all weights alike, every answer becomes the middle of the video."""
    own = Nms(0.5, "hard", 0.9, 0.0)
    found = {}

    def measure(answers: Any, names: list[str]) -> Any:
        value = {"R5@0.5": 0.9, "R1@0.5": 0.2} if answers == "voted" else {"R5@0.5": 0.5, "R1@0.5": 0.4}
        return type("Measure", (), {"means": {name: value[name] for name in names}})

    class Answered:
        def __init__(self, nms: Nms) -> None:
            self.nms = nms

        def answers(self, *_: Any) -> str:
            return "voted" if self.nms.voting else "plain"

    monkeypatch.setattr(scoring, "measure", measure)
    monkeypatch.setattr(scoring, "retrieve", lambda _, __, ways, *___: [{nms: Answered(nms) for nms in ways}])
    experiment = load_checkpoint(trained / BEST).experiment
    found = scoring.choose_nms(trained / BEST, experiment, own, True, scoring.Workers())
    assert found.nms == own
    assert max(found.tried.values()) == 0.9


def test_soft_suppression_has_its_sigma_chosen() -> None:
    """The threshold of a hard one means nothing to it."""
    ways = scoring._ways(SOFT, kinds=False)
    assert [each.sigma for each in ways] == [*scoring.SIGMAS]
    assert {each._replace(sigma=0.3) for each in ways} == {SOFT}


def test_answers_are_those_of_an_evaluation_that_chose(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cdn_tune.evaluation.evaluate.choose_nms", lambda *_: NmsChoice(SOFT, "val", "R5@0.5", {}))
    evaluate_run(trained, None, Request(choose_nms_kind=True, resamples=20))
    result = read_query_results(trained / "predictions.jsonl")[0]
    exported = export_run(trained, tmp_path / "out").folder
    assert "soft NMS, sigma 0.3, voting from IoU 0.8, chosen on val" in (exported / "README.md").read_text()
    for path in (trained, exported):
        retriever = load(path)
        assert retriever.nms == SOFT
        frames = load_split(load(trained).experiment.data, "test").features.clips(result.video)
        (found,) = retriever.retrieve(frames, result.duration, [result.query], top=len(result.moments))
        assert len(found) == len(result.moments)
    assert load(trained, nms_threshold=0.7).nms == Nms(0.7, "hard", 0.9, 0.0)
    facts = json.loads((trained / "evaluation.json").read_text())
    for key in ("kind", "sigma", "voting"):
        del facts["nms"][key]  # by an earlier version, which chose the threshold alone
    (trained / "evaluation.json").write_text(json.dumps(facts))
    assert load(trained).nms == Nms(0.6, "hard", 0.9, 0.0)
    facts["nms"]["sigma"] = -1
    (trained / "evaluation.json").write_text(json.dumps(facts))
    assert load(trained).nms == Nms(0.5, "hard", 0.9, 0.0)


def test_the_command_says_what_was_used(trained: Path) -> None:
    shown = CliRunner().invoke(app, ["evaluate", str(trained), "--choose-nms-kind"])
    assert shown.exit_code == 0, shown.output
    assert "chosen on val by R5@0.5" in shown.output
    assert "NMS" in shown.output
