"""The Triton kernels compile for a Hopper GPU, which takes none: no spills, and tensor cores that do not wait."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import re
import sys
from dataclasses import dataclass
from typing import Any

import pytest

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None or sys.platform != "linux", reason="Triton is not installed"
)

# Of the published Charades-STA model.
SIDE, CHANNELS, KERNEL, EXPERTS = 16, 512, 5, 8
SHAPES = {"SIDE": SIDE, "CHANNELS": CHANNELS, "KERNEL": KERNEL}
MIXED = {"INPUTS": CHANNELS, "EXPERTS": EXPERTS}
# What ptxas says where a tensor-core product of Hopper is waited for before the next one starts: C7510 and others.
SERIALISED = re.compile(r"\(C75\d\d\)|instructions are serialized")


@dataclass
class Compiled:
    """What became of a kernel."""

    registers: int
    spilled: int  # bytes
    shared: int  # bytes
    ptx: str
    log: str


def compiled(name: str, types: dict[str, str], constants: dict[str, Any], warps: int, stages: int = 3) -> Compiled:
    """Compiles a kernel for sm_90a; arguments that are neither pointers in `types` nor constants are integers."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from cdn_tune.model.kernels import triton_kernels

    if not hasattr(triton, "knobs"):
        pytest.skip("this Triton does not tell what ptxas says")
    kernel = getattr(triton_kernels, name)
    signature = {each: "constexpr" if each in constants else types.get(each, "i32") for each in kernel.arg_names}
    aligned = {
        (place,): [["tt.divisibility", 16]]
        for place, each in enumerate(kernel.arg_names)
        if each in types or each.endswith(("stride", "size"))
    }
    log = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(log):
        patch.setattr(triton.knobs.nvidia, "dump_ptxas_log", True)
        patch.setattr(triton.knobs.compilation, "always_compile", True)
        found = triton.compile(
            ASTSource(kernel, signature, constants, aligned),
            target=GPUTarget("cuda", 90, 32),
            options={"num_warps": warps, "num_stages": stages, "enable_fp_fusion": True},
        )
    text = log.getvalue()
    registers, spills = re.search(r"Used (\d+) registers", text), re.findall(r"(\d+) bytes spill", text)
    assert registers is not None, text
    return Compiled(int(registers[1]), sum(map(int, spills)), found.metadata.shared, found.asm["ptx"], text)


BF16, FP32 = "*bf16", "*fp32"
TILES = {"small": (64, 64, 64, 4, 3), "two shares": (128, 128, 64, 8, 3, 2), "wide": (128, 256, 64, 8, 3)}
EXACT = (128, 128, 32, 8, 3)
ENDING = dict.fromkeys(("bias", "added", "factors"), FP32)


def product(name: str, tile: tuple[int, ...], kind: str = BF16, out: str | None = None, **more: Any) -> Compiled:
    """Compiles a product as it is launched, of 16-bit operands or of exact float32."""
    from cdn_tune.model.kernels.triton_launch import Tile, product_meta

    meta = product_meta(Tile(*tile), exact=kind == FP32)
    warps, stages, _ = (meta.pop(option) for option in ("num_warps", "num_stages", "enable_fp_fusion"))
    if name == "convolve_kernel":
        meta |= {"SPLIT": Tile(*tile).split, "EPILOGUE": False, "RESIDUAL": False}
    out = out or (FP32 if Tile(*tile).split > 1 else kind)
    types = {"maps": kind, "kernels": kind, "grad": kind, "out": out, "listed": "*i32", **ENDING}
    return compiled(name, types, {**SHAPES, "LISTED": False, **meta, **more}, warps, stages)


@pytest.mark.parametrize("tile", TILES)
@pytest.mark.parametrize(("backward", "listed"), [(False, False), (True, False), (False, True)])
def test_the_product_keeps_tensor_cores_busy(tile: str, backward: bool, listed: bool) -> None:
    found = product("convolve_kernel", TILES[tile], BACKWARD=backward, LISTED=listed)
    assert found.spilled == 0
    assert "wgmma.mma_async" in found.ptx
    assert not SERIALISED.search(found.log), found.log


@pytest.mark.parametrize("tile", TILES)
def test_the_end_of_a_layer_finds_room_in_registers(tile: str) -> None:
    ends = {"out": FP32, "BACKWARD": False, "LISTED": True, "EPILOGUE": True, "RESIDUAL": True}
    found = product("convolve_kernel", TILES[tile][:5], **ends)
    assert found.spilled == 0
    assert "wgmma.mma_async" in found.ptx
    assert not SERIALISED.search(found.log), found.log


@pytest.mark.parametrize("kind", [BF16, FP32])
def test_the_gradient_before_it_does_not_spill(kind: str) -> None:
    from cdn_tune.model.kernels.triton_launch import GATE_META

    constants = {"CELLS": SIDE * SIDE, "CHANNELS": CHANNELS, "ROWS": GATE_META["ROWS"], "COLUMNS": GATE_META["COLUMNS"]}
    types = dict.fromkeys(("grad", "out", "factors", "gated", "sums"), FP32) | {"rounded": kind}
    assert compiled("gate_kernel", types, constants, GATE_META["num_warps"]).spilled == 0


@pytest.mark.parametrize("tile", ["small", "wide"])
@pytest.mark.parametrize("listed", [False, True])
def test_so_does_the_gradient_of_kernels(tile: str, listed: bool) -> None:
    found = product("kernels_gradient_kernel", TILES[tile], TURNS=SIDE * SIDE // TILES[tile][2], LISTED=listed)
    assert found.spilled == 0
    assert "wgmma.mma_async" in found.ptx
    assert not SERIALISED.search(found.log), found.log


def test_exact_products_are_made_of_those_of_bfloat16_without_spills() -> None:
    for name, more in (
        ("convolve_kernel", {"BACKWARD": False}),
        ("convolve_kernel", {"BACKWARD": True}),
        ("convolve_kernel", {"BACKWARD": False, "LISTED": True, "EPILOGUE": True, "RESIDUAL": True}),
        ("kernels_gradient_kernel", {"TURNS": SIDE * SIDE // EXACT[2]}),
    ):
        found = product(name, EXACT, FP32, **more)
        assert found.spilled == 0
        assert re.search(r"wgmma\.mma_async\S*\.bf16", found.ptx)


@pytest.mark.parametrize(("rows", "exact", "grad"), [(16, True, FP32), (32, True, FP32), (32, False, BF16)])
def test_the_gradient_of_the_mixture_does_not_spill(rows: int, exact: bool, grad: str) -> None:
    from cdn_tune.model.kernels.triton_launch import unmix_meta

    meta = unmix_meta(exact)
    warps, stages, _ = (meta.pop(option) for option in ("num_warps", "num_stages", "enable_fp_fusion"))
    types = dict.fromkeys(("weight", "mixture", "weight_grad", "mixture_grad"), FP32) | {"grad": grad}
    found = compiled("unmix_kernel", types, {**MIXED, "ROWS": rows, "PADDED": 16, "ADD": False, **meta}, warps, stages)
    assert found.spilled == 0


def test_mixing_leaves_room_for_other_programs() -> None:
    from cdn_tune.model.kernels.triton_launch import MIX_META

    types = {"weight": FP32, "mixture": FP32, "out": BF16}
    constants = {**MIXED, "PADDED": EXPERTS, "REVERSED": False, "BLOCK": MIX_META["BLOCK"]}
    found = compiled("mix_kernel", types, constants, MIX_META["num_warps"])
    assert found.spilled == 0
    assert found.registers <= 64  # of 65 536: four programs of 256 threads on a processor


def test_what_ptxas_says_of_products_that_wait_is_recognised() -> None:
    line = (
        "ptxas info    : (C7515) Potential Performance Loss: wgmma.mma_async instructions are serialized due to the "
        "presence of a loop that may not be entered in function 'convolve_kernel'"
    )
    assert SERIALISED.search(line)
    assert not SERIALISED.search("ptxas info    : Used 114 registers, used 1 barriers")
