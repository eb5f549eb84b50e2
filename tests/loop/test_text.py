"""The text form parses back to a structurally equal kernel."""

from __future__ import annotations

import pytest
from loop_helpers import matmul

from tilewright.core.dtypes import BOOL, F32, I32, I64
from tilewright.core.index import Ix, imin, ix
from tilewright.errors import IRError
from tilewright.loop.ir import (
    Binary,
    Bitcast,
    Cast,
    Const,
    For,
    FromIndex,
    If,
    Kernel,
    Let,
    Load,
    Param,
    Ref,
    Select,
    Store,
    Unary,
    dense,
)  # fmt: skip
from tilewright.loop.parse import parse
from tilewright.loop.text import to_text
from tilewright.schedule.target import load_target
from tilewright.schedule.templates import product
from tilewright.schedule.trace import apply


def test_scheduled_matmul_round_trip() -> None:
    kernel = matmul(15, 40, 24)
    scheduled = apply(kernel, product(kernel, load_target("x86-64-v4")))
    assert parse(to_text(kernel)) == kernel
    assert parse(to_text(scheduled)) == scheduled


def test_every_statement_and_expression_round_trip() -> None:
    i = ix("i")
    x = Load("x", (i, Ix(2)), F32)
    body = (
        For(
            "i",
            Ix(4),
            (
                Let("at", Cast(x, I64), (0, 3)),
                Let("v", Select(Binary("lt", x, Const(-0.5, F32)), Unary("exp", x), x)),
                If(
                    Binary("and", Const(True, BOOL), Unary("isnan", x)),
                    (Store("y", (ix("at"),), Ref("v", F32)),),
                    (Store("y", (i,), Const(float("inf"), F32)),),
                ),
                For("j", imin(2, 7 - i * 3), (Store("y", (i,), Binary("max", x, x)),), "unroll"),
                Store("y", (i,), Bitcast(FromIndex(i * -2 + 7, I32), F32)),
            ),
            "parallel",
        ),
    )
    kernel = Kernel(
        "k", (Param(dense("x", F32, (4, 3)), "in"), Param(dense("y", F32, (4,)), "out")), body
    )
    assert parse(to_text(kernel)) == kernel


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "no kernel"),
        ("kernel k(x: f99[1])\n", "unknown element type"),
        ("kernel k(x: f32[1])\n  x[0] = foo(1.0:f32)\n", "unknown function"),
        ("kernel k(x: f32[1])\n  x[0] = 1.0:f32 1\n", "unexpected"),
        ("kernel k(x: f32[1])\n      x[0] = 1.0:f32\n", "indentation"),
    ],
)
def test_broken_text_is_an_error(text: str, why: str) -> None:
    with pytest.raises(IRError, match=why):
        parse(text)
