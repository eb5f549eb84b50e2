"""Every registered operator, without writing a test for it: `samples` through compiled code.

Each sample becomes a graph of one node that is built and run natively, once with every operand a graph
input and once with all but the first a constant, for every target this machine can run; results are
compared with the operator's reference.
"""

from __future__ import annotations

import numpy as np
import pytest

from tilewright.codegen.llvm import runs_here
from tilewright.graph.ir import Array, Graph, Node, type_of
from tilewright.pipeline import build
from tilewright.registry import Operator, Sample, operators
from tilewright.schedule.target import load_target, target_names
from tilewright.session import Session

TARGETS = [n for n in target_names() if runs_here(load_target(n))]


def graph_of(op: Operator, sample: Sample, constants: bool) -> Graph:
    """One node; operand 0 is an input, the others too unless `constants`."""
    g = Graph("one", [], [])
    names: list[str] = []
    for i, array in enumerate(sample.inputs):
        if array is None:
            names.append("")
        elif constants and i:
            names.append(g.add_constant(f"c{i}", array))
        else:
            names.append(f"x{i}")
            g.inputs.append(names[-1])
            g.types[names[-1]] = type_of(array)
    types = op.infer([g.types[n] if n else None for n in names], sample.attrs)
    g.outputs = [f"y{i}" for i in range(len(types))]
    g.types.update(zip(g.outputs, types, strict=True))
    g.nodes = [Node(op.name, op.name, tuple(names), tuple(g.outputs), sample.attrs)]
    return g


def assert_close(got: Array, want: Array, depth: int, size: float, steps: int) -> None:
    """Integers within `steps`; floats within a few roundings per step of the longest sum, of numbers as
    large as the result or as `size` (what a sum cancels)."""
    assert got.dtype == want.dtype and got.shape == want.shape
    if want.dtype.isbuiltin == 2:  # a type of `ml_dtypes`
        np.testing.assert_array_equal(got.astype(np.float64), want.astype(np.float64))
        return
    if want.dtype.kind != "f":
        away = np.abs(got.astype(np.int64) - want.astype(np.int64)).max(initial=0)
        assert away <= steps
        return
    special = ~np.isfinite(want)
    assert np.array_equal(got[special], want[special], equal_nan=True)
    x, y = got[~special].astype(np.float64), want[~special].astype(np.float64)
    unit = float(np.finfo(want.dtype).eps)
    scale = max(np.abs(y).max(initial=0.0), size)
    assert (np.abs(x - y) <= unit * (8 + depth) * np.maximum(np.abs(y), scale) + 1e-37).all()


def _largest(a: Array | None) -> float:
    if a is None or a.dtype.kind != "f":
        return 0.0
    return float(np.abs(a[np.isfinite(a)]).max(initial=0.0))


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", sorted(operators()))
def test_samples_run_compiled(name: str, target: str) -> None:
    op = operators()[name]
    assert op.samples is not None, f"operator {name} has no samples: nothing tests it"
    ran = 0
    for sample in op.samples(np.random.default_rng(0)):
        with np.errstate(all="ignore"):
            want = op.reference(list(sample.inputs), sample.attrs)
        if (
            any(a is not None and a.dtype == np.float64 for a in [*sample.inputs, *want])
            and op.name != "cast"
        ):
            continue
        for constants in (False, True):
            g = graph_of(op, sample, constants)
            if not g.inputs or 0 in [n for o in g.outputs for n in g.types[o].shape]:
                continue
            session = Session(build(g, target))
            session.set_inputs({n: sample.inputs[int(n[1:])] for n in g.inputs})  # type: ignore[misc]
            types = [g.types[n] if n else None for n in g.nodes[0].inputs]
            # a power's error grows with its exponent (see loop/passes/expand_math.py)
            depth = op.depth(types, sample.attrs) + (128 if name in ("pow", "lrn") else 0)
            size = _largest(sample.inputs[0]) if op.trait == "reduction" else 0.0
            # integers are interpolated in float32 and cut: one step where the exact value is whole
            steps = 1 if name == "resize" else 0
            for a, b in zip(session.run(), want, strict=True):
                assert_close(a, np.asarray(b), depth, size, steps)
            ran += 1
    assert ran, f"no sample of {name} was run"
