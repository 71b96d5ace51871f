"""What a search offers to be logged: its end, also where that is an error."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from cdn_tune.config import Experiment, SearchSpace
from cdn_tune.errors import ClusterError
from cdn_tune.training.reports import ignore
from cdn_tune.training.tracking.tracked_run import TrackedRun
from cdn_tune.tuning.engine.door import EngineDriver
from cdn_tune.tuning.engine.virtual.engine import CurvePoint, VirtualEngine, World
from cdn_tune.tuning.search import SearchOptions, search

Tiny = Callable[..., Experiment]
METRICS = ("R1@0.5", "R1@0.3", "R5@0.3", "R5@0.5", "mIoU")


class Offered:
    """What a tracker is offered; it logs nothing."""

    is_complete = True

    def __init__(self) -> None:
        self.ends: list[Sequence[TrackedRun]] = []
        self.abandoned = 0

    def offer(self, runs: Sequence[TrackedRun]) -> None:
        """Takes how the search stands."""

    def close(self, runs: Sequence[TrackedRun], *_: object) -> str:
        self.ends.append(runs)
        return ""

    def abandon(self) -> None:
        self.abandoned += 1


@pytest.fixture
def offered(monkeypatch: pytest.MonkeyPatch) -> Offered:
    found = Offered()
    monkeypatch.setattr("cdn_tune.tuning.tracking.Tracker", lambda *_: found)
    return found


class LosesItsCluster(VirtualEngine):
    """An engine that ends with an error while trials run."""

    def __init__(self, error: BaseException) -> None:
        super().__init__(curve, World(nodes={0: 2}))
        self._error = error

    def run(self, driver: EngineDriver) -> None:
        driver.next(self._room())
        raise self._error


def curve(number: int, parameters: Mapping[str, Any]) -> Sequence[CurvePoint]:
    return [CurvePoint(dict.fromkeys(METRICS, parameters["optim.lr"] * epoch)) for epoch in range(1, 4)]


SPACE = SearchSpace.model_validate(
    {
        "name": "tracked",
        "experiment": "tiny",
        "parameters": {"optim.lr": {"type": "float", "low": 1e-3, "high": 1e-2}},
        "sampler": {"name": "random"},
        "early_stopping": {"name": "none"},
        "trials": 3,
    }
)


def test_a_search_that_ends_with_an_error_has_failed_until_it_goes_on(
    tiny: Tiny, tmp_path: Path, offered: Offered
) -> None:
    experiment = tiny(**{"tracking.mlflow": "http://host"})

    def run(engine: VirtualEngine) -> None:
        search(SPACE, experiment, tmp_path / "run", ignore, SearchOptions(engine=engine))

    with pytest.raises(ClusterError, match="the cluster is gone"):
        run(LosesItsCluster(ClusterError("the cluster is gone")))
    parent, trial = offered.ends[-1]
    assert (parent.key, parent.state, parent.status) == ("search", "failed", "FAILED")
    assert (trial.state, trial.status) == ("unfinished", "SCHEDULED"), "it goes on with the search"
    with pytest.raises(KeyboardInterrupt):  # the second Ctrl-C: leaves at once
        run(LosesItsCluster(KeyboardInterrupt()))
    assert (len(offered.ends), offered.abandoned) == (1, 2)
    run(VirtualEngine(curve, World(nodes={0: 2})))
    assert [(each.state, each.status) for each in offered.ends[-1]] == [("complete", "FINISHED")] * 4


def test_a_study_that_cannot_be_read_does_not_hide_the_error(
    tiny: Tiny, tmp_path: Path, offered: Offered, monkeypatch: pytest.MonkeyPatch
) -> None:
    def runs(_: object, state: str) -> list[TrackedRun]:
        if state == "failed":
            raise OSError("the study is gone, too")
        return []

    monkeypatch.setattr("cdn_tune.tuning.tracking.SearchTracking._runs", runs)
    engine = LosesItsCluster(ClusterError("the cluster is gone"))
    with pytest.raises(ClusterError, match="the cluster is gone"):
        search(
            SPACE, tiny(**{"tracking.mlflow": "http://host"}), tmp_path / "run", ignore, SearchOptions(engine=engine)
        )
    assert offered.abandoned == 1
