"""The verifier: what it proves and what it refuses."""

from __future__ import annotations

import pytest
from loop_helpers import matmul

from tilewright.core.dtypes import F32, I32
from tilewright.core.index import Ix, imin, ix
from tilewright.errors import IRError
from tilewright.loop.ir import Binary, Block, Const, For, Kernel, Param, Store, dense
from tilewright.loop.verify import prove_bounds, verify
from tilewright.schedule.target import load_target
from tilewright.schedule.templates import product
from tilewright.schedule.trace import apply

ONE = Const(1.0, F32)


def kernel(body: Block, n: int = 50) -> Kernel:
    return Kernel("k", (Param(dense("y", F32, (n,)), "out"),), body)


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
        ((For("i", Ix(2), (For("j", Ix(2), (), "parallel"),)),), "outermost"),
    ],
)
def test_malformed_kernels_are_refused(body: Block, why: str) -> None:
    with pytest.raises(IRError, match=why):
        verify(kernel(body))
