"""AArch64 code: multiply-adds by lane without spills, near the core's throughput; dot products of bytes.

The throughput is that of LLVM's own model of the core, through `llvm-mca`.
"""

from __future__ import annotations

import re
import shutil
import subprocess

import numpy as np
import pytest
from assembly_helpers import count, main_loop
from graph_helpers import Builder
from loop_helpers import matmul

from tilewright import api
from tilewright.codegen.llvm import to_assembly
from tilewright.codegen.module import CallSite, ModulePlan, Place, emit_module
from tilewright.core.dtypes import F32, I8, I32, U8, DType
from tilewright.graph.ir import Graph
from tilewright.loop.builder import KernelBuilder, cast, const
from tilewright.loop.ir import Fma, Kernel, Load, Param, Store, dense
from tilewright.loop.passes.specialize_tails import specialize_tails
from tilewright.pipeline import build
from tilewright.schedule.target import load_target
from tilewright.schedule.templates import product
from tilewright.schedule.trace import Step, apply, step

needs_mca = pytest.mark.skipif(
    shutil.which("llvm-mca") is None, reason="llvm-mca is not installed (apt: llvm)"
)
CORES = ["cortex-a53", "cortex-a72", "cortex-a76", "armv8.6-i8mm"]


def assembly(kernel: Kernel, target: str) -> str:
    places = tuple(Place("input", 0, i) for i in range(len(kernel.params)))
    plan = ModulePlan("m", load_target(target), (kernel,), (CallSite("k", places, 1, False),), 0)
    text = emit_module(plan, with_weights=False).replace("@k(", f"@{kernel.name}(")
    return to_assembly(text, load_target(target))


def convolution(dtype: DType, inputs: int, outputs: int, size: int, window: int) -> Graph:
    """One convolution with a window of odd size on a square map, as a model."""
    b, edge = Builder(), window // 2
    b.input("x", (1, inputs, size, size), dtype)
    weight = np.ones((outputs, inputs, window, window), "f4" if dtype is F32 else "i1")
    b.graph.add_constant("w", weight)
    b.conv("y", "x", "w", pads=(edge,) * 4)
    return b.done("y")


def model_assembly(graph: Graph, target: str) -> str:
    return api.assembly(build(graph, target, winograd=False))


@pytest.mark.parametrize("core", CORES)
@pytest.mark.parametrize("shape", [(64, 64, 64), (49, 128, 96)])
def test_matmul_keeps_its_tile_in_registers(core: str, shape: tuple[int, int, int]) -> None:
    kernel = matmul(*shape)
    finished = specialize_tails(apply(kernel, product(kernel, load_target(core))))
    loop = main_loop(assembly(finished, core), "fmla")
    assert sum("fmla" in x for x in loop) >= 20
    assert not [x for x in loop if "sp" in re.findall(r"[a-z]+", x)], "the main loop spills"


@needs_mca
@pytest.mark.parametrize("case", ["matmul", "1x1", "3x3"])
def test_products_reach_the_core_s_multiply_adds(case: str) -> None:
    """At least 90 % of what independent multiply-adds reach in LLVM's model of the Cortex-A76."""
    if case == "matmul":
        kernel = matmul(64, 64, 64)
        finished = specialize_tails(apply(kernel, product(kernel, load_target("cortex-a76"))))
        text = assembly(finished, "cortex-a76")
    else:
        text = model_assembly(convolution(F32, 64, 64, 14, int(case[0])), "cortex-a76")
    loop = main_loop(text, "fmla")
    alone = [f"fmla v{i}.4s, v30.4s, v31.4s" for i in range(24)]
    assert cycles(alone) / 24 >= 0.9 * cycles(loop) / count(loop, "fmla")
    assert sum(".s[" in x for x in loop) >= 16, "multiply-adds by lane"


@needs_mca
def test_byte_products_reach_the_core_s_dot_products() -> None:
    loop = main_loop(model_assembly(convolution(I8, 64, 64, 14, 1), "cortex-a76"), "sdot")
    alone = [f"sdot v{i}.4s, v30.16b, v31.4b[0]" for i in range(24)]
    assert cycles(alone) / 24 >= 0.9 * cycles(loop) / count(loop, "sdot")
    assert not [x for x in loop if "sp" in re.findall(r"[a-z]+", x)], "the main loop spills"


def cycles(lines: list[str]) -> float:
    """Cycles per iteration of a loop body in the steady state."""
    done = subprocess.run(
        ["llvm-mca", "-mtriple=aarch64", "-mcpu=cortex-a76", "-iterations=200"],
        input="\n".join(x for x in lines if not x.endswith(":")), text=True, capture_output=True, check=True,
    )  # fmt: skip
    found = re.search(r"Total Cycles:\s+(\d+)", done.stdout)
    assert found is not None
    return int(found.group(1)) / 200


def test_dot_products_by_lane() -> None:
    """C[m, n] += A[m, k] * B[n, k] in bytes, with n along the lanes, is `sdot`."""
    b = KernelBuilder()
    with b.loop("m", 4) as i, b.loop("n", 16) as j:
        acc = b.local("acc", I32)
        b.set(acc, const(0, I32))
        with b.loop("k", 32) as k:
            x, y = Load("A", (i, k), I8), Load("B", (j, k), I8)
            b.set(acc, Fma(cast(x, I32), cast(y, I32), acc()))
        b.stmt(Store("C", (i, j), acc()))
    params = (
        Param(dense("A", I8, (4, 32)), "in"),
        Param(dense("B", I8, (16, 32), "const"), "const"),
        Param(dense("C", I32, (4, 16)), "out"),
    )
    trace: list[Step] = [
        step("pack", "B", [[1, 4, "outer"], [0, 0, "whole"], [1, 4, "inner"]]),
        step("split", "n", 4, "no", "nl"), step("split", "k", 4, "ko", "ki"),
        step("stage", ["no", "nl"]), step("reorder", ["ko", "no", "nl", "ki"]),
        step("tensorize", "ki"), step("unroll", "no"), step("vectorize", "nl"),
    ]  # fmt: skip
    text = assembly(specialize_tails(apply(Kernel("k", params, b.finish()), trace)), "cortex-a76")
    loop = main_loop(text, "sdot")
    assert sum("sdot" in x for x in loop) == 4
    assert "smull" not in text and "smlal" not in text


@pytest.mark.parametrize(
    ("core", "dtype", "instruction"),
    [
        ("cortex-a76", I8, "sdot"),
        ("cortex-a76", U8, None),  # bytes of different signs: only with i8mm
        ("cortex-a72", I8, None),
    ],
)
def test_convolutions_use_what_the_core_has(
    core: str, dtype: DType, instruction: str | None
) -> None:
    text = model_assembly(convolution(dtype, 32, 32, 14, 1), core)
    found = set(re.findall(r"\t([us]{1,2}dot)\t.*\.4b\[\d\]", text))
    assert found == ({instruction} if instruction else set())


@pytest.mark.parametrize("core", CORES)
@pytest.mark.parametrize("channels", [1, 3, 6, 7])
def test_no_masks_where_there_are_none(core: str, channels: int) -> None:
    """Odd numbers of channels come in smaller powers of two, not as masked accesses."""
    graph = convolution(F32, channels, channels, 9, 3)
    text = emit_module(build(graph, core).plan(), with_weights=False)
    assert "llvm.masked" not in text
    assert not re.search(r"(load|store) <(3|5|6|7|9|10|11|12|13) x ", text)
