"""How dynamic layers are multiplied is measured once for a card, kept, alike on all workers, and stays on resume."""

from __future__ import annotations

import json
import typing
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cdn_tune.config import Experiment, TrainConfig
from cdn_tune.errors import ConfigError
from cdn_tune.model.cdn import dynamic_conv
from cdn_tune.model.kernels import products, sample_conv
from cdn_tune.model.kernels.epilogue import Epilogue
from cdn_tune.model.kernels.needed import Needed
from cdn_tune.model.kernels.products import PRODUCTS, MixedShape, Product
from cdn_tune.training import loop
from cdn_tune.training.kernels import card as cards
from cdn_tune.training.kernels import choose
from cdn_tune.training.kernels.card import Card, this_card
from cdn_tune.training.kernels.choose import Chosen, choose_products, chosen, fastest, read_chosen, use_held
from cdn_tune.training.kernels.measure import Case, find_fault, measure
from cdn_tune.training.kernels.store import Choice, Name, keep_choices, read_choices, store_path
from cdn_tune.training.reports import ignore
from cdn_tune.training.runs.checkpoint import BEST, LAST, build_model, load_checkpoint, read_checkpoint
from cdn_tune.training.runs.run_folder import MANIFEST
from cdn_tune.training.step.process_group import World
from cdn_tune.training.train_trial import train_in

Tiny = Callable[..., Experiment]
CPU = torch.device("cpu")
SHAPE = MixedShape(channels=4, kernel=3, experts=2, size=5)
CASE = Case(SHAPE, 3, torch.float32)
ALL: tuple[Name, ...] = ("published", "rows", "cudnn")
PLAIN = TrainConfig()
CARD = Card(
    name="A card", capability="9.0", driver="580.1", torch="2", cuda="13", cudnn="9", triton="3.9", source="abc"
)


class Clock:
    """A timer of fixed times, which counts how often it is asked; all work that it times runs."""

    def __init__(self, **times: float) -> None:
        self.times, self.asked = times, 0

    def __call__(self, work: Mapping[str, Callable[[], object]]) -> dict[str, float]:
        self.asked += 1
        for each in work.values():
            each()
        return {name: self.times[name] for name in work}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CDN_TUNE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Has the CPU pass for a card without Triton, in exact float32."""
    monkeypatch.setattr(choose, "is_gpu", lambda _: True)
    monkeypatch.setattr(choose, "this_card", lambda _: CARD)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


def wrong(x: Tensor, kernels: Tensor, needed: Needed | None) -> Tensor:
    return PRODUCTS["published"].multiply(x, kernels, needed) * 1.001


def failing(x: Tensor, kernels: Tensor, needed: Needed | None) -> Tensor:
    raise RuntimeError("no kernel image\nfor this device")


@pytest.mark.parametrize(
    ("times", "shipped", "expected"),
    [
        ({"published": 1.0, "rows": 0.96}, "published", "published"),  # a tie
        ({"published": 1.0, "rows": 0.94}, "published", "rows"),
        ({"published": 1.0, "rows": 0.96}, "rows", "rows"),
        ({"published": 1.0, "rows": 1.04}, "rows", "rows"),
        ({"published": 1.0, "rows": 1.06}, "rows", "published"),
        ({"published": 1.0, "cudnn": 0.99}, "rows", "cudnn"),  # what is shipped does not work here
        ({}, "rows", "published"),
    ],
)
def test_the_shipped_choice_wins_ties(times: dict[str, float], shipped: str, expected: str) -> None:
    assert fastest(times, shipped) == expected


def test_what_can_be_configured_are_the_products() -> None:
    setting = typing.get_args(TrainConfig.model_fields["kernels"].annotation)
    assert set(setting) == {"auto", *PRODUCTS}
    assert set(typing.get_args(Name)) == set(PRODUCTS)


@pytest.mark.usefixtures("gpu")
def test_a_case_is_measured_once() -> None:
    clock = Clock(published=2.0, rows=1.0, cudnn=3.0)
    assert chosen(CASE, CARD, ALL, CPU, clock).product == "rows"
    assert chosen(CASE._replace(batch=4), CARD, ALL, CPU, clock).product == "rows"  # as good as the same batch
    assert clock.asked == 1
    assert read_choices(CARD)[CASE.key].milliseconds == clock.times
    chosen(CASE._replace(batch=5), CARD, ALL, CPU, clock)
    chosen(CASE._replace(shape=SHAPE._replace(size=6)), CARD, ALL, CPU, clock)
    assert clock.asked == 3


@pytest.mark.usefixtures("gpu")
def test_measuring_draws_no_number_of_the_training() -> None:
    before = torch.get_rng_state()
    measure(CASE, ALL, CPU, Clock(published=1.0, rows=1.0, cudnn=1.0))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.usefixtures("gpu")
def test_the_peak_of_memory_leaves_out_the_measuring(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, reset = Clock(published=2.0, rows=1.0, cudnn=3.0), list[int]()
    monkeypatch.setattr(choose, "release_memory", lambda: reset.append(clock.asked))
    choose_products(PLAIN, (SHAPE, SHAPE._replace(size=6)), 3, torch.float32, World(device=CPU), timer=clock)
    assert reset == [2]


@pytest.mark.usefixtures("gpu")
def test_what_products_are_checked_against_is_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[torch.dtype] = []
    published = PRODUCTS["published"]

    def multiply(x: Tensor, kernels: Tensor, needed: Needed | None) -> Tensor:
        seen.append(x.dtype)
        return published.multiply(x, kernels, needed)

    monkeypatch.setitem(products.PRODUCTS, "published", published._replace(multiply=multiply))
    measure(CASE, ALL, CPU, Clock(published=1.0, rows=1.0, cudnn=1.0))
    assert seen.count(torch.float64) == 1


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize("name", ["rows", "cudnn"])
def test_products_pass_the_check(name: str) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        assert find_fault(CASE._replace(dtype=dtype), name, CPU) is None


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize(("multiply", "told"), [(wrong, "differs"), (failing, "no kernel image for this device")])
def test_what_fails_or_is_wrong_is_dropped_with_one_warning(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    multiply: Callable[[Tensor, Tensor, Needed | None], Tensor],
    told: str,
) -> None:
    monkeypatch.setitem(products.PRODUCTS, "rows", PRODUCTS["rows"]._replace(multiply=multiply))
    clock = Clock(published=2.0, rows=1.0, cudnn=3.0)
    assert chosen(CASE, CARD, ALL, CPU, clock).product == "published"
    assert chosen(CASE, CARD, ALL, CPU, clock).product == "published"
    assert told in read_choices(CARD)[CASE.key].dropped["rows"]
    (warning,) = caplog.records
    assert "rows is not used" in warning.getMessage()
    assert "\n" not in warning.getMessage()


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("wrong", [None, "residual", "ReLU", "factors", "gate", "gradient of the bias"])
def test_a_product_that_ends_the_layer_is_checked_to_its_end(
    monkeypatch: pytest.MonkeyPatch, wrong: str | None, dtype: torch.dtype
) -> None:
    rows = PRODUCTS["rows"]

    def ends(x: Tensor, kernels: Tensor, needed: Needed | None, bias: Tensor, maps: Tensor, end: Epilogue) -> Tensor:
        out = rows.multiply(x, kernels, needed) + bias[:, :, None, None] + (0 if wrong == "residual" else maps)
        out = out if wrong == "ReLU" else out.relu()
        return out if wrong == "factors" else out * end.factors

    def gate(grad: Tensor, out: Tensor, end: Epilogue, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        before = grad * end.factors * (1 if wrong == "gate" else out > 0)
        bias_grad = (out if wrong == "gradient of the bias" else before).sum(dim=(2, 3))
        return before, before.to(dtype), bias_grad

    monkeypatch.setattr(sample_conv, "_AT_ONCE", 1)  # sample by sample
    monkeypatch.setattr(sample_conv, "gate", gate)
    monkeypatch.setitem(products.PRODUCTS, "fused", rows._replace(ends=ends))
    fault = find_fault(CASE._replace(dtype=dtype), "fused", CPU)
    assert fault is None if wrong is None else fault is not None and "differs" in fault


@pytest.mark.usefixtures("gpu")
def test_what_lacks_memory_is_measured_again_another_time(monkeypatch: pytest.MonkeyPatch) -> None:
    def short(x: Tensor, kernels: Tensor, needed: Needed | None) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    clock = Clock(published=2.0, rows=1.0, cudnn=1.5)
    with monkeypatch.context() as patch:
        patch.setitem(products.PRODUCTS, "rows", PRODUCTS["rows"]._replace(multiply=short))
        assert chosen(CASE, CARD, ALL, CPU, clock).product == "cudnn"
    assert chosen(CASE, CARD, ALL, CPU, clock).product == "rows"


@pytest.mark.usefixtures("gpu")
def test_less_of_a_batch_is_measured_where_memory_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    rows = PRODUCTS["rows"]

    def multiply(x: Tensor, kernels: Tensor, needed: Needed | None) -> Tensor:
        seen.append(len(x))
        if len(x) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return rows.multiply(x, kernels, needed)

    for name in ALL:
        monkeypatch.setitem(products.PRODUCTS, name, rows._replace(multiply=multiply))
    clock = Clock(published=2.0, rows=1.0, cudnn=3.0)
    case = CASE._replace(batch=12)
    assert [chosen(case, CARD, ALL, CPU, clock).product for _ in range(2)] == ["rows", "rows"]
    assert clock.asked == 1
    assert max(seen) == 12
    assert seen[-1] == 3


@pytest.mark.usefixtures("gpu")
def test_where_nothing_can_be_timed_it_is_as_published(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = Product(failing, PRODUCTS["rows"].gradients, "tap", "tap")
    for name in ALL:
        monkeypatch.setitem(products.PRODUCTS, name, broken)
    assert chosen(CASE, CARD, ALL, CPU, Clock()).product == "published"


@pytest.mark.parametrize("field", [name for name in Card.model_fields if name != "name"])
def test_another_version_card_or_driver_has_choices_of_its_own(field: str) -> None:
    keep_choices(CARD, {CASE.key: Choice(product="rows")})
    assert read_choices(CARD)
    assert read_choices(CARD.model_copy(update={field: "another"})) == {}


HOSTILE = {
    "empty": "",
    "no JSON": "{",
    "another value": "[1]",
    "deep": "[" * 100_000,
    "another format": json.dumps({"format": 2, "card": CARD.model_dump(), "choices": {}}),
    "unknown product": json.dumps({"format": 1, "card": CARD.model_dump(), "choices": {"x": {"product": "rm -rf"}}}),
    "no time": json.dumps(
        {"card": CARD.model_dump(), "choices": {"x": {"product": "rows", "milliseconds": {"rows": -1}}}}
    ),
    "another card": json.dumps({"card": {**CARD.model_dump(), "driver": "1"}, "choices": {}}),
    "huge": " " * (2 << 20),
    "binary": b"\xff\xfe\x00",
}


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE)
def test_a_file_that_is_not_sound_is_ignored_with_one_line(
    content: str | bytes, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = store_path(CARD)
    path.parent.mkdir(parents=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    assert chosen(CASE, CARD, ALL, CPU, Clock(published=2.0, rows=1.0, cudnn=3.0)).product == "rows"
    (warning,) = caplog.records
    assert str(path) in warning.getMessage()
    assert "\n" not in warning.getMessage()
    assert read_choices(CARD)[CASE.key].product == "rows"


@pytest.mark.usefixtures("gpu")
def test_a_cache_that_cannot_be_written_costs_a_measurement_only(cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache.write_text("a file in the way")
    clock = Clock(published=2.0, rows=1.0, cudnn=3.0)
    assert [chosen(CASE, CARD, ALL, CPU, clock).product for _ in range(2)] == ["rows", "rows"]
    assert clock.asked == 2
    assert "cannot be written" in caplog.text


class Told(World):
    """A worker that hears what worker 0 has said."""

    heard: typing.ClassVar[list[Any]] = []

    def gather(self, item: Any) -> list[Any]:
        if self.rank == 0:
            self.heard.append(item)
            return [item, item]
        return [self.heard.pop(0), item]


@pytest.mark.usefixtures("gpu")
def test_all_workers_multiply_alike() -> None:
    first, second = (
        choose_products(PLAIN, (SHAPE,), 3, torch.float32, Told(rank, 2, CPU), timer=clock)
        for rank, clock in enumerate([Clock(published=2.0, rows=1.0, cudnn=3.0), Clock()])
    )
    assert first == second
    assert first is not None
    assert first.of((SHAPE,)) == {SHAPE: "rows"}
    assert Told.heard == []


@pytest.mark.usefixtures("gpu")
def test_a_choice_stays_on_resume_unless_the_card_is_another(caplog: pytest.LogCaptureFixture) -> None:
    def choose_with(held: Any, **times: float) -> Chosen | None:
        clock = Clock(**times)
        return choose_products(PLAIN, (SHAPE,), 3, torch.float32, World(device=CPU), held, clock)

    first = choose_with(None, published=2.0, rows=1.0, cudnn=3.0)
    assert first is not None
    store_path(CARD).unlink()
    held = json.loads(json.dumps(first.model_dump()))
    assert choose_with(held) == first  # nothing is timed
    assert caplog.records == []
    held["card"]["driver"] = "1"
    again = choose_with(held, published=2.0, rows=3.0, cudnn=1.0)
    assert again is not None
    assert again.of((SHAPE,)) == {SHAPE: "cudnn"}
    assert "chosen anew" in caplog.text
    for odd in ("x", {"card": 3}, {**held, "products": {"x": "rm -rf"}}, {**held, "products": [["x", "rows"]]}):
        assert read_chosen(odd) is None


@pytest.mark.usefixtures("gpu")
def test_a_fixed_product_is_checked_and_not_timed(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fixed = TrainConfig(kernels="rows")
    found = choose_products(fixed, (SHAPE,), 3, torch.float32, World(device=CPU), timer=Clock())
    assert found is not None
    assert found.of((SHAPE,)) == {SHAPE: "rows"}
    monkeypatch.setitem(products.PRODUCTS, "rows", PRODUCTS["rows"]._replace(multiply=failing))
    found = choose_products(fixed, (SHAPE,), 3, torch.float32, World(device=CPU), timer=Clock())
    assert found is not None
    assert found.of((SHAPE,)) == {SHAPE: "published"}
    assert len(caplog.records) == 1


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize("name", products.OF_TRITON)
def test_triton_where_it_cannot_be_used_is_refused(monkeypatch: pytest.MonkeyPatch, name: Name) -> None:
    monkeypatch.setattr(choose, "triton_fault", lambda _: "it is not installed")
    with pytest.raises(ConfigError, match=rf"train.kernels={name}: .*not installed.*pip install 'cdn-tune\[gpu\]'"):
        choose_products(TrainConfig(kernels=name), (SHAPE,), 3, torch.float32, World(device=CPU))


@pytest.mark.parametrize("name", PRODUCTS)
def test_without_a_gpu_only_auto_is_taken(name: str) -> None:
    world = World(device=CPU)
    with pytest.raises(ConfigError, match=f"train.kernels={name}: .*there is none here; set train.kernels=auto"):
        choose_products(TrainConfig(kernels=name), (SHAPE,), 3, torch.float32, world)
    assert choose_products(PLAIN, (SHAPE,), 3, torch.float32, world) is None


@pytest.mark.usefixtures("gpu")
def test_a_training_records_its_choice_and_goes_on_with_it(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(published=2.0, rows=1.0, cudnn=3.0)
    monkeypatch.setattr(loop, "choose_products", partial(choose_products, timer=clock))
    experiment, folder = tiny(**{"train.epochs": 2}), tmp_path / "run"
    folder.mkdir()
    (folder / MANIFEST).write_text(json.dumps({"kind": "train", "seed": 0}))
    train_in(experiment, folder, ignore)
    products = {"C8 K3 E2 S8": "rows"}
    last, best = (read_checkpoint(folder / name)["kernels"] for name in (LAST, BEST))
    assert last == best == json.loads((folder / MANIFEST).read_text())["kernels"]
    assert last["products"] == products
    store_path(CARD).unlink()
    train_in(experiment, folder, ignore)
    assert clock.asked == 1
    model = build_model(experiment)
    (shape,) = model.mixed_shapes
    use_held(model, load_checkpoint(folder / BEST).kernels, torch.float32, CPU)
    asked: list[str] = []

    def convolve(x: Tensor, *arguments: Any) -> Tensor:
        asked.append(arguments[4])
        return x

    monkeypatch.setattr(dynamic_conv, "convolve", convolve)
    layer = next(layer for layer in model.modules() if isinstance(layer, dynamic_conv.DynamicConv2d))
    for size in (shape.size, shape.size + 1):
        layer(torch.zeros(1, 8, size, size), torch.zeros(1, 8))
    assert asked == ["rows", "published"]


def test_a_training_on_a_cpu_records_none(tiny: Tiny, tmp_path: Path) -> None:
    train_in(tiny(**{"train.epochs": 1}), tmp_path, ignore)
    assert "kernels" not in read_checkpoint(tmp_path / LAST)


def test_the_driver_is_read_from_its_own_words(tmp_path: Path) -> None:
    file = tmp_path / "version"
    file.write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.95.05  Tue Sep 23 2025\nGCC version: 13\n")
    assert cards._driver(file) == "580.95.05"
    assert cards._driver(tmp_path / "absent") == "none"


def test_a_card_is_all_that_times_depend_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "A card")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    found = this_card(torch.device("cuda"))
    assert (found.name, found.capability, found.torch) == ("A card", "9.0", torch.__version__)
    assert found == this_card(torch.device("cuda"))
    assert found.digest != found.model_copy(update={"source": "another"}).digest
