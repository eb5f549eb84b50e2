"""Sums of bytes that are one dot product long, shorter, or a few: every target with dot products schedules them."""

from __future__ import annotations

import numpy as np
import pytest

from tilewright.codegen.llvm import runs_here
from tilewright.core.dtypes import I32, U8
from tilewright.graph import interp
from tilewright.graph.ir import Graph, Node, TensorType
from tilewright.pipeline import build
from tilewright.schedule.target import load_target
from tilewright.session import Session

TARGETS = ("x86-64-v3", "x86-64-v4", "x86-64-v4-vnni", "armv8.6-i8mm", "cortex-a76", "cortex-m4")


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("length", [1, 2, 3, 4, 5, 8, 12, 16, 20])
def test_short_sums(length: int, target: str) -> None:
    rng = np.random.default_rng(length)
    g = Graph("short", ["x"], ["y"])
    g.types["x"], g.types["y"] = TensorType(U8, (5, length)), TensorType(I32, (5, 17))
    w = g.add_constant("w", rng.integers(-128, 128, (length, 17)).astype(np.int8))
    g.nodes = [Node("product", "matmul", ("x", w), ("y",))]
    program = build(g, target)
    if not runs_here(load_target(target)):
        return
    inputs = {"x": rng.integers(0, 256, (5, length)).astype(np.uint8)}
    session = Session(program)
    session.set_inputs(inputs)
    (got,) = session.run()
    np.testing.assert_array_equal(got, interp.run(g, inputs)["y"])
