"""Products of bytes two rows by two columns at a time: which layers use them, that they are right, and main loops
without spills."""

from __future__ import annotations

import importlib.util
import math
import re
import shutil
from itertools import product

import numpy as np
import pytest
from assembly_helpers import count, main_loop
from graph_helpers import Builder
from loop_helpers import integers, interpret, native
from tune_helpers import kernel_of

from tilewright import api
from tilewright.codegen.kernel import emit_kernel
from tilewright.core.dtypes import F32, I8, U8, DType
from tilewright.errors import ScheduleError
from tilewright.graph.ir import Graph
from tilewright.loop.builder import KernelBuilder
from tilewright.loop.ir import Kernel, Load, Param, Store, dense
from tilewright.pipeline import build, resolve_target
from tilewright.registry import operator
from tilewright.schedule.target import load_target
from tilewright.schedule.trace import apply, step
from tilewright.tune.library import default_trace, space_of

TARGET = load_target("armv8.6-i8mm")
#: types of pixels and weights, input and output channels, height, width, window -> the instruction
CASES = [
    (I8, I8, 64, 64, 14, 14, 3, "smmla"),
    (I8, I8, 64, 48, 9, 14, 1, "smmla"),  # pairs along the width
    (I8, I8, 16, 24, 10, 7, 3, "smmla"),  # and along the height
    (U8, I8, 32, 10, 12, 12, 3, "usmmla"),
    (U8, U8, 8, 6, 4, 4, 1, "ummla"),
    (I8, U8, 16, 16, 4, 4, 1, "usdot"),  # unsigned rows only
    (I8, I8, 16, 16, 7, 5, 1, "sdot"),  # no pairs of pixels
    (I8, I8, 16, 13, 6, 6, 1, "sdot"),  # no pairs of channels
    (I8, I8, 12, 16, 6, 6, 1, "sdot"),  # no runs of eight products
]


def convolution(
    x: DType, w: DType, ci: int, co: int, height: int, width: int, window: int
) -> Graph:
    b, edge, rng = Builder(), window // 2, np.random.default_rng(co)
    b.input("x", (1, ci, height, width), x)
    low, kind = (-128, np.int8) if w is I8 else (0, np.uint8)
    weight = rng.integers(low, low + 256, (co, ci, window, window)).astype(kind)
    b.graph.add_constant("w", weight)
    b.conv("y", "x", "w", pads=(edge,) * 4)
    return b.done("y")


def products(text: str) -> set[str]:
    return set(re.findall(r"\t([us]+(?:mmla|dot))\tv", text))


@pytest.mark.parametrize("case", CASES, ids=lambda c: "-".join(str(x) for x in c))
def test_layers_use_it_and_are_right(
    case: tuple[DType, DType, int, int, int, int, int, str],
) -> None:
    *shape, instruction = case
    graph = convolution(*shape)  # type: ignore[arg-type]
    program = build(graph, "armv8.6-i8mm", winograd=False)
    assert products(api.assembly(program)) == {instruction}
    if not shutil.which("qemu-aarch64") or not (
        shutil.which("aarch64-linux-gnu-gcc") or importlib.util.find_spec("ziglang")
    ):
        pytest.skip("qemu-aarch64 or a cross compiler is not installed")
    low, kind = (-128, np.int8) if case[0] is I8 else (0, np.uint8)
    x = np.random.default_rng(1).integers(low, low + 256, graph.types["x"].shape).astype(kind)
    x[0, :, 0] = low  # products at the end of their range
    here = api.compile(graph, winograd=False)
    there = api.remote(program)
    np.testing.assert_array_equal(there(x)[0], here(x)[0])
    there.close()


@pytest.mark.parametrize("window", [1, 3])
def test_main_loops_do_not_spill(window: int) -> None:
    text = api.assembly(build(convolution(I8, I8, 64, 64, 14, 14, window), "armv8.6-i8mm"))
    lines = main_loop(text, "smmla")
    assert count(lines, "smmla") >= 16
    assert not [x for x in lines if re.search(r"\bsp\b", x)], "the main loop spills"
    assert len(lines) <= 2 * count(lines, "smmla")


def test_every_point_of_the_space_means_the_same() -> None:
    """In the interpreter of loops, which knows no instruction; and the default is a point."""
    _, raw = kernel_of(convolution(I8, I8, 8, 4, 4, 4, 1), "conv2d", TARGET)
    op = operator("conv2d")
    space = space_of(op, raw, TARGET)
    assert space is not None and space.family == "byte-matrix"
    assert space.trace(space.default) == default_trace(op, raw, TARGET)
    arrays = integers(raw)
    wanted = interpret(raw, arrays)
    made = 0
    for values in product(*space.params.values()):
        choice = dict(zip(space.params, values, strict=True))
        try:
            scheduled = apply(raw, space.trace(choice))
        except ScheduleError:
            assert space.cost(choice) == math.inf
            continue
        got = interpret(scheduled, arrays)
        for p in raw.params:
            if p.role == "out":
                np.testing.assert_array_equal(got[p.buffer.name], wanted[p.buffer.name])
        made += 1
    assert made >= 10


def test_runs_of_lanes_are_read_and_written_together() -> None:
    """A fused loop whose lanes come in twos: transposed pairs, on every target the same."""
    b = KernelBuilder()
    with b.loop("i", 4) as i, b.loop("j", 6) as j, b.loop("p", 2) as p, b.loop("q", 4) as q:
        b.stmt(Store("y", (i * 2 + p, j * 4 + q), Load("x", (j * 2 + p, i * 4 + q), F32)))
    params = (Param(dense("x", F32, (12, 16)), "in"), Param(dense("y", F32, (8, 24)), "out"))
    kernel = Kernel("k", params, b.finish())
    fused = apply(kernel, [step("fuse", "p", "q", "f"), step("vectorize", "f")])
    for target in ("host", "x86-64-v3"):
        arrays = integers(kernel)
        text, _ = emit_kernel(fused, resolve_target(target))
        assert "load <4 x float>" in text and "store <4 x float>" in text
        got = native(fused, arrays, resolve_target(target))
        np.testing.assert_array_equal(got["y"], interpret(kernel, arrays)["y"])
