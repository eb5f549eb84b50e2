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
    Expr,
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


def test_what_is_shared_is_printed_once_and_parsed_as_one_object() -> None:
    x = Load("x", (ix("i"),), F32)
    e: Expr = Unary("exp", x)
    for _ in range(60):  # written out, this would have 2**60 terms
        e = Binary("add", e, e)
    body = (
        For("i", ix(4), (Store("y", (ix("i"),), Binary("mod", e, e)), Store("y", (ix("i"),), x))),
    )
    params = (Param(dense("x", F32, (4,)), "in"), Param(dense("y", F32, (4,)), "out"))
    kernel = Kernel("k", params, body)
    text = to_text(kernel)
    assert len(text.splitlines()) == 65 and "%1 = (%0 + %0)" in text and "(%60 % %60)" in text
    loop = parse(text).body[0]
    assert isinstance(loop, For) and isinstance(loop.body[0], Store)
    value = loop.body[0].value
    for _ in range(61):
        assert isinstance(value, Binary) and value.a is value.b
        value = value.a
    assert value == Unary("exp", x)
    assert to_text(parse(text)) == text


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        ("  y[0] = %0", "nothing defines `%0`"),
        ("  %0 = exp(1.0:f32)", "no statement follows"),
        ("  %0 = exp(1.0:f32)\n  y[0] = %0\n  y[1] = %0", "nothing defines `%0`"),
        ("  %a = exp(1.0:f32)\n  y[0] = 1.0:f32", "expected a number"),
    ],
)
def test_names_hold_for_one_statement(lines: str, says: str) -> None:
    with pytest.raises(IRError, match=says):
        parse(f"kernel k(out y: f32[2])\n{lines}\n")
