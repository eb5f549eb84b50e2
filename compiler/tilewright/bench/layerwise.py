"""How far every layer of a compiled model is from what the model's file specifies, one layer at a time.

In: a compiled model, the graph its file says (as imported, no pass over it), inputs. Out: `Layers`.
Every value that compiled code leaves in memory and the file names is computed again from the values in memory that it
was computed from: operator by operator as the file says, each result rounded to its type, sums exact (float64).
So neither another runtime nor our own graph passes have a part in the judgement, and nothing that an earlier layer
did is held against a later one: where a model makes much of single roundings, whole outputs cannot tell who is right.
Invariant: values that differ by more than a step of their integers are counted, never excused.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tilewright.api import CompiledModel
from tilewright.bench.verify import recompute, relative_error
from tilewright.core.dtypes import I8
from tilewright.graph.ir import Array, Graph


@dataclass(slots=True)
class Layers:
    """What was found in some runs."""

    values: int = 0
    """Values that were computed again."""
    error: float = 0.0
    """Of floats: the largest difference over the largest magnitude of one value."""
    integers: int = 0
    """Elements of integer values."""
    apart: int = 0
    """Those of them that differ."""
    units: int = 0
    """By how much, at most."""

    def add(self, got: Array, wanted: Array) -> None:
        self.values += 1
        if got.dtype.kind in "iu" and got.shape == wanted.shape:
            steps = np.abs(got.astype(np.int64) - wanted.astype(np.int64))
            self.integers += steps.size
            self.apart += int(np.count_nonzero(steps))
            self.units = max(self.units, int(steps.max(initial=0)))
        elif got.dtype.kind == "f":
            self.error = max(self.error, relative_error(got, wanted))

    def __str__(self) -> str:
        parts = [f"{self.error:.1e}"] if self.error else []
        if self.apart:
            many = "unit" if self.units == 1 else "units"
            parts.append(f"{self.apart:,} of {self.integers:,} by {self.units} {many}")
        return ", ".join(parts) or ("equal" if self.values else "-")


def judge_layers(
    layers: Layers, compiled: CompiledModel, graph: Graph, inputs: Sequence[Array]
) -> None:
    """Run once, step by step, and add what is found to `layers`; `graph` is the imported one."""
    session = compiled.session()
    session.set_inputs(inputs)
    defined = {o for n in graph.nodes for o in n.outputs} - set(graph.constants)
    known = dict(zip(compiled.program.graph.inputs, inputs, strict=True))
    for i, step in enumerate(compiled.program.steps):
        session.run_step(i)
        for name in step.outputs:
            if name not in defined:
                continue
            got, type_ = np.array(session.read(name)), graph.types[name]
            if got.dtype == np.uint8 and type_.dtype is I8:  # `graph.passes.unsigned_bytes`
                got = (got ^ np.uint8(128)).view(np.int8)
            if got.shape != type_.shape or got.dtype != type_.dtype.numpy:
                continue
            layers.add(got, recompute(graph, known.get, name))
            known[name] = got
