"""The page and TensorBoard of every family and switch: each part of the loss, and the pictures that it has."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from typer.testing import CliRunner

from cdn_tune.cli import app
from cdn_tune.config import Experiment
from cdn_tune.config.yaml import dump
from cdn_tune.training.runs.records import EVENTS
from tests.report.test_page import data_of

Tiny = Callable[..., Experiment]
TAN: dict[str, Any] = {
    "model.name": "tan",
    "model.clips": 8,
    "model.hidden": 8,
    "model.query": {"hidden": 8, "layers": 1},
    "model.map": {"layers": 2, "kernel_size": 3},
}
MMN: dict[str, Any] = {"model.name": "mmn", "model.hidden": 8, "model.joint": 8, "model.clips": 8}
MMN |= {"model.map": {"layers": 2, "kernel_size": 3}}
SNAG: dict[str, Any] = {
    "model.name": "snag",
    "model.text": {"hidden": 8, "layers": 1},
    "model.video": {"hidden": 8, "levels": 3, "length": 32},
    "model.fusion": {"layers": 1},
    "data.sequence.length": 32,
    "train.batch_size": 4,
}
ROWS = {"attention": "frame attention", "levels": "scores of the levels", "words": "attention to the words"}
CASES: dict[str, tuple[dict[str, Any], set[str], set[str]]] = {  # settings, parts of the loss, pictures
    "cdn": ({}, {"moment_loss", "attention_loss"}, {"scores", "attention"}),
    "tan": (TAN, {"moment_loss"}, {"scores"}),
    "mmn": (MMN, {"loss_iou", "loss_vid", "loss_sent"}, {"scores"}),
    "snag": (SNAG, {"score_loss", "span_loss"}, {"levels", "words"}),
}
SWITCHES: dict[str, tuple[dict[str, Any], set[str]]] = {  # settings, more parts of the loss
    "offsets": ({"model.offsets": "diou"}, {"offset_loss"}),
    "cross_attention": ({"model.cross_attention.layers": 1, "model.cross_attention.heads": 2}, set()),
    "map_scales": ({"model.map_scales": 2}, set()),
    "gates": ({"model.gates": True}, set()),
    "contrastive": ({"model.contrastive": True, "model.joint": 8}, {"loss_vid", "loss_sent"}),
    "ends": ({"model.ends": "concat"}, set()),
    "mean": ({"model.clip_pool": "mean"}, set()),
}
for _switch, (_changes, _parts) in SWITCHES.items():
    _, _losses, _pictures = CASES["cdn"]
    _pictures = _pictures - ({"attention"} if _switch == "mean" else set())
    CASES[f"cdn-{_switch}"] = (
        _changes,
        _losses | _parts,
        _pictures | ({"words"} if _switch == "cross_attention" else set()),
    )


def call(*arguments: object) -> str:
    result = CliRunner().invoke(app, [str(each) for each in arguments])
    assert result.exit_code == 0, result.output
    return result.output


@pytest.mark.parametrize("case", CASES)
def test_everything_that_there_is_and_nothing_else(tiny: Tiny, tmp_path: Path, case: str) -> None:
    changes, losses, pictures = CASES[case]
    run, path = tmp_path / "run", tmp_path / "experiment.yaml"
    path.write_text(dump(tiny(**{"train.epochs": 2, **changes}).plain()))
    call("train", path, "--run", run)
    if "-" not in case:
        call("evaluate", run)
    assert "not shown" not in call("report", run)

    events = EventAccumulator(str(run / EVENTS), size_guidance={"images": 0})
    events.Reload()
    tags = events.Tags()
    assert {f"train/{name}" for name in losses | {"loss"}} <= set(tags["scalars"])
    assert {tag.partition("/")[0] for tag in tags["images"]} == pictures & {"scores", "attention"}

    html = (run / "report" / "index.html").read_text(encoding="utf-8")
    data = data_of(html)
    drawn = {trace["name"]: trace["y"] for trace in data["figures"]["curves"]["views"]["training loss"]["data"]}
    assert set(drawn) == {"loss"} | (losses if len(losses) > 1 else set())
    assert all(value is not None for values in drawn.values() for value in values)
    views = data["queries"]["views"]
    assert data["queries"]["split"] == ("test" if "-" not in case else "val")
    text = html.partition('id="browser"')[0]
    assert ("score map" in text) == ("scores" in pictures)
    assert {name for name, title in ROWS.items() if title in text} == pictures - {"scores"}
    for view in views["of"].values():
        assert (view["scores"] is not None) == ("scores" in pictures)
        assert [strip["title"].lower() for strip in view["strips"]] == [ROWS[name] for name in ROWS if name in pictures]
        assert all(len(strip["names"]) == len(strip["rows"]) > 0 for strip in view["strips"])
