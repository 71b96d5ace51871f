"""Which errors are losses of what kind, which nodes take trials, and how many slots an autoscaler is shown to lack."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

from cdn_tune.config import Experiment, ResourcesConfig
from cdn_tune.distributed.group_pool import DEMAND
from cdn_tune.distributed.nodes import Node, off_nodes
from cdn_tune.distributed.ray import ActorUnavailableError, RayActorError
from cdn_tune.errors import NodeUnfit
from cdn_tune.tuning.engine.door import Room
from cdn_tune.tuning.engine.ray import node_checks, slots
from cdn_tune.tuning.engine.ray.engine import loss_of
from cdn_tune.tuning.engine.ray.node_checks import NodeChecks
from cdn_tune.tuning.engine.ray.slots import Demand, Slots

Tiny = Callable[..., Experiment]
NODE = RayActorError(error_msg="The actor died because its node has died. Node Id: 12")


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (None, "worker"),
        (RayActorError(error_msg="The actor died unexpectedly: worker process crashed"), "worker"),
        (NODE, "node"),
        (RayActorError(error_msg="gone", preempted=True), "node"),
        (ActorUnavailableError("no way there", None), "node"),
        (NodeUnfit("12", "no data"), "unfit"),
    ],
)
def test_errors_are_losses_of_a_kind(error: Exception | None, kind: str) -> None:
    assert loss_of(error).kind == kind


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
def checked(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> tuple[NodeChecks, Answers]:
    answers = Answers()
    monkeypatch.setattr(node_checks, "OnNodes", lambda *_: answers)
    return NodeChecks(tiny().data, {}, "home"), answers


def room(found: Slots, nodes: list[Node], monkeypatch: pytest.MonkeyPatch) -> Room:
    monkeypatch.setattr(slots, "alive_nodes", lambda: nodes)
    found._checked = -1e9
    return found.room(wants_more=False)


def test_nodes_take_trials_once_they_have_the_data(
    checked: tuple[NodeChecks, Answers], monkeypatch: pytest.MonkeyPatch
) -> None:
    ready, answers = checked
    found = Slots(ResourcesConfig(), ready, may_grow=False)
    now = room(found, [node("home"), node("a", 4), node("b", 2)], monkeypatch)
    assert (now.slots, now.avoid, sorted(answers.asked)) == (1, ("a", "b"), ["a", "b"])
    answers.answers = {"a": None, "b": "data.root=/data does not exist"}
    now = room(found, [node("home"), node("a", 4), node("b", 2)], monkeypatch)
    assert (now.slots, now.avoid, now.why_none) == (5, ("b",), None)
    assert now.lines == ("node host-b takes no trials: data.root=/data does not exist",)
    now = room(found, [node("home"), node("a", 4), node("b", 2)], monkeypatch)
    assert sorted(answers.asked) == ["a", "b"]  # once
    monkeypatch.setattr(node_checks, "_AGAIN_SECONDS", 0.0)
    now = room(found, [node("home"), node("a", 4), node("b", 2)], monkeypatch)
    answers.answers = {"b": None}  # somebody has copied the data
    now = room(found, [node("home"), node("a", 4), node("b", 2)], monkeypatch)
    assert (now.slots, now.avoid, now.lines) == (7, (), ())
    now = room(found, [node("home")], monkeypatch)
    assert now.slots == 1


def test_a_check_that_dies_is_no_answer(checked: tuple[NodeChecks, Answers], monkeypatch: pytest.MonkeyPatch) -> None:
    """Its node is dying, as a rule; one whose checks keep dying takes no trials."""
    ready, answers = checked
    found = Slots(ResourcesConfig(), ready, may_grow=False)
    monkeypatch.setattr(node_checks, "_SOON_SECONDS", 0.0)
    now = room(found, [node("home", 0), node("a")], monkeypatch)
    for times in range(1, 4):
        answers.answers = {"a": NODE}
        now = room(found, [node("home", 0), node("a")], monkeypatch)
        assert (now.avoid, now.lines, now.why_none) == (("a",), (), None)
        assert answers.asked == ["a"] * (times + 1)
    answers.answers = {"a": NODE}
    now = room(found, [node("home", 0), node("a")], monkeypatch)
    assert "its check keeps dying (RayActorError: The actor died" in now.lines[0]


def test_a_node_that_a_trial_found_unfit(checked: tuple[NodeChecks, Answers], monkeypatch: pytest.MonkeyPatch) -> None:
    ready, answers = checked
    found = Slots(ResourcesConfig(), ready, may_grow=False)
    nodes = [node("home"), node("a")]
    now = room(found, nodes, monkeypatch)
    answers.answers = {"a": None}
    now = room(found, nodes, monkeypatch)
    found.refuse("a", "its features have gone")
    now = room(found, nodes, monkeypatch)
    assert (now.slots, now.avoid) == (1, ("a",))


def test_no_node_with_the_data_is_told_apart_from_no_node(
    checked: tuple[NodeChecks, Answers], monkeypatch: pytest.MonkeyPatch
) -> None:
    ready, answers = checked
    found = Slots(ResourcesConfig(), ready, may_grow=False)
    now = room(found, [node("home", 0)], monkeypatch)
    assert (now.slots, now.why_none) == (0, None)  # one may come
    now = room(found, [node("home", 0), node("a")], monkeypatch)
    assert now.why_none is None  # it is being asked
    answers.answers = {"a": "no data"}
    now = room(found, [node("home", 0), node("a")], monkeypatch)
    assert now.why_none is not None
    assert "host-a takes no trials: no data" in now.why_none


class Group:
    """Stands for a placement group."""

    state = "PENDING"


@pytest.fixture
def demanded(monkeypatch: pytest.MonkeyPatch) -> list[Group]:
    """The placement groups that stand; a bundle is looked at, and `state` is the test's to set."""
    standing: list[Group] = []

    def make(bundles: list[dict[str, float]], strategy: str, name: str) -> Group:
        assert (bundles, strategy, name.startswith(DEMAND)) == ([{"CPU": 1.0}], "PACK", True)
        standing.append(Group())
        return standing[-1]

    monkeypatch.setattr(slots, "placement_group", make)
    monkeypatch.setattr(slots, "placement_group_table", lambda group: {"state": group.state})
    monkeypatch.setattr(slots, "remove_placement_group", standing.remove)
    return standing


def test_as_many_wait_as_a_cluster_has_grown(demanded: list[Group], monkeypatch: pytest.MonkeyPatch) -> None:
    demand, now = Demand(ResourcesConfig()), 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    seen = []
    for size in (2, 2, 3, 5, 4, 9):
        demand.update(size)
        seen.append(len(demanded))
    assert seen == [1, 1, 1, 3, 3, 7]
    now += 3600.0
    demand.update(9)
    assert len(demanded) == 1
    demand.update(None)
    assert demanded == []


def test_a_request_that_found_its_place_gives_it_up(demanded: list[Group]) -> None:
    demand = Demand(ResourcesConfig())
    demand.update(2)
    demanded[0].state = "CREATED"
    demand.update(None)
    assert demanded == []


def test_a_node_that_becomes_ready_is_no_growth(
    checked: tuple[NodeChecks, Answers], demanded: list[Group], monkeypatch: pytest.MonkeyPatch
) -> None:
    ready, answers = checked
    found = Slots(ResourcesConfig(), ready, may_grow=True)

    def waiting(nodes: list[Node]) -> tuple[int, int]:
        monkeypatch.setattr(slots, "alive_nodes", lambda: nodes)
        found._checked = -1e9
        return found.room(wants_more=True).slots, len(demanded)

    assert waiting([node("home"), node("a", 4)]) == (1, 1)
    answers.answers = {"a": None}
    assert waiting([node("home"), node("a", 4)]) == (5, 1)
    assert waiting([node("home"), node("a", 4), node("b", 3)]) == (5, 3)


def test_label_selector() -> None:
    assert off_nodes(()) == {}
    assert off_nodes(("a1", "b2")) == {"ray.io/node-id": "!in(a1,b2)"}
