"""Generated code against the interpreter, on every target this machine can run."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from loop_helpers import integers, interpret, matmul, native

from tilewright.codegen.kernel import emit_kernel
from tilewright.codegen.lanes import lanes_are_private
from tilewright.codegen.llvm import runs_here, to_assembly
from tilewright.codegen.module import CallSite, ModulePlan, Place, emit_module
from tilewright.core.dtypes import F32, I32, I64, U8, DType
from tilewright.core.index import Ix, ix
from tilewright.errors import IRError
from tilewright.loop.builder import const
from tilewright.loop.ir import (
    Alloc,
    Binary,
    Block,
    Cast,
    For,
    FromIndex,
    Kernel,
    Load,
    Param,
    Select,
    Store,
    Unary,
    dense,
)  # fmt: skip
from tilewright.loop.passes.specialize_tails import specialize_tails
from tilewright.schedule.target import Target, load_target, target_names
from tilewright.schedule.templates import injective, product
from tilewright.schedule.trace import apply

TARGETS = [t for t in map(load_target, target_names()) if runs_here(t)]
targets = pytest.mark.parametrize("target", TARGETS, ids=lambda t: t.name)


@targets
@settings(deadline=None, max_examples=25)
@given(m=st.integers(1, 20), n=st.integers(1, 70), k=st.integers(1, 20))
def test_matmul_is_bit_equal_to_the_interpreter(target: Target, m: int, n: int, k: int) -> None:
    kernel = matmul(m, n, k)
    finished = specialize_tails(apply(kernel, product(kernel, target)))
    arrays = integers(kernel)
    assert np.array_equal(native(finished, arrays, target)["C"], interpret(kernel, arrays)["C"])


def elementwise(value: object, n: int, dtype: DType, out: DType) -> Kernel:
    body: Block = (For("i", Ix(n), (Store("y", (ix("i"),), value),)),)  # type: ignore[arg-type]
    params = (Param(dense("x", dtype, (n,)), "in"), Param(dense("y", out, (n,)), "out"))
    return Kernel("k", params, body)


X, XI = Load("x", (ix("i"),), F32), Load("x", (ix("i"),), I32)


@targets
@pytest.mark.parametrize("n", [1, 3, 8, 16, 17, 40])
@pytest.mark.parametrize(
    ("value", "dtype", "out"),
    [
        (Binary("max", X, const(0.0)), F32, F32),
        (Unary("abs", X), F32, F32),
        (Unary("sign", X), F32, F32),
        (Unary("round", Binary("mul", X, const(0.3))), F32, F32),
        (Select(Binary("lt", X, const(1.0)), X, Unary("neg", X)), F32, F32),
        (Cast(X, I32), F32, I32),
        (Cast(XI, F32), I32, F32),
        (Cast(Binary("gt", XI, const(0, I32)), U8), I32, U8),
        (Binary("div", XI, const(3, I32)), I32, I32),
        (Binary("mod", XI, const(-4, I32)), I32, I32),
        (FromIndex(ix("i") * 3 + 1, I64), F32, I64),
        (FromIndex((ix("i") * 5) // 3 + ix("i") % 4, I32), F32, I32),
    ],
    ids=lambda v: (
        type(v).__name__ + getattr(v, "op", "") if not isinstance(v, int | DType) else str(v)
    ),
)
def test_elementwise(target: Target, n: int, value: object, dtype: DType, out: DType) -> None:
    kernel = elementwise(value, n, dtype, out)
    finished = specialize_tails(apply(kernel, injective(kernel, target)))
    arrays = integers(kernel)
    assert np.array_equal(native(finished, arrays, target)["y"], interpret(kernel, arrays)["y"])


@targets
def test_partial_vectors_do_not_touch_their_neighbours(target: Target) -> None:
    """A store of 11 of 16 lanes leaves the memory behind it alone."""
    value = Binary("add", X, const(1.0))
    inner = For("l", Ix(11), (Store("y", (ix("l"),), Load("x", (ix("l"),), F32)),), "vector")
    kernel = Kernel(
        "k", (Param(dense("x", F32, (11,)), "in"), Param(dense("y", F32, (16,)), "out")), (inner,)
    )
    arrays = integers(kernel)
    arrays["y"][:] = 7.0
    got = native(kernel, arrays, target)["y"]
    assert np.array_equal(got[:11], arrays["x"]) and (got[11:] == 7.0).all()
    assert value is not None


def test_accumulators_stay_in_registers() -> None:
    """The inner loop of the default tile holds no stack access."""
    for target in TARGETS:
        kernel = matmul(48, 192, 64)
        finished = specialize_tails(apply(kernel, product(kernel, target)))
        places = tuple(Place("input", 0, i) for i in range(3))
        plan = ModulePlan("m", target, (finished,), (CallSite("matmul", places, 1, False),), 0)
        text = to_assembly(emit_module(plan, with_weights=False), target)
        blocks = re.split(r"^\.?L\w+:", text, flags=re.M)
        hot = max(blocks, key=lambda b: b.count("vfmadd"))
        assert hot.count("vfmadd") >= 8
        assert not re.search(r"\((%rsp|%rbp)", hot), target.name


def test_ends_of_rows_are_not_blended() -> None:
    """12 columns in a vector of 16, or in the second one: lanes beyond hold nothing."""
    target = load_target("x86-64-v4")
    for columns in (12, 28):
        kernel = matmul(8, columns, 16)
        finished = specialize_tails(apply(kernel, product(kernel, target)))
        text, _ = emit_kernel(finished, target)
        splats = re.findall(r"shufflevector .* zeroinitializer", text)
        assert "fma.v16f32" in text and text.count("shufflevector") == len(splats)


def test_lanes_that_somebody_else_holds_are_not_private() -> None:
    """A vector of 12 may overwrite the last 4 lanes only if nobody reads or writes them."""
    size = Ix(12)

    def vector(var: str, extent: Ix, shift: int = 0) -> For:
        at = (ix("r"), ix(var) + shift)
        return For(var, extent, (Store("acc", at, const(0.0)),), "vector")

    def rows(*body: For) -> Block:
        return (For("r", Ix(3), body, "unroll"),)

    assert lanes_are_private("acc", rows(vector("l", size)))
    assert lanes_are_private("acc", rows(vector("l", Ix(16) - ix("r"))))
    assert not lanes_are_private("acc", rows(vector("l", size), vector("l", Ix(16))))
    assert not lanes_are_private("acc", rows(vector("l", size), vector("l", Ix(4), 12)))
    outer = For("k", Ix(2), rows(vector("l", Ix(16) - ix("k") * 4)))
    assert not lanes_are_private("acc", (outer,))


def test_scratch_that_would_overflow_the_stack_is_refused() -> None:
    body = (Alloc(dense("t", F32, (1 << 20,), "local")), Store("y", (Ix(0),), const(1.0)))
    kernel = Kernel("k", (Param(dense("y", F32, (1,)), "out"),), body)
    with pytest.raises(IRError, match="stack"):
        native(kernel, integers(kernel), TARGETS[0])
