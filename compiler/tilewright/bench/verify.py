"""Compare a compiled model with a reference: outputs and every value that lies in memory.

In: a model file, the compiled model, inputs. Out: a `Report`.
ONNX Runtime is the reference where it is installed. Our interpreter, which accumulates in float64, is
the arbiter: it says who is off where the two disagree. Layers are compared on equal inputs: before a
step runs, the values it reads are those of the native run, so an error shows where it is made.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tilewright.api import CompiledModel
from tilewright.graph import interp
from tilewright.graph.ir import Array, Graph, Node
from tilewright.registry import operator
from tilewright.session import Session


@dataclass(frozen=True, slots=True)
class OutputReport:
    """Error of one output, relative to its largest magnitude."""

    name: str
    magnitude: float
    error: float
    ours_vs_exact: float
    theirs_vs_exact: float
    ok: bool


@dataclass(slots=True)
class Report:
    """What a verification found."""

    reference: str
    outputs: list[OutputReport] = field(default_factory=list[OutputReport])
    layers: int = 0
    worst_layer: float = 0.0
    first_departure: str = ""

    @property
    def passed(self) -> bool:
        return all(o.ok for o in self.outputs) and not self.first_departure


def verify_model(
    path: Path, compiled: CompiledModel, inputs: Sequence[Array], tolerance: float
) -> Report:
    """Run everything and compare; outputs must agree within `tolerance` of their largest magnitude."""
    program = compiled.program
    ours = compiled(*inputs)
    named = dict(zip((t.name for t in program.inputs), inputs, strict=True))
    values = interp.run(program.graph, named)
    exact = [values[n] for n in program.graph.outputs]
    theirs, reference = _onnxruntime(path, named), "ONNX Runtime"
    if theirs is None:
        theirs, reference = exact, "the NumPy interpreter"
    report = Report(reference)
    for t, a, b, e in zip(program.outputs, ours, theirs, exact, strict=True):
        error = relative_error(a, b)
        report.outputs.append(
            OutputReport(
                t.name, float(np.abs(b).max(initial=0)), error, relative_error(a, e),
                relative_error(b, e), error <= tolerance,
            )
        )  # fmt: skip
    _layers(compiled.session(), inputs, tolerance, report)
    return report


def relative_error(a: Array, b: Array) -> float:
    """Largest difference over largest magnitude; infinity for different shapes or misplaced NaN."""
    if a.shape != b.shape:
        return float("inf")
    if a.size == 0:
        return 0.0
    x, y = a.astype(np.float64), b.astype(np.float64)
    special = ~np.isfinite(y)
    if special.any():
        if not np.array_equal(x[special], y[special], equal_nan=True):
            return float("inf")
        x, y = np.where(special, 0, x), np.where(special, 0, y)
    scale = np.abs(y).max()
    return float(np.abs(x - y).max() / scale) if scale else float(np.abs(x).max() > 0)


def _onnxruntime(path: Path, named: dict[str, Array]) -> list[Array] | None:
    if importlib.util.find_spec("onnxruntime") is None:
        return None
    ort: Any = importlib.import_module("onnxruntime")
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return [np.asarray(v) for v in session.run(None, named)]


def _layers(session: Session, inputs: Sequence[Array], tolerance: float, report: Report) -> None:
    """Run step by step; recompute each group in float64 from what it really read."""
    program = session.program
    graph = program.graph
    session.set_inputs(inputs)
    producers = graph.producers()
    for i, step in enumerate(program.steps):
        session.run_step(i)
        if not step.outputs:
            continue
        expected = _recompute(session, graph, producers, step.outputs[0])
        if expected is None:
            continue
        got = session.read(step.outputs[0])
        error = relative_error(got, expected)
        report.layers += 1
        report.worst_layer = max(report.worst_layer, error)
        if error > tolerance and not report.first_departure:
            report.first_departure = (
                f"step {i}: {step.label} (nodes {', '.join(step.nodes)}) differs by {error:.1e}"
            )


def _recompute(
    session: Session, graph: Graph, producers: dict[str, Node], name: str
) -> Array | None:
    """Value `name` from values in memory by reference functions; None if an operand is gone."""
    stored = {o for s in session.program.steps for o in s.outputs}
    memo: dict[str, Array] = {}

    def value(v: str, top: bool) -> Array:
        if v in memo:
            return memo[v]
        if v in graph.constants:
            return graph.constants[v]
        if v in graph.inputs or (v in stored and not top):
            memo[v] = session.read(v)
            return memo[v]
        node = producers[v]
        operands = [value(x, False) if x else None for x in node.inputs]
        with np.errstate(all="ignore"):
            results = operator(node.op).reference(operands, node.attrs)
        memo.update(zip(node.outputs, results, strict=True))
        return memo[v]

    return value(name, True)
