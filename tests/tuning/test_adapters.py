"""What Ray Tune's scheduler does with trials of several workers that wait for a place."""

import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, cast

import pytest

from cdn_tune.distributed.ray import RayActorError, placement_group_table, ray
from cdn_tune.tuning.engine.ray import tune_adapters as adapters
from cdn_tune.tuning.engine.ray.tune_adapters import AVOID, NUMBER, Admission, StudyScheduler
from cdn_tune.tuning.study.study import Study

pytestmark = pytest.mark.usefixtures("ray_session")


class Holder:
    """Stands for the process of a trial, whose workers are to be placed."""

    def ask(self, cpus: float) -> str:
        from ray.util.placement_group import placement_group

        self._group = placement_group([{"CPU": cpus}])
        self._group.wait(2.0)
        identity: str = self._group.id.hex()
        return identity

    def free(self) -> None:
        from ray.util import remove_placement_group

        remove_placement_group(self._group)


@pytest.fixture(autouse=True)
def by_value() -> Iterator[None]:
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import this module
    yield
    ray.cloudpickle.unregister_pickle_by_value(sys.modules[__name__])


class Trial:
    """As Ray Tune has it: running, and keeping clear of a node."""

    def __init__(self, actor: Any) -> None:
        self.config, self.status = {NUMBER: 3, AVOID: ["node"]}, "RUNNING"
        self.temporary_state = SimpleNamespace(ray_actor=actor)


class Search:
    """A scheduler, with what it asks and tells."""

    def __init__(self) -> None:
        self.avoid, self.is_over = ["node"], False
        self.put_back: list[int] = []
        space = SimpleNamespace(
            resources=SimpleNamespace(workers=2),
            max_failures=0,
            early_stopping=SimpleNamespace(unit="epoch", name="none"),
        )
        study = SimpleNamespace(space=space, halted=None, put_back=self.put_back.append)
        admission = Admission(
            1,
            lambda: self.is_over,
            slots=lambda: 1,
            has_room=lambda: True,
            admitted=lambda number: None,  # noqa: ARG005
            avoid=lambda: tuple(self.avoid),
        )
        self.scheduler = StudyScheduler(cast(Study, study), admission)

    def run(self, cpus: float) -> tuple[Trial, Any, str]:
        """Runs a trial whose workers ask for so many CPUs; returns it, its process, and its placement group."""
        actor = ray.remote(num_cpus=0)(Holder).remote()
        group = ray.get(actor.ask.remote(cpus))
        trial = Trial(actor)
        self.scheduler.on_trial_add(None, trial)
        return trial, actor, group


@pytest.mark.parametrize("reason", ["in vain", "over"])
def test_workers_that_wait_for_a_place_are_placed_anew(reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """They keep clear of a node that takes trials by now, or nobody wants them any more: the trial goes back, free."""
    monkeypatch.setattr(adapters, "_STALE_SECONDS", 0.0)
    search = Search()
    trial, actor, group = search.run(1e6)
    search.scheduler.choose_trial_to_run(None)
    assert placement_group_table()[group]["state"] == "PENDING"  # it has a reason to wait
    if reason == "over":
        search.is_over = True
    else:
        search.avoid.clear()
    search.scheduler.choose_trial_to_run(None)
    assert placement_group_table()[group]["state"] == "REMOVED"
    with pytest.raises(RayActorError):
        ray.get(actor.ask.remote(1.0))
    search.scheduler.on_trial_error(None, trial)
    assert search.put_back == [3]


def test_workers_that_have_a_place_keep_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapters, "_STALE_SECONDS", 0.0)
    search = Search()
    _, actor, group = search.run(0.01)
    search.avoid.clear()
    search.is_over = True
    search.scheduler.choose_trial_to_run(None)
    assert placement_group_table()[group]["state"] == "CREATED"
    assert search.put_back == []
    ray.get(actor.free.remote())
    ray.kill(actor)
