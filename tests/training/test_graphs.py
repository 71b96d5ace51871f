"""Steps replayed as graphs, recorded by a stand-in for CUDA's that runs on a CPU; and batches copied ahead."""

import copy
import logging
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode  # what is recorded has to be seen below autograd

from cdn_tune.config import Experiment
from cdn_tune.data.batches import PaddedWords, copied_ahead
from cdn_tune.data.dataset import MomentDataset
from cdn_tune.errors import NotFinite
from cdn_tune.training import loop
from cdn_tune.training.reports import StepReport, ignore
from cdn_tune.training.runs.checkpoint import LAST, build_model, read_checkpoint
from cdn_tune.training.step import steps
from cdn_tune.training.step.batch_loss import batch_loss
from cdn_tune.training.step.graphs import StepGraphs, are_static
from cdn_tune.training.step.optimiser import Ema, build_optimiser, build_schedule
from cdn_tune.training.step.process_group import World, this_world
from cdn_tune.training.step.steps import Engine
from cdn_tune.training.train_trial import open_data, train_in

Tiny = Callable[..., Experiment]
GPU = World(device=torch.device("cuda", 0))
# A rate, and shares of it while it rises, that float32 holds exactly, as graphs have them.
EXACT = {"optim.lr": 2**-8, "optim.warmup_steps": 8, "train.batch_size": 5}
SMALL = {"model.clips": 8, "model.hidden": 8, "model.map": {"layers": 2, "kernel_size": 3}}
TAN = {"model.name": "tan", **SMALL, "model.query": {"hidden": 8, "layers": 1}}
SWITCHES = {
    "model.cross_attention": {"layers": 1, "stem": 1, "heads": 2},
    "model.ends": "concat",
    "model.map_scales": 2,
    "model.gates": True,
    "model.offsets": "l1giou",
}
STATIC: dict[str, dict[str, Any]] = {
    "cdn": {},
    "bidirectional": {"model.query.bidirectional": True},
    "switches": SWITCHES,
    "diou": {"model.offsets": "diou", "model.proposals": "conv", "model.clip_pool": "mean"},
    "tan": TAN,
}
ATEN = torch.ops.aten
# What a stream refuses while it is recorded: reading a value or a shape back, or copying one from pageable memory.
REFUSED = (ATEN._local_scalar_dense, ATEN.equal, ATEN.nonzero, ATEN.masked_select, ATEN._unique2, ATEN.lift_fresh)


def tensors(value: Any) -> Iterator[torch.Tensor]:
    """The tensors in nested lists, tuples and dicts."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, list | tuple | dict):
        for each in value.values() if isinstance(value, dict) else value:
            yield from tensors(each)


def aliases(value: Any) -> Any:
    """The same in nested lists, tuples and dicts, of which tensors share their memory but have no gradients."""
    if isinstance(value, dict):
        return {key: aliases(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(aliases, value))
    return value.detach() if isinstance(value, torch.Tensor) else value


class Tape(TorchDispatchMode):
    """Keeps every operation with the memory it reads and writes; numbers are kept as they are, like in a graph."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[tuple[Any, Any, Any, Any, bool]] = []  # the last: whether gradients were recorded
        self.before: dict[int, tuple[torch.UntypedStorage, torch.UntypedStorage]] = {}  # memory, what it held at first

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        by_mask = function.overloadpacket in (ATEN.index, ATEN.index_put, ATEN.index_put_) and any(
            index.dtype == torch.bool for index in tensors(args[1])
        )
        if function.overloadpacket in REFUSED or by_mask:
            raise RuntimeError(f"operation not permitted when stream is capturing: {function}")
        for each in tensors((args, kwargs)):
            memory = each.untyped_storage()
            if memory.data_ptr() not in self.before:
                self.before[memory.data_ptr()] = memory, memory.clone()
        out = function(*args, **kwargs)
        self.operations.append((function, aliases(args), aliases(kwargs), aliases(out), torch.is_grad_enabled()))
        return out

    def undo(self) -> None:
        """Gives all memory what it held at first."""
        for memory, held in self.before.values():
            memory.copy_(held)
        self.before.clear()

    def replay(self) -> None:
        """Carries the operations out again, on the same memory."""
        for function, args, kwargs, out, recorded in self.operations:
            with torch.set_grad_enabled(recorded):
                again = function(*args, **kwargs)
            for mine, theirs in zip(tensors(out), tensors(again), strict=True):
                if mine.data_ptr() != theirs.data_ptr():
                    mine.copy_(theirs)


class FakeCapture:
    """Records on a CPU, where nothing can be recorded without being carried out: it is undone."""

    def __init__(self, *_: Any) -> None:
        self.recorded = self.replayed = 0

    def __call__(self, function: Callable[[], torch.Tensor]) -> Callable[[], torch.Tensor]:
        self.recorded += 1
        state = torch.get_rng_state()
        tape = Tape()
        try:
            with tape:
                results = function()
        finally:
            tape.undo()
            torch.set_rng_state(state)

        def replay() -> torch.Tensor:
            self.replayed += 1
            tape.replay()
            return results

        return replay


def engine_of(experiment: Experiment, capture: FakeCapture | None, lags: bool = False) -> Engine:
    torch.manual_seed(0)
    model = build_model(experiment)
    optimiser = build_optimiser(model, experiment.optim)
    schedule = build_schedule(optimiser, experiment.optim, total_steps=100)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    graphs = None if capture is None else StepGraphs(optimiser, capture)
    ema = Ema(model, 0.9)
    return Engine(
        experiment, model, optimiser, schedule, this_world(), torch.float32, scaler, None, ema, lags=lags, graphs=graphs
    )


@pytest.fixture
def unpadded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Has queries keep their lengths with graphs too: many shapes, and the same inputs as without."""
    monkeypatch.setattr(steps, "WORDS", 1)


def trained(engine: Engine, data: MomentDataset, epochs: int = 2) -> dict[str, Any]:
    """What must be the same with and without graphs, after some epochs."""
    reports: list[StepReport] = []
    totals = [engine.run_epoch(data, epoch, reports.append) for epoch in range(1, epochs + 1)]
    assert engine.ema is not None
    return {
        "totals": [(each.loss, each.losses, each.gradient_norm, each.queries) for each in totals],
        "losses": [(each.epoch, each.step, each.loss) for each in reports],
        "model": engine.model.state_dict(),
        "optimiser": engine.optimiser.state_dict(),
        "ema": engine.ema.model.state_dict(),
        "generator": torch.get_rng_state(),
    }


def assert_same(found: Any, expected: Any) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.usefixtures("unpadded")
@pytest.mark.parametrize(("name", "lags"), [*((name, False) for name in STATIC), ("cdn", True)])
def test_replayed_steps_are_those_without_graphs(tiny: Tiny, name: str, lags: bool) -> None:
    """Over short last batches, queries of several lengths, a learning rate that rises, dropout and a running mean."""
    experiment = tiny(**EXACT, **STATIC[name])
    data = open_data(experiment.data)["train"]
    size, capture = experiment.train.batch_size, FakeCapture()
    assert len(data) % size
    expected = trained(engine_of(experiment, None, lags), data)
    engine = engine_of(experiment, capture, lags)
    assert_same(trained(engine, data), expected)
    assert capture.recorded > 1
    assert capture.replayed == 2 * (len(data) // size) - lengths(data, experiment)
    assert all(type(group["lr"]) is float and not group["capturable"] for group in engine.optimiser.param_groups)


def lengths(data: MomentDataset, experiment: Experiment) -> int:
    """How many lengths whole batches of two epochs have: the first of each is not replayed."""
    size = experiment.train.batch_size
    batches = [batch for epoch in (1, 2) for batch in steps.global_batches(data, experiment, epoch, this_world())]
    return len({data.batch(np.concatenate(each)).words.shape for each in batches if len(each) == size})


@pytest.mark.usefixtures("unpadded")
def test_what_cannot_be_recorded_is_computed_as_before(tiny: Tiny, caplog: pytest.LogCaptureFixture) -> None:
    """Contrast asks which queries have the same video; nothing of the attempt is left, and there is but one."""
    experiment = tiny(**EXACT, **{"model.contrastive": True, "model.joint": 8})
    data, capture = open_data(experiment.data)["train"], FakeCapture()
    expected = trained(engine_of(experiment, None), data)
    with caplog.at_level(logging.WARNING):
        assert_same(trained(engine_of(experiment, capture), data), expected)
    assert (capture.recorded, capture.replayed) == (1, 0)
    (record,) = caplog.records
    assert "steps are not replayed as CUDA graphs: RuntimeError: operation not permitted" in record.message


@pytest.mark.parametrize("lags", [False, True])
def test_a_replayed_step_that_is_not_finite_changes_no_weight(tiny: Tiny, lags: bool) -> None:
    experiment = tiny(**EXACT)
    data, capture, bad = copy.copy(open_data(experiment.data)["train"]), FakeCapture(), 4
    visual, calls = data._visual, iter(range(1, 100))

    def spoilt(at: torch.Tensor) -> torch.Tensor:
        return visual(at) * (torch.nan if next(calls) == bad else 1.0)

    data._visual = spoilt  # type: ignore[method-assign]
    engine = engine_of(experiment, capture, lags)
    before: list[dict[str, torch.Tensor]] = []
    original = engine.step

    def step(*arguments: Any) -> torch.Tensor:
        before.append({name: value.detach().clone() for name, value in engine.model.named_parameters()})
        return original(*arguments)

    engine.step = step  # type: ignore[method-assign]
    with pytest.raises(NotFinite, match=rf"loss nan at epoch 1, step {bad}, .*frame features of .* are not finite"):
        engine.run_epoch(data, 1, ignore)
    assert len(before) == bad + lags
    assert capture.replayed == bad - 1 + lags  # all but the first
    before.append({name: value.detach() for name, value in engine.model.named_parameters()})
    assert_same(before[bad], before[bad - 1])
    assert any(not torch.equal(before[bad - 1][name], value) for name, value in before[bad - 2].items())


def test_a_training_with_graphs_goes_on_exactly(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped within an epoch; checkpoints are those of a training without graphs, which can go on from them."""
    captures: list[FakeCapture] = []

    def capture(_: torch.device) -> FakeCapture:
        captures.append(FakeCapture())
        return captures[-1]

    monkeypatch.setattr(loop, "CudaCapture", capture)
    monkeypatch.setattr(loop, "are_static", lambda *_: True)
    experiment = tiny(**EXACT, **{"train.ema": 0.9, "train.epochs": 2})
    train_in(experiment, tmp_path / "whole", ignore)
    calls = iter(range(100))
    with pytest.raises(KeyboardInterrupt):
        train_in(experiment, tmp_path / "parts", ignore, stop=lambda: next(calls) > 4)
    assert read_checkpoint(tmp_path / "parts" / LAST)["within"] is not None
    train_in(experiment, tmp_path / "parts", ignore)
    assert len(captures) == 3
    assert all(each.replayed and each.recorded == 1 for each in captures)  # of one length, once padded
    whole, parts = (read_checkpoint(tmp_path / name / LAST) for name in ("whole", "parts"))
    for key in ("model", "optimiser", "schedule", "ema", "generators"):
        assert_same(parts[key], whole[key])
    groups = parts["optimiser"]["param_groups"]
    assert {(type(group["lr"]), group["capturable"]) for group in groups} == {(float, False)}


@pytest.mark.parametrize("name", STATIC)
def test_padding_changes_nothing_where_steps_are_static(tiny: Tiny, name: str) -> None:
    off = {"dropout": 0.0, "attention_dropout": 0.0, "path_dropout": 0.0}  # draws as many numbers as there are words
    attention = {key: {**value, **off} for key, value in STATIC[name].items() if key == "model.cross_attention"}
    experiment = tiny(**STATIC[name] | attention)
    torch.manual_seed(0)
    model = build_model(experiment)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    data = open_data(experiment.data)["train"]
    found = []
    for multiple in (1, 24):
        batch = PaddedWords(data, multiple).batch(np.arange(12))
        one = copy.deepcopy(model).train()
        losses = batch_loss(one, batch, torch.float32)
        gradients = torch.autograd.grad(losses[0], list(one.parameters()), materialize_grads=True)
        found.append((batch, losses, gradients))
    assert model.static_step
    (batch, losses, gradients), (longer, longer_losses, longer_gradients) = found
    assert longer.words.shape[1] == 24 > batch.words.shape[1]
    assert not longer.word_mask[:, batch.words.shape[1] :].any()
    assert torch.equal(longer.words[:, : batch.words.shape[1]], batch.words)
    torch.testing.assert_close(longer_losses, losses, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(longer_gradients, gradients, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "world", "dtype", "micro_batch"),
    [
        ({}, World(), torch.float32, None),
        ({}, World(0, 2, GPU.device), torch.float32, None),
        ({}, GPU, torch.float16, None),
        ({}, GPU, torch.float32, 4),
        ({"train.compile": True}, GPU, torch.float32, None),
        ({"train.cuda_graphs": False}, GPU, torch.float32, None),
        ({"train.batch_of": "videos"}, GPU, torch.float32, None),
        ({"model.contrastive": True}, GPU, torch.float32, None),
        ({"model.query": {"bidirectional": True, "read_padding": True}}, GPU, torch.float32, None),
        ({"model.name": "mmn", **SMALL}, GPU, torch.float32, None),
    ],
    ids=["cpu", "workers", "fp16", "parts", "compiled", "off", "videos", "contrastive", "padding", "mmn"],
)
def test_other_steps_are_not_recorded(
    tiny: Tiny, changes: dict[str, Any], world: World, dtype: torch.dtype, micro_batch: int | None
) -> None:
    experiment = tiny(**changes)
    assert not are_static(experiment, build_model(experiment), world, dtype, micro_batch)
    plain = tiny()
    assert are_static(plain, build_model(plain), GPU, torch.bfloat16, None)


def test_nothing_is_recorded_with_a_torch_that_a_failed_recording_harms(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = tiny()
    for version, recorded in ("2.11.0+cu130", False), ("2.12.0", True):
        monkeypatch.setattr(torch, "__version__", version)
        assert are_static(plain, build_model(plain), GPU, torch.bfloat16, None) == recorded


def test_batches_are_copied_ahead(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a stream that waits for what was issued before; a step waits for its own copy, not for the next one."""
    log: list[str] = []

    class Stream:
        def __init__(self, *_: Any) -> None:
            pass

        def wait_stream(self, _: Any) -> None:
            log.append("wait for steps")

        def record_event(self) -> int:
            log.append(f"copied {log.count('wait for steps')}")
            return log.count("wait for steps")

        def wait_event(self, number: int) -> None:
            log.append(f"wait for {number}")

    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda _: nullcontext())
    data = open_data(tiny().data)["train"]
    batches = [data.batch([number]) for number in range(3)]
    for batch, given in copied_ahead(iter(batches), torch.device("cpu"), Stream()):
        assert torch.equal(given.visual, batch.visual)
        log.append(f"step {int(batch.indices[0]) + 1}")
    copied = [["wait for steps", f"copied {number}"] for number in (1, 2, 3)]
    used = [[f"wait for {number}", f"step {number}"] for number in (1, 2, 3)]
    assert log == [*copied[0], *copied[1], *used[0], *copied[2], *used[1], *used[2]]
