"""Small models get few CPU threads, everywhere by the same rule."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from cdn_tune.config import Experiment
from cdn_tune.training.memory.estimate import count_parameters
from cdn_tune.training.reports import ignore
from cdn_tune.training.step import threads
from cdn_tune.training.step.threads import threads_for, torch_threads
from cdn_tune.training.train_trial import train_in

Tiny = Callable[..., Experiment]


def test_a_thread_per_million_parameters_within_what_there_is(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "available_cpus", lambda: 4)
    small, large = tiny(), tiny(**{"model.hidden": 64, "model.map.layers": 4})
    monkeypatch.setattr(threads, "PARAMETERS", count_parameters(large) // 3)
    assert [threads_for(small, cpus) for cpus in (1, 2, 64)] == [1, 1, 1]
    assert [threads_for(large, cpus) for cpus in (1, 2, 64)] == [1, 2, 3]
    assert threads_for(large) == 1  # tests run with one
    with torch_threads(2):
        assert threads_for(large) == 2
    with torch_threads(8):
        assert threads_for(large) == 3
        monkeypatch.setattr(threads, "available_cpus", lambda: 1)
        assert threads_for(large) == 1
    assert torch.get_num_threads() == 1


def test_a_training_takes_them_and_gives_them_back(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cdn_tune.training.train_trial.threads_for", lambda _: 2)
    seen = []
    for number, given in enumerate((None, 3)):
        steps = lambda _: seen.append(torch.get_num_threads())  # noqa: E731
        train_in(tiny(**{"train.epochs": 1}), tmp_path / str(number), ignore, steps, threads=given)
        seen.append(0)
    assert list(dict.fromkeys(seen)) == [2, 0, 3]
    assert torch.get_num_threads() == 1


@pytest.mark.parametrize("cpus", [1, 8])
def test_a_trial_of_a_search_takes_as_many_as_a_training(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cpus: int
) -> None:
    from cdn_tune.tuning.engine.ray import trial

    monkeypatch.setattr(threads, "PARAMETERS", count_parameters(tiny()) // 2)
    monkeypatch.setattr(trial, "check_here", lambda *_, **__: None)
    seen: list[Any] = []

    def train(*_: Any, threads: int, **__: Any) -> None:
        seen.append(threads)

    config = {trial.NUMBER: 0, trial.PARAMETERS: {}, trial.DECISIONS: None}
    trial.run_trial(config, tiny().plain(), str(tmp_path), {"cpus_per_worker": cpus}, {}, "", train)
    assert seen == [min(cpus, 2)] == [threads_for(tiny(), cpus)]
