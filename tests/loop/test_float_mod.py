"""Remainders of floats: bit for bit those of C's `fmod`, as compiled code."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tilewright.graph.ir import Graph, Node, type_of
from tilewright.pipeline import build
from tilewright.registry import operator
from tilewright.session import Session

RNG = np.random.default_rng(0)
KINDS = {
    "f16": (np.float16, np.uint16),
    "f32": (np.float32, np.uint32),
    "f64": (np.float64, np.uint64),
}


def compiled(x: Any, y: Any, constant: bool = False) -> Any:
    g = Graph("g", ["x"] if constant else ["x", "y"], ["z"])
    g.types = {"x": type_of(x), "y": type_of(y)}
    if constant:
        g.constants["y"] = y
    (g.types["z"],) = operator("mod").infer([type_of(x), type_of(y)], {})
    g.nodes = [Node("n", "mod", ("x", "y"), ("z",), {})]
    session = Session(build(g, "host"))
    session.set_inputs([x] if constant else [x, y])
    return session.run()[0]


def same(got: Any, x: Any, y: Any) -> None:
    with np.errstate(all="ignore"):
        want = np.fmod(x, y)
    assert (np.isnan(got) == np.isnan(want)).all()
    number = ~np.isnan(want)
    np.testing.assert_array_equal(got[number], want[number])
    np.testing.assert_array_equal(np.signbit(got[number]), np.signbit(want[number]))


def special(kind: Any) -> Any:
    info = np.finfo(kind)
    sizes = [
        0,
        1,
        1.5,
        3,
        7,
        info.max,
        info.tiny,
        info.smallest_subnormal,
        info.eps,
        np.inf,
        np.nan,
    ]
    return np.array([s * v for v in sizes for s in (1, -1)], kind)


@pytest.mark.parametrize("name", KINDS)
def test_every_exponent(name: str) -> None:
    """Operands of random bits have quotients of any size up to the largest over the smallest."""
    kind, bits = KINDS[name]
    shape = (2, 40_000)
    x, y = RNG.integers(0, np.iinfo(bits).max, shape, bits, endpoint=True).view(kind)
    same(compiled(x, y), x, y)
    # multiples of y and their neighbours, where a quotient rounds across a whole number
    with np.errstate(all="ignore"):
        near = (y * np.round(RNG.uniform(0, 2**12, y.size))).astype(kind)
        beside = [np.nextafter(near, kind(to)) for to in (0, np.inf)]
    for x in (near, *beside):
        same(compiled(x, y), x, y)


@pytest.mark.parametrize("name", KINDS)
def test_special_values(name: str) -> None:
    values = special(KINDS[name][0])
    x, y = (a.ravel() for a in np.meshgrid(values, values))
    same(compiled(x, y), x, y)


@pytest.mark.parametrize("divisor", [1.0, -0.75, 3e-41, 3e38, 0.0, np.inf, np.nan])
def test_literal_divisors(divisor: float) -> None:
    """They take as many steps as a quotient by them can need."""
    y = np.float32(divisor).reshape(())
    bits = RNG.integers(0, 2**32, 20_000, np.uint32).view(np.float32)
    x = np.concatenate([bits, special(np.float32)])
    same(compiled(x, y, constant=True), x, np.broadcast_to(y, x.shape))
