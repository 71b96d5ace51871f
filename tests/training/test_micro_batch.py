"""How many queries at once: as asked, the whole batch where memory is plenty, fewer where it is not."""

from collections.abc import Callable

import pytest
import torch

from cdn_tune.config import Experiment
from cdn_tune.training.memory import device
from cdn_tune.training.memory.device import choose_micro_batch
from cdn_tune.training.memory.estimate import estimate
from cdn_tune.training.runs.checkpoint import build_model
from cdn_tune.training.step.process_group import World
from cdn_tune.training.step.steps import global_batches
from cdn_tune.training.train_trial import open_data

Tiny = Callable[..., Experiment]
CPU = torch.device("cpu")
MMN = {"model.name": "mmn", "model.clips": 8, "model.hidden": 8}


def choose(experiment: Experiment) -> int | None:
    train = open_data(experiment.data)["train"]
    batches = global_batches(train, experiment, 1, World())
    return choose_micro_batch(experiment, build_model(experiment), train, batches, World(), torch.float32)


def test_as_asked(tiny: Tiny) -> None:
    assert choose(tiny(**{"train.micro_batch": 3})) == 3


def test_the_whole_batch_where_memory_is_plenty(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "estimate", None)  # is not needed
    assert choose(tiny()) is None


@pytest.mark.parametrize(("queries", "expected"), [(8, None), (7, 4), (3, 2), (1, 1)])
def test_fewer_where_it_is_not(tiny: Tiny, monkeypatch: pytest.MonkeyPatch, queries: int, expected: int | None) -> None:
    experiment = tiny()
    need = estimate(experiment, torch.float32, CPU)
    monkeypatch.setattr(device, "available_bytes", lambda _: need.total(queries) - need.weights)
    assert choose(experiment) == expected


def test_a_video_with_its_queries_counts_as_many_queries(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    experiment = tiny(**{"train.batch_of": "videos", "train.batch_size": 4})
    batches = global_batches(open_data(experiment.data)["train"], experiment, 1, World())
    each = max(len(video) for batch in batches for video in batch)
    need = estimate(experiment, torch.float32, CPU, batches)
    assert need.total(2) - need.total(1) == each * (need.activations + need.temporary)
    monkeypatch.setattr(device, "available_bytes", lambda _: need.total(3) - need.weights)
    assert choose(experiment) == 2


def test_a_video_of_mmn_counts_once(tiny: Tiny) -> None:
    experiment = tiny(**MMN, **{"train.batch_of": "videos", "train.batch_size": 4})
    batches = global_batches(open_data(experiment.data)["train"], experiment, 1, World())
    assert max(len(video) for batch in batches for video in batch) > 1
    assert estimate(experiment, torch.float32, CPU, batches).each == 1


def test_the_generous_bound_is_above_the_estimate(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the bound says plenty, the estimate does too."""
    for changes in ({}, {"model.hidden": 32}, {"train.batch_size": 64}, {"model.map.kernel_size": 7}):
        experiment = tiny(**changes)
        size = experiment.train.batch_size
        batches = global_batches(open_data(experiment.data)["train"], experiment, 1, World())
        need = estimate(experiment, torch.float32, CPU, batches).total(size)
        assert not device._fits_easily(experiment, build_model(experiment), batches, size, need, torch.float32, CPU)
