"""The interpreter: meaning of the loop IR, and its checks."""

from __future__ import annotations

import numpy as np
import pytest
from loop_helpers import integers, interpret, matmul

from tilewright.core.dtypes import F32, I32, U32
from tilewright.core.index import Ix, ix
from tilewright.errors import IRError
from tilewright.loop.ir import Alloc, Binary, Const, For, Kernel, Load, Param, Store, dense


@pytest.mark.parametrize("dtype", [F32, I32, U32], ids=str)
def test_matmul(dtype: object) -> None:
    kernel = matmul(3, 5, 4, dtype)  # type: ignore[arg-type]
    arrays = integers(kernel)
    assert np.array_equal(interpret(kernel, arrays)["C"], arrays["A"] @ arrays["B"])


def test_access_outside_a_buffer_is_an_error() -> None:
    body = (For("i", Ix(5), (Store("y", (ix("i"),), Const(1.0, F32)),)),)
    kernel = Kernel("k", (Param(dense("y", F32, (4,)), "out"),), body)
    with pytest.raises(IRError, match=r"y\[4\] is outside its shape \[4\]"):
        interpret(kernel, integers(kernel))


def test_scratch_must_be_written_before_it_is_read() -> None:
    body = (
        Alloc(dense("t", F32, (2,), "local")),
        Store("t", (Ix(0),), Const(1.0, F32)),
        Store("y", (Ix(0),), Load("t", (Ix(1),), F32)),
    )
    kernel = Kernel("k", (Param(dense("y", F32, (1,)), "out"),), body)
    with pytest.raises(IRError, match="read before it is written"):
        interpret(kernel, integers(kernel))


@pytest.mark.parametrize(
    ("op", "a", "b", "want"),
    [
        ("div", -7, 2, -3), ("mod", -7, 2, -1), ("div", 7, -2, -3), ("div", 5, 0, 0), ("mod", 5, 0, 0),
        ("shl", 3, 2, 12), ("shr", -8, 1, -4), ("min", -1, 2, -1), ("xor", 6, 3, 5),
    ],
)  # fmt: skip
def test_integer_semantics(op: str, a: int, b: int, want: int) -> None:
    value = Binary(op, Const(a, I32), Const(b, I32))  # type: ignore[arg-type]
    kernel = Kernel("k", (Param(dense("y", I32, (1,)), "out"),), (Store("y", (Ix(0),), value),))
    assert interpret(kernel, integers(kernel))["y"][0] == want
