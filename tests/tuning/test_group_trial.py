"""The relay between a trial of Ray Tune's and its group: what it returns, without Ray."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cdn_tune.config import Experiment
from cdn_tune.distributed.group_coordinator import DIED, FAILED, FINISHED, LOST, REPORT, STOPPED
from cdn_tune.distributed.ray import RayActorError
from cdn_tune.errors import FolderHeld, NodeUnfit, NotFinite
from cdn_tune.tuning.engine.door import Loss
from cdn_tune.tuning.engine.ray import group_trial
from cdn_tune.tuning.engine.ray.group_trial import GroupTrial
from cdn_tune.tuning.engine.ray.results import (
    DECISIONS,
    FAILURE,
    FAILURE_KIND,
    HALT,
    NUMBER,
    PARAMETERS,
    SECONDS,
)
from cdn_tune.tuning.engine.ray.results import LOST as LOST_RESULT
from cdn_tune.tuning.engine.ray.results import REPORT as REPORT_RESULT
from cdn_tune.tuning.engine.ray.results import STOPPED as STOPPED_RESULT

Relay = Callable[..., GroupTrial]


@pytest.fixture
def relay(tiny: Callable[..., Experiment], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Relay:
    """Makes a relay whose trial has such news."""

    def get(value: Any) -> Any:
        if isinstance(value, Exception):
            raise value
        return value

    def make(*news: Any) -> GroupTrial:
        left = list(news)
        submit, fetch = SimpleNamespace(remote=lambda *_: 1), SimpleNamespace(remote=lambda *_: left.pop(0))
        monkeypatch.setattr(group_trial, "ray", SimpleNamespace(get=get))
        trial = GroupTrial.__new__(GroupTrial)
        config = {NUMBER: 3, PARAMETERS: {"optim.lr": 0.5}, DECISIONS: None}
        trial.setup(config, tiny().plain(), str(tmp_path), SimpleNamespace(submit=submit, next=fetch))
        return trial

    return make


def epoch(number: int) -> tuple[str, dict[str, Any]]:
    values = dict.fromkeys(
        ("loss", "moment_loss", "attention_loss", "learning_rate", "gradient_norm", "samples_per_second"), 1.0
    )
    more = {"epoch": number, "epochs": 2, "train_seconds": 2.0, "val_seconds": 1.0, "val": {"mIoU": 0.1}}
    return REPORT, {**values, **more, "value": 0.1, "best_value": 0.1, "best_epoch": 1}


def test_reports_are_passed_on_one_by_one(relay: Relay) -> None:
    trial = relay([epoch(1), epoch(2)], [], [(FINISHED, None)])
    first, second = trial.step(), trial.step()
    assert [(result[REPORT_RESULT].epoch, result[SECONDS]) for result in (first, second)] == [(1, 3.0), (2, 6.0)]
    assert trial.step() == {"done": True}


@pytest.mark.parametrize(
    ("news", "expected"),
    [
        ([(STOPPED, None)], {STOPPED_RESULT: True}),
        ([(LOST, {"kind": "node", "reason": "it burnt"})], {LOST_RESULT: Loss("node", "it burnt")}),
        ([(FAILED, pickle.dumps(NodeUnfit("n" * 56, "no data")))], {LOST_RESULT: Loss("unfit", "no data", "n" * 56)}),
        ([(FAILED, pickle.dumps(FolderHeld("held")))], {LOST_RESULT: Loss("worker", "held")}),
        ([(FAILED, pickle.dumps(NotFinite("loss nan")))], {FAILURE: "loss nan", FAILURE_KIND: "not_finite"}),
        ([(FAILED, pickle.dumps(OSError("disk full")))], {HALT: "disk full"}),
        (RayActorError(), {HALT: DIED}),
    ],
)
def test_how_a_trial_ends(news: Any, expected: dict[str, Any], relay: Relay) -> None:
    assert relay(news).step() == expected


def test_a_trial_that_had_ended_when_it_was_stopped_is_done(relay: Relay) -> None:
    trial = relay([epoch(2), (STOPPED, None)])
    trial.step()
    assert trial.step() == {"done": True}
