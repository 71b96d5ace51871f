"""Which losses cost a trial something, which nodes take trials, and how many trials wait for a cluster to grow."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

from cdn_tune.config import Experiment, ResourcesConfig
from cdn_tune.distributed.nodes import Node, off_nodes
from cdn_tune.distributed.ray import ActorUnavailableError, RayActorError
from cdn_tune.errors import NodeUnfit
from cdn_tune.tuning.engine.ray import node_checks as readiness
from cdn_tune.tuning.engine.ray import slots as places
from cdn_tune.tuning.engine.ray.node_checks import Readiness
from cdn_tune.tuning.engine.ray.slots import Demand, Places
from cdn_tune.tuning.engine.ray.tune_adapters import _extend
from cdn_tune.tuning.study.retries import NODES_IN_A_ROW, Losses

Tiny = Callable[..., Experiment]
WORKER = RayActorError(error_msg="The actor died unexpectedly: worker process crashed")
NODE = RayActorError(error_msg="The actor died because its node has died. Node Id: 12")
FREE = [
    NODE,
    RayActorError(error_msg="gone", preempted=True),
    ActorUnavailableError("no way there", None),
    NodeUnfit("12", "no data"),
]


def test_a_workers_death_is_borne_so_often_and_no_more() -> None:
    losses = Losses(max_failures=2)
    assert [losses.may_go_on(3, WORKER) for _ in range(3)] == [True, True, False]
    assert losses.may_go_on(4, WORKER)  # each trial for itself
    assert not Losses(max_failures=0).may_go_on(0, None)


@pytest.mark.parametrize("error", FREE, ids=["dead", "preempted", "unreachable", "unfit"])
def test_a_lost_node_costs_nothing(error: Exception) -> None:
    losses = Losses(max_failures=0)
    assert all(losses.may_go_on(0, error) for _ in range(NODES_IN_A_ROW - 1))
    assert not losses.may_go_on(0, WORKER)


def test_a_trial_that_takes_node_after_node_with_it_fails() -> None:
    losses = Losses(max_failures=0)
    for epoch in range(1, 50):  # one that gets on is not to blame
        losses.reported(0, epoch)
        assert losses.may_go_on(0, NODE)
    for _ in range(NODES_IN_A_ROW - 2):
        losses.reported(0, 1)  # told again by a process that takes it up: no progress
        assert losses.may_go_on(0, NODE)
    assert not losses.may_go_on(0, NODE)


class Answers:
    """Stands for the checks on nodes: each answers what the test says, when it says so."""

    def __init__(self, *_: Any) -> None:
        self.asked: list[str] = []
        self.answers: dict[str, Any] = {}

    def start(self, node: str) -> None:
        self.asked.append(node)

    def finished(self) -> dict[str, Any]:
        answers, self.answers = self.answers, {}
        return answers

    def cancel(self) -> None:
        self.asked.clear()


def node(name: str, cpus: float = 1.0) -> Node:
    return Node(name, f"host-{name}", {"CPU": cpus}, f"address-{name}")


@pytest.fixture
def checked(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> tuple[Readiness, Answers]:
    answers = Answers()
    monkeypatch.setattr(readiness, "OnNodes", lambda *_: answers)
    return Readiness(tiny().data, {}, "home"), answers


def look(found: Places, nodes: list[Node], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "alive_nodes", lambda: nodes)
    found._looked = -1e9
    found.look()


def test_nodes_take_trials_once_they_have_the_data(
    checked: tuple[Readiness, Answers], monkeypatch: pytest.MonkeyPatch
) -> None:
    ready, answers = checked
    found = Places(ResourcesConfig(), ready, may_grow=False)
    look(found, [node("home"), node("a", 4), node("b", 2)], monkeypatch)
    assert (found.slots, found.avoid, sorted(answers.asked)) == (1, ("a", "b"), ["a", "b"])
    answers.answers = {"a": None, "b": "data.root=/data does not exist"}
    look(found, [node("home"), node("a", 4), node("b", 2)], monkeypatch)
    assert (found.slots, found.avoid, found.why_none) == (5, ("b",), None)
    assert found.lines() == ("node host-b takes no trials: data.root=/data does not exist",)
    look(found, [node("home"), node("a", 4), node("b", 2)], monkeypatch)
    assert sorted(answers.asked) == ["a", "b"]  # once
    monkeypatch.setattr(readiness, "_AGAIN_SECONDS", 0.0)
    look(found, [node("home"), node("a", 4), node("b", 2)], monkeypatch)
    answers.answers = {"b": None}  # somebody has copied the data
    look(found, [node("home"), node("a", 4), node("b", 2)], monkeypatch)
    assert (found.slots, found.avoid, found.lines()) == (7, (), ())
    look(found, [node("home")], monkeypatch)
    assert found.slots == 1


def test_a_check_that_dies_is_no_answer(checked: tuple[Readiness, Answers], monkeypatch: pytest.MonkeyPatch) -> None:
    """Its node is dying, as a rule; one whose checks keep dying takes no trials."""
    ready, answers = checked
    found = Places(ResourcesConfig(), ready, may_grow=False)
    monkeypatch.setattr(readiness, "_SOON_SECONDS", 0.0)
    look(found, [node("home", 0), node("a")], monkeypatch)
    for times in range(1, 4):
        answers.answers = {"a": NODE}
        look(found, [node("home", 0), node("a")], monkeypatch)
        assert (found.avoid, found.lines(), found.why_none) == (("a",), (), None)
        assert answers.asked == ["a"] * (times + 1)
    answers.answers = {"a": NODE}
    look(found, [node("home", 0), node("a")], monkeypatch)
    assert "its check keeps dying (RayActorError: The actor died" in found.lines()[0]


def test_a_node_that_a_trial_found_unfit(checked: tuple[Readiness, Answers], monkeypatch: pytest.MonkeyPatch) -> None:
    ready, answers = checked
    found = Places(ResourcesConfig(), ready, may_grow=False)
    nodes = [node("home"), node("a")]
    look(found, nodes, monkeypatch)
    answers.answers = {"a": None}
    look(found, nodes, monkeypatch)
    found.refuse("a", "its features have gone")
    found.look()
    assert (found.slots, found.avoid) == (1, ("a",))


def test_no_node_with_the_data_is_told_apart_from_no_node(
    checked: tuple[Readiness, Answers], monkeypatch: pytest.MonkeyPatch
) -> None:
    ready, answers = checked
    found = Places(ResourcesConfig(), ready, may_grow=False)
    look(found, [node("home", 0)], monkeypatch)
    assert (found.slots, found.why_none) == (0, None)  # one may come
    look(found, [node("home", 0), node("a")], monkeypatch)
    assert found.why_none is None  # it is being asked
    answers.answers = {"a": "no data"}
    look(found, [node("home", 0), node("a")], monkeypatch)
    assert found.why_none is not None
    assert "host-a takes no trials: no data" in found.why_none


def test_as_many_wait_as_a_cluster_has_grown(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Demand(may_grow=False).waiting(4) == 0
    demand, now = Demand(may_grow=True), 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    assert [demand.waiting(slots) for slots in (2, 2, 3, 5, 4, 9)] == [1, 1, 1, 3, 3, 7]
    now += 3600.0
    assert demand.waiting(9) == 1


def test_a_node_that_becomes_ready_is_no_growth(
    checked: tuple[Readiness, Answers], monkeypatch: pytest.MonkeyPatch
) -> None:
    ready, answers = checked
    found = Places(ResourcesConfig(), ready, may_grow=True)
    look(found, [node("home"), node("a", 4)], monkeypatch)
    assert (found.slots, found.asked) == (1, 2)
    answers.answers = {"a": None}
    look(found, [node("home"), node("a", 4)], monkeypatch)
    assert (found.slots, found.asked) == (5, 6)
    look(found, [node("home"), node("a", 4), node("b", 3)], monkeypatch)
    assert (found.slots, found.asked) == (5, 8)


def test_label_selector() -> None:
    assert off_nodes(()) == {}
    assert off_nodes(("a1", "b2")) == {"ray.io/node-id": "!in(a1,b2)"}


def test_segments_follow_each_nodes_own_clock() -> None:
    """A trial that moves to a node whose clock is minutes behind has two segments, each as long as it took."""
    segments: list[list[Any]] = []
    for name, times in (("a", [1000.0, 1010.0, 1020.0]), ("b", [700.0, 705.0]), ("b", [900.0])):
        for spent, end in enumerate(times, start=1):
            since = {"a": 10.0 * spent + 0.0, "b": 5.0 * spent}[name]
            _extend(segments, {"hostname": name, "timestamp": end, "time_since_restore": since})
    assert segments == [["a", 990.0, 1020.0], ["b", 695.0, 705.0], ["b", 895.0, 900.0]]
