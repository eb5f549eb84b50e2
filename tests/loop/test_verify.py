"""The verifier: what it proves and what it refuses."""

from __future__ import annotations

import pytest
from loop_helpers import matmul

from tilewright.core.dtypes import F32, I32, I64
from tilewright.core.index import Ix, imin, ix
from tilewright.errors import IRError
from tilewright.loop.ir import (
    Binary,
    Bitcast,
    Block,
    Cast,
    Const,
    For,
    FromIndex,
    Kernel,
    Let,
    Param,
    Store,
    Unary,
    dense,
)
from tilewright.loop.verify import prove_bounds, verify
from tilewright.schedule.target import load_target
from tilewright.schedule.templates import product
from tilewright.schedule.trace import apply

ONE = Const(1.0, F32)


def kernel(body: Block, n: int = 50) -> Kernel:
    params = (Param(dense("x", F32, (4,)), "in"), Param(dense("y", F32, (n,)), "out"))
    return Kernel("k", params, body)


@pytest.mark.parametrize("shape", [(15, 40, 24), (1, 1, 1), (7, 33, 5), (64, 64, 64)])
@pytest.mark.parametrize("target", ["x86-64-v3", "x86-64-v4"])
def test_default_schedules_are_proved(shape: tuple[int, int, int], target: str) -> None:
    raw = matmul(*shape)
    verify(raw)
    verify(apply(raw, product(raw, load_target(target))))


def test_split_remainder_is_proved() -> None:
    inner = For("ii", imin(14, 50 - ix("io") * 14), (Store("y", (ix("io") * 14 + ix("ii"),), ONE),))
    assert prove_bounds(kernel((For("io", Ix(4), (inner,)),))) == []
    assert prove_bounds(kernel((For("io", Ix(4), (inner,)),), n=49)) != []


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ((For("i", Ix(51), (Store("y", (ix("i"),), ONE),)),), "cannot prove"),
        ((Store("y", (ix("i"),), ONE),), "unbound"),
        ((Store("z", (Ix(0),), ONE),), "not visible"),
        ((Store("y", (Ix(0), Ix(0)), ONE),), "rank"),
        ((Store("y", (Ix(0),), Const(1, I32)),), "stored"),
        ((Store("y", (Ix(0),), Binary("add", ONE, Const(1, I32))),), "add"),
        ((For("i", Ix(2), (For("i", Ix(2), ()),)),), "shadows"),
        ((For("i", Ix(2), (For("j", Ix(2), (), "parallel"),), "parallel"),), "cannot share out"),
        ((For("i", Ix(2), (For("j", ix("i") + 1, (), "parallel"),)),), "cannot share out"),
        ((For("i", Ix(2), (For("j", Ix(2), (), "parallel"),), "unroll"),), "cannot share out"),
        ((For("i", Ix(2), (), "parallel"), For("j", Ix(3), (), "parallel")), "several extents"),
        ((For("i", Ix(2), (), "parallel"), Store("y", (Ix(0),), ONE)), "every thread"),
        ((For("i", Ix(2), (For("j", Ix(2), ()),), "vector"),), "innermost"),
        ((Store("x", (Ix(0),), ONE),), "input"),
        ((Let("a", ONE, (0, 1)),), "not i64"),
        ((Store("y", (Ix(0),), FromIndex(ix("q"), F32)),), "unbound"),
        ((Store("y", (Ix(0),), Cast(Unary("exp", Const(1, I32)), F32)),), "exp"),
        ((Store("y", (Ix(0),), Bitcast(Const(1, I64), F32)),), "bitcast"),
    ],
)
def test_malformed_kernels_are_refused(body: Block, why: str) -> None:
    with pytest.raises(IRError, match=why):
        verify(kernel(body))
