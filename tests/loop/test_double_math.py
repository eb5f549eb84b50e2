"""Vector math in f64: errors in units in the last place against 80-bit floats, and special values."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from tilewright.graph.ir import Graph, Node, type_of
from tilewright.loop.passes.double_math import MAX_ULP
from tilewright.pipeline import build
from tilewright.registry import operator
from tilewright.session import Session

RNG = np.random.default_rng(0)
Wide = np.longdouble
SPECIAL = np.array(
    [0.0, -0.0, np.inf, -np.inf, np.nan, 1, -1, 1e-310, 5e-324, 1e308, -1e308, 0.5, 2, 3]
)
NEAR = np.concatenate([RNG.uniform(-30, 30, 5000), RNG.standard_normal(5000) * 0.3])
EXACT: dict[str, tuple[Any, Any]] = {
    "exp": (np.concatenate([RNG.uniform(-700, 709, 5000), NEAR]), np.exp),
    "log": (np.concatenate([np.exp(RNG.uniform(-700, 700, 5000)), RNG.uniform(0.5, 2, 5000)]), np.log),
    "tanh": (NEAR, np.tanh),
    "sigmoid": (NEAR, lambda x: 1 / (1 + np.exp(-x))),
    "erf": (NEAR / 5, lambda x: np.array([math.erf(float(v)) for v in x])),
}  # fmt: skip


def compiled(op: str, *arrays: Any) -> Any:
    g = Graph("g", [f"x{i}" for i in range(len(arrays))], ["y"])
    g.types = {f"x{i}": type_of(a) for i, a in enumerate(arrays)}
    (g.types["y"],) = operator(op).infer([type_of(a) for a in arrays], {})
    g.nodes = [Node("n", op, tuple(g.inputs), ("y",), {})]
    session = Session(build(g, "host"))
    session.set_inputs(list(arrays))
    return session.run()[0]


def same(got: Any, want: Any) -> None:
    """Equal, NaN where NaN is wanted; what is below the normal numbers may be 0."""
    small = np.abs(want) < 2.0**-1021
    np.testing.assert_allclose(got[~small], want[~small], rtol=2e-13)
    assert (np.abs(got[small]) < 2.0**-1021).all()


@pytest.mark.parametrize("op", EXACT)
def test_error_is_small(op: str) -> None:
    x, exact = EXACT[op]
    want = exact(x.astype(Wide))
    step = np.spacing(np.abs(want).astype(np.float64)).astype(Wide)
    assert (np.abs(compiled(op, x).astype(Wide) - want) / step).max() <= MAX_ULP[op]


@pytest.mark.parametrize("op", EXACT)
def test_special_values(op: str) -> None:
    with np.errstate(all="ignore"):
        want = np.asarray(EXACT[op][1](SPECIAL))
    got = compiled(op, SPECIAL)
    same(got, want)
    if op in ("tanh", "erf"):
        assert np.signbit(got[1]) and not np.signbit(got[0])


def test_powers() -> None:
    x, y = np.exp(RNG.uniform(-5, 5, 5000)), RNG.uniform(-8, 8, 5000)
    want = np.power(x.astype(Wide), y.astype(Wide))
    step = np.spacing(want.astype(np.float64)) * (1 + np.abs(y * np.log(x)))
    assert (np.abs(compiled("pow", x, y).astype(Wide) - want) / step).max() <= MAX_ULP["pow"]
    bases, exponents = np.meshgrid(
        SPECIAL, np.array([0.0, 1, 2, 3, -1, -2, 0.5, -0.5, np.inf, -np.inf, np.nan])
    )
    with np.errstate(all="ignore"):
        want = np.power(bases.ravel(), exponents.ravel())
    usual = np.abs(bases.ravel()) != 1e-310  # with a subnormal base, results near the ends are cut
    same(compiled("pow", bases.ravel(), exponents.ravel())[usual], want[usual])
