"""On a GPU: number formats, the compiled model, a full card, trials that share one, what a search leaves on it."""

import math
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from optuna.trial import TrialState

from cdn_tune.config import Experiment, SearchSpace
from cdn_tune.model.kernels.cell_conv import convolve
from cdn_tune.model.kernels.epilogue import Epilogue
from cdn_tune.model.kernels.mixing import triton_fault, triton_installed
from cdn_tune.model.kernels.needed import needed
from cdn_tune.model.kernels.products import OF_TRITON, PRODUCTS
from cdn_tune.training.kernels.card import this_card
from cdn_tune.training.kernels.measure import LIMITS
from cdn_tune.training.kernels.store import read_choices
from cdn_tune.training.reports import EpochReport, StepReport, ignore
from cdn_tune.training.runs.checkpoint import LAST, build_model, read_checkpoint
from cdn_tune.training.step.batch_loss import use_tf32
from cdn_tune.training.step.graphs import CudaCapture
from cdn_tune.training.train_trial import open_data, train_in
from cdn_tune.tuning.progress import SearchState
from cdn_tune.tuning.results.record import read_record
from cdn_tune.tuning.search import SearchOptions, SearchResult, search

Tiny = Callable[..., Experiment]
pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")

GIB = 1 << 30


@pytest.fixture
def little_left() -> Iterator[None]:
    """Occupies the GPU but for 2 GiB: enough for a CUDA context and a tiny model, not for a large one."""
    free, _ = torch.cuda.mem_get_info()
    held = torch.empty(free - 2 * GIB, dtype=torch.uint8, device="cuda")
    yield
    del held
    torch.cuda.empty_cache()


def searched(tiny: Tiny, run: Path, hidden: list[int], share: float, **more: Any) -> SearchResult:
    """Searches over a width on parts of a GPU."""
    space = SearchSpace.model_validate(
        {
            "name": "gpu",
            "experiment": "tiny",
            "parameters": {"model.hidden": {"type": "categorical", "choices": hidden}},
            "start_with": [{"model.hidden": size} for size in hidden],
            "trials": len(hidden),
            "sampler": {"name": "random"},
            "early_stopping": {"name": "none"},
            "resources": {"workers": 1, "cpus_per_worker": 1, "gpus_per_worker": share},
            **more,
        }
    )

    def see(_: SearchState) -> None:
        pass

    return search(space, tiny(**{"train.epochs": 2}), run, see, SearchOptions())


def test_scores_are_those_of_a_cpu(tiny: Tiny) -> None:
    experiment = tiny()
    dataset = open_data(experiment.data)["val"]
    batch = dataset.batch(np.arange(8))
    model = build_model(experiment).eval()
    with torch.no_grad():
        expected = model(batch.visual, batch.words, batch.word_mask)
        model.cuda()
        found = model(batch.visual.cuda(), batch.words.cuda(), batch.word_mask.cuda())
    torch.testing.assert_close(found.logits.cpu(), expected.logits, atol=1e-4, rtol=0)
    torch.testing.assert_close(found.attention.cpu(), expected.attention, atol=1e-4, rtol=0)


@pytest.mark.parametrize("size", [8, 20])
@pytest.mark.parametrize("product", PRODUCTS)
@pytest.mark.parametrize("kind", LIMITS)
def test_a_kernel_per_sample_is_the_formula(size: int, product: str, kind: str) -> None:
    if product in OF_TRITON and not triton_installed():
        pytest.skip("Triton is not installed")
    torch.manual_seed(0)
    use_tf32(kind == "tf32")
    dtype, within = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(kind, torch.float32), LIMITS[kind]
    x = torch.randn(5, 64, size, size, dtype=torch.float64)
    weight = torch.randn(25, 4, 64, 64, dtype=torch.float64) / 40
    mixture = torch.randn(5, 4, dtype=torch.float64).softmax(dim=1)
    mask, factors = torch.ones(size, size, dtype=torch.bool).triu(size // 2), torch.rand(size, size)
    found, expected = [], []
    for results, device, exact in ((found, "cuda", torch.float32), (expected, "cpu", torch.float64)):
        inputs = [tensor.to(device, exact, copy=True).requires_grad_() for tensor in (x, weight, mixture)]
        with torch.autocast(device, dtype, enabled=device == "cuda" and dtype != torch.float32):
            bias = torch.zeros(4, 64, device=device, dtype=exact)
            cells = needed(mask.to(device), 5)
            epilogue = Epilogue(factors.to(device), residual=True)
            out = convolve(*inputs[:2], bias, inputs[2], cells, product, epilogue) * cells.mask
        results += [out, *torch.autograd.grad(out.square().sum(), inputs)]
    for mine, theirs in zip(found, expected, strict=True):
        error = (mine.cpu().double() - theirs).square().mean().sqrt() / theirs.square().mean().sqrt()
        assert error < within
    use_tf32(False)


def test_the_fastest_is_chosen_and_kept(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CDN_TUNE_CACHE", str(tmp_path / "cache"))
    train_in(tiny(**{"train.epochs": 1}), tmp_path / "run", ignore)
    held = read_checkpoint(tmp_path / "run" / LAST)["kernels"]
    (choice,) = read_choices(this_card(torch.device("cuda"))).values()
    assert held["products"] == {"C8 K3 E2 S8": choice.product}
    assert "published" in choice.milliseconds
    assert not choice.dropped
    assert set(choice.milliseconds) == {*PRODUCTS} - (set() if triton_installed() else set(OF_TRITON))


def test_triton_mixes_where_it_is() -> None:
    fault = triton_fault(torch.device("cuda", torch.cuda.current_device()))
    assert fault == (None if triton_installed() else "it is not installed")


@pytest.mark.parametrize(
    "settings",
    [
        {"train.precision": "fp32"},
        {"train.precision": "fp32", "train.tf32": True},
        {"train.precision": "bf16"},
        {"train.precision": "fp16"},
        {"train.precision": "bf16", "model.query.bidirectional": True},
        {"train.precision": "bf16", "train.compile": True},
    ],
    ids=["fp32", "tf32", "bf16", "fp16", "bidirectional", "compiled"],
)
def test_every_format_learns_alike(tiny: Tiny, tmp_path: Path, settings: dict[str, Any]) -> None:
    reports: list[EpochReport] = []
    plain: list[EpochReport] = []
    experiment = {"train.epochs": 4, "model.map.mixing_dropout": 0.0}
    train_in(tiny(**experiment, **settings), tmp_path / "this", reports.append)
    reference = {**experiment, **settings, "train.precision": "fp32", "train.tf32": False, "train.compile": False}
    train_in(tiny(**reference), tmp_path / "fp32", plain.append)
    assert reports[-1].loss < reports[0].loss
    for report, exact in zip(reports, plain, strict=True):
        assert math.isclose(report.loss, exact.loss, rel_tol=0.05)
    weights = read_checkpoint(tmp_path / "this" / LAST)["model"]
    assert {value.dtype for value in weights.values() if value.is_floating_point()} == {torch.float32}


def test_a_training_goes_on_where_it_was_killed(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replayed = counted(monkeypatch)

    class KilledError(Exception):
        pass

    def die(report: EpochReport) -> None:
        if report.epoch == 2:
            raise KilledError

    experiment = tiny(**{"train.epochs": 4})
    train_in(experiment, tmp_path / "whole", ignore)
    with pytest.raises(KilledError):
        train_in(experiment, tmp_path / "killed", die)
    before = len(replayed)
    train_in(experiment, tmp_path / "killed", ignore)
    assert 0 < before < len(replayed)
    whole, killed = (read_checkpoint(tmp_path / name / LAST)["model"] for name in ("whole", "killed"))
    for name, weights in whole.items():  # dropout's draws too; only the order of sums on a GPU may differ
        torch.testing.assert_close(killed[name], weights, atol=1e-3, rtol=1e-2)


def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Returns a list that grows by one with every step that is replayed."""
    replayed: list[int] = []
    original = torch.cuda.CUDAGraph.replay

    def replay(graph: torch.cuda.CUDAGraph) -> None:
        replayed.append(1)
        original(graph)

    monkeypatch.setattr(torch.cuda.CUDAGraph, "replay", replay)
    return replayed


def unrecordable(self: CudaCapture, function: Callable[[], torch.Tensor]) -> Callable[[], torch.Tensor]:
    raise RuntimeError("not here")


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", ["cdn", "switches", "tan"])
def test_replayed_steps_are_those_without_graphs(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, precision: str
) -> None:
    switches = {"model.cross_attention": {"layers": 1, "stem": 1, "heads": 2}, "model.offsets": "l1giou"}
    tan = {"model.name": "tan", "model.query": {"hidden": 8, "layers": 1}, "model.map": {"layers": 2, "kernel_size": 3}}
    changes = {"cdn": {}, "switches": switches, "tan": tan}[name]
    experiment = tiny(**{"train.precision": precision, "train.ema": 0.9, "optim.warmup_steps": 5}, **changes)
    found: dict[str, list[StepReport]] = {"graphs": [], "plain": []}
    replayed = counted(monkeypatch)
    train_in(experiment, tmp_path / "graphs", ignore, found["graphs"].append)
    count = len(replayed)
    assert count >= len(found["graphs"]) // 2
    monkeypatch.setattr(CudaCapture, "__call__", unrecordable)
    train_in(experiment, tmp_path / "plain", ignore, found["plain"].append)
    assert len(replayed) == count
    for mine, theirs in zip(found["graphs"], found["plain"], strict=True):
        assert math.isclose(mine.loss, theirs.loss, rel_tol=1e-3)
    graphs, plain = (read_checkpoint(tmp_path / folder / LAST) for folder in found)
    for key in ("model", "generators"):  # dropout's draws too; only the order of sums on a GPU may differ
        torch.testing.assert_close(graphs[key], plain[key], atol=1e-3, rtol=1e-2)


def test_a_failed_recording_leaves_a_training_as_it_is(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A value is read back while a step is recorded, which the driver refuses; dropout draws on."""
    original = CudaCapture.__call__

    def call(self: CudaCapture, function: Callable[[], torch.Tensor]) -> Callable[[], torch.Tensor]:
        return original(self, lambda: function() / float(torch.ones((), device="cuda")))

    experiment, losses = tiny(), list[StepReport]()
    monkeypatch.setattr(CudaCapture, "__call__", call)
    train_in(experiment, tmp_path / "failed", ignore, losses.append)
    assert sum("CUDA graphs" in record.message for record in caplog.records) == 1
    expected = list[StepReport]()
    monkeypatch.setattr(CudaCapture, "__call__", unrecordable)
    train_in(experiment, tmp_path / "plain", ignore, expected.append)
    for mine, theirs in zip(losses, expected, strict=True):
        assert math.isclose(mine.loss, theirs.loss, rel_tol=1e-3)
    torch.cuda.empty_cache()  # as between two trials of a process


@pytest.mark.usefixtures("ray_session")
def test_trials_share_a_gpu_and_leave_nothing_on_it(tiny: Tiny, tmp_path: Path) -> None:
    torch.cuda.empty_cache()
    before, _ = torch.cuda.mem_get_info()
    result = searched(tiny, tmp_path / "run", [8, 16, 24, 32], share=0.5)
    assert [row["state"] for row in result.rows] == ["complete"] * 4
    trials = read_record(tmp_path / "run").entries
    begun = sorted(trial.datetime_start for trial in trials if trial.datetime_start)
    ended = sorted(trial.datetime_complete for trial in trials if trial.datetime_complete)
    assert begun[1] < ended[0]  # two at a time
    assert result.audit is not None
    assert result.audit.is_clean, result.audit
    deadline = time.monotonic() + 20  # the driver takes a moment to take a process's memory back
    while before - torch.cuda.mem_get_info()[0] >= GIB / 8:
        assert time.monotonic() < deadline, subprocess.run(["nvidia-smi"], capture_output=True, text=True).stdout
        time.sleep(0.5)


@pytest.mark.usefixtures("ray_session", "little_left")
def test_a_full_gpu_is_a_lack_of_memory(tiny: Tiny, tmp_path: Path) -> None:
    result = searched(tiny, tmp_path / "run", [3072, 8], share=1.0)
    assert sorted(row["state"] for row in result.rows) == ["complete", "failed"]
    [failed] = [trial for trial in read_record(tmp_path / "run").entries if trial.state == TrialState.FAIL]
    assert failed.params["model.hidden"] == 3072
    assert failed.user_attrs["failure"] == "memory"
    assert failed.constraints["memory"] > 0
    assert result.audit is not None
    assert result.audit.is_clean, result.audit
