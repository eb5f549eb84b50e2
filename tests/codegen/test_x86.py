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


@pytest.mark.parametrize("kinds", [(I8, I8), (U8, I8), (U8, U8), (I8, I16)], ids=str)
@pytest.mark.parametrize("name", TARGETS)
def test_products_of_halves(name: str, kinds: tuple[DType, DType]) -> None:
    """Depthwise bytes are multiplied as pairs of 16 bits of which one is 0, at every edge."""
    ends = [[np.iinfo(k.numpy).min, np.iinfo(k.numpy).max] for k in kinds]
    rng = np.random.default_rng(0)
    x, w = (
        rng.choice([*e, 0, 1, max(e[0], -1)], shape).astype(k.numpy)
        for e, k, shape in zip(ends, kinds, ((1, 33, 9, 9), (33, 1, 2, 2)), strict=True)
    )
    b = Builder()
    b.input("x", x.shape, kinds[0])
    b.graph.add_constant("w", w)
    attrs: dict[str, AttrValue] = {"strides": (1, 1), "pads": (0, 0, 0, 0), "dilations": (1, 1)}
    graph = b.done(b.node("depthwise_conv2d", "y", "x", "w", **attrs))
    program = build(graph, name)
    text = api.assembly(program)
    assert "vpmaddwd" in text and "vpmulld" not in text
    if runs_here(load_target(name)):
        (y,) = api.CompiledModel(program)(x)
        np.testing.assert_array_equal(y, run(graph, {"x": x})["y"])


@pytest.mark.parametrize("bits", [2, 4])
def test_few_bits_are_looked_up(bits: int) -> None:
    """Every weight of a few bits, less every kind of zero point, becomes a float in one step."""
    rng = np.random.default_rng(bits)
    w = rng.integers(0, 256, (64 * bits // 8, 37)).astype(np.uint8)
    scales = (rng.random((2, 37)) + 0.1).astype(np.float32)
    zeros = rng.integers(0, 1 << bits, scales.shape).astype(np.float32)
    x = rng.standard_normal((3, 64)).astype(np.float32)
    for zero in (np.asarray(1.5, np.float32), zeros):
        b = Builder()
        b.input("x", x.shape, F32)
        for name, value in (("w", w), ("s", scales), ("z", zero)):
            b.graph.add_constant(name, value)
        graph = b.done(b.node("matmul_nbits", "y", "x", "w", "s", "z", bits=bits, block=32))
        program = build(graph, "x86-64-v4")
        assert "vpermd" in api.assembly(program) or "vpermps" in api.assembly(program)
        if runs_here(load_target("x86-64-v4")):
            (y,) = api.CompiledModel(program)(x)
            np.testing.assert_allclose(y, run(graph, {"x": x})["y"], rtol=2e-5, atol=1e-4)
