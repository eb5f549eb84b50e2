"""Schedules for microcontrollers: right for any shape, dot products wherever the memory allows them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from loop_helpers import interpret, native

from tilewright.core.dtypes import I8, I32
from tilewright.loop.builder import KernelBuilder, cast, const
from tilewright.loop.ir import Dot, Fma, Kernel, Load, Param, Store, dense
from tilewright.loop.passes.specialize_tails import specialize_tails
from tilewright.loop.rewrite import children, expressions, simplify_kernel
from tilewright.loop.verify import verify
from tilewright.schedule.target import Board, load_target
from tilewright.schedule.templates import mcu
from tilewright.schedule.trace import apply

HOST = load_target("x86-64-v3")
#: A board whose dot products this machine spells out.
BOARD = replace(HOST, name="board", vector_bytes=1, board=Board(1 << 20, 1 << 18), dot=("smlad",))


def convolution(h: int, w: int, ci: int, co: int, k: int, stride: int, depthwise: bool) -> Kernel:
    """An integer convolution as the operator files write it; x is [h, w, ci], y is [oh, ow, co]."""
    oh, ow = (h - k) // stride + 1, (w - k) // stride + 1
    b = KernelBuilder()
    with b.loop("oh", oh) as i, b.loop("ow", ow) as j, b.loop("c" if depthwise else "co", co) as c:
        acc = b.local("acc", I32)
        b.set(acc, const(0, I32))
        with (
            b.loop("kh", k) as kh,
            b.loop("kw", k) as kw,
            b.loop("ci", 1 if depthwise else ci) as d,
        ):
            x = Load("x", b.simplify((i * stride + kh, j * stride + kw, c if depthwise else d)), I8)
            y = Load("w", b.simplify((c, d, kh, kw)), I8)
            b.set(acc, Fma(cast(x, I32), cast(y, I32), acc()))
        b.stmt(Store("y", b.simplify((i, j, c)), acc()))
    params = (
        Param(dense("x", I8, (h, w, ci)), "in"),
        Param(dense("w", I8, (co, 1 if depthwise else ci, k, k), "const"), "const"),
        Param(dense("y", I32, (oh, ow, co)), "out"),
    )
    return simplify_kernel(Kernel("convolution", params, b.finish()))


def expected(x: np.ndarray, w: np.ndarray, stride: int, depthwise: bool) -> np.ndarray:
    k = w.shape[2]
    windows = np.lib.stride_tricks.sliding_window_view(x.astype(np.int32), (k, k), (0, 1))
    windows = windows[::stride, ::stride]
    if depthwise:
        return np.einsum("ijchw,chw->ijc", windows, w[:, 0].astype(np.int32))
    return np.einsum("ijchw,ochw->ijo", windows, w.astype(np.int32))


@settings(deadline=None, max_examples=40)
@given(
    size=st.tuples(st.integers(3, 7), st.integers(3, 8)), ci=st.sampled_from([1, 2, 3, 4, 8, 12, 16]),
    co=st.integers(1, 7), k=st.sampled_from([1, 2, 3]), stride=st.sampled_from([1, 2]),
    helium=st.booleans(), depthwise=st.booleans(),
)  # fmt: skip
def test_schedules_keep_the_result(
    size: tuple[int, int], ci: int, co: int, k: int, stride: int, helium: bool, depthwise: bool
) -> None:
    ci = co if depthwise else ci
    kernel = convolution(*size, ci, co, k, stride, depthwise)
    target = replace(BOARD, dot=("mve", "smlad")) if helium else BOARD
    trace = (
        mcu.depthwise(kernel, target)
        if depthwise
        else mcu.dot_product(kernel, target, ["oh", "ow"], "co", ["kh", "kw", "ci"])
    )
    finished = specialize_tails(apply(kernel, trace))
    verify(finished)
    rng = np.random.default_rng(0)
    arrays = {p.buffer.name: rng.integers(-128, 128, p.buffer.shape).astype(np.int8)
              for p in kernel.params if p.role != "out"}  # fmt: skip
    arrays["y"] = np.zeros(kernel.params[-1].buffer.shape, np.int32)
    want = expected(arrays["x"], arrays["w"], stride, depthwise)
    assert np.array_equal(interpret(finished, arrays)["y"], want)
    assert np.array_equal(native(finished, arrays, HOST)["y"], want)


@pytest.mark.parametrize(
    ("ci", "k", "width"), [(16, 3, 16), (8, 1, 8), (4, 3, 4), (3, 3, 0), (1, 4, 4)]
)
def test_dot_products_as_wide_as_the_memory_allows(ci: int, k: int, width: int) -> None:
    """Channels side by side, or the taps of a row where there is one channel."""
    kernel = convolution(9, 9, ci, 4, k, 1, False)
    target = replace(BOARD, dot=("mve", "smlad"))
    trace = mcu.dot_product(kernel, target, ["oh", "ow"], "co", ["kh", "kw", "ci"])
    stack = list(expressions(apply(kernel, trace).body))
    found = set()
    while stack:
        e = stack.pop()
        found |= {e.extent} if isinstance(e, Dot) else set()
        stack.extend(children(e))
    assert found == ({width} if width else set())
