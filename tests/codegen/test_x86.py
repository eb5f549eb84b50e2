"""Conversions and high products of whole vectors on x86-64: what the interpreter says, at every edge."""

from __future__ import annotations

import numpy as np
import pytest
from graph_helpers import Builder

from tilewright import api
from tilewright.codegen.llvm import runs_here
from tilewright.core.dtypes import F32, F64, I8, I16, I32, U8, U16, U32, DType
from tilewright.graph.interp import run
from tilewright.graph.ir import AttrValue
from tilewright.pipeline import build
from tilewright.schedule.target import load_target

TARGETS = ["x86-64-v3", "x86-64-v4"]


@pytest.mark.parametrize("held", [False, True], ids=["any", "held"])
@pytest.mark.parametrize("to", [I8, U8, I16, U16, I32, U32], ids=str)
@pytest.mark.parametrize("source", [F32, F64], ids=str)
@pytest.mark.parametrize("name", TARGETS)
def test_floats_to_integers(name: str, source: DType, to: DType, held: bool) -> None:
    """Beyond the range they stop at its ends, NaN is 0; all by whole vectors."""
    ends = np.iinfo(to.numpy)
    edges = [float(e) + d for e in (ends.min, ends.max) for d in (-1.5, -1, -0.5, 0, 0.5, 1, 1.5)]
    odd = [np.nan, np.inf, -np.inf, -0.0, 1e-40, 3e38, -3e38, 2.0**31, -(2.0**31), 2.0**31 - 128]
    x = np.array([*edges, *odd, *np.linspace(-300, 300, 47)]).astype(source.numpy)
    b = Builder()
    b.input("x", x.shape, source)
    value = "x"
    if held:
        for op, number in (("max", -100.0 if ends.min else 0.0), ("min", 100.0)):
            b.graph.add_constant(op, np.asarray(number, source.numpy))
            value = b.node(op, f"{op}ed", value, op)
    graph = b.done(b.node("cast", "y", value, to=str(to)))
    program = build(graph, name)
    if to is I32 and source is F32:
        text = api.assembly(program)
        assert "vcvttps2dq" in text and "vcvttss2si" not in text
    if runs_here(load_target(name)):
        (y,) = api.CompiledModel(program)(x)
        np.testing.assert_array_equal(y, run(graph, {"x": x})["y"])


@pytest.mark.parametrize("zero", [0, 3])
@pytest.mark.parametrize("name", TARGETS)
def test_high_products(name: str, zero: int) -> None:
    """Requantisation takes even and odd lanes to `vpmuldq`, without widening them first."""
    rng = np.random.default_rng(0)
    ends = [-(2**31), -(2**31) + 1, -1, 0, 1, 2**31 - 1]
    x = np.resize(np.array([*ends, *rng.integers(-(2**31), 2**31, 58)]), (5, 32)).astype(np.int32)
    m = np.array([*ends, *rng.integers(-(2**31), 2**31, 26)]).astype(np.int32)
    b = Builder()
    b.input("x", x.shape, I32)
    b.graph.add_constant("m", m)
    attrs: dict[str, AttrValue] = {
        "shift": 0,
        "zero_point": zero,
        "low": -(2**15),
        "high": 2**15 - 1,
        "to": "i16",
    }
    graph = b.done(b.node("requantize", "y", "x", "m", **attrs))
    program = build(graph, name)
    text = api.assembly(program)
    assert "vpmuldq" in text and "vpmovzxdq" not in text
    if runs_here(load_target(name)):
        (y,) = api.CompiledModel(program)(x)
        np.testing.assert_array_equal(y, run(graph, {"x": x})["y"])
