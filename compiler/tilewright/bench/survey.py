"""Many models at once: does each compile, how large does it become, does it agree with its reference?

In: model files or names of the zoo. Out: one `Row` per model, whatever happens to it.
Invariant: every model is compiled and run in a process of its own, so that a crash, a hang or a lack of memory is
a row like any other. Only whole outputs are judged; `verify` says which layer departs.

The reference is ONNX Runtime without graph optimisations or LiteRT's reference kernels; without either it is our
interpreter. A model agrees if every float output is within `tolerance` of its largest magnitude, and of every
integer output 99.9 % of the elements are at most 1 unit away and none is more than 2. Floats that a model makes of
integers (its last operator dequantises) are counted in units of the last scale, like those integers.
A model that does not agree is compared with the same library as it comes, too, and that with the reference. If it
agrees with either on all inputs it agrees; a model on which the library differs from itself by more than is allowed
is restless: it makes much of the last bit of some sum, and what it should give is not settled to that accuracy.
For the runs in which a model does not agree there is a third opinion, what the file specifies, evaluated operator by
operator with exact sums: how far we, and the reference, are from that. And every model is judged layer by layer in
the same way (`bench.layerwise`), where what earlier layers did has no part in it.
"""

from __future__ import annotations

import multiprocessing
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tilewright import api
from tilewright.bench.inputs import make_inputs
from tilewright.bench.layerwise import Layers, judge_layers
from tilewright.bench.references import as_it_comes
from tilewright.bench.verify import (
    JUDGED_RUNS,
    MOST_STEPS,
    STATEFUL_RUNS,
    STEP_SHARE,
    Verifier,
    is_noise,
    relative_error,
)
from tilewright.bench.zoo import fetch, named
from tilewright.errors import TilewrightError
from tilewright.frontend.models import load_model
from tilewright.graph import interp
from tilewright.graph.ir import Array, Graph


@dataclass(slots=True)
class Distance:
    """How far outputs are apart: the worst of all runs."""

    error: float = 0.0
    """Largest difference of float outputs over their largest magnitude."""
    within_one: float = 1.0
    """The least share of elements of an integer output that are at most 1 unit away."""
    units: int = 0
    """Largest difference of integer outputs."""

    def add(self, ours: Array, theirs: Array, unit: float | None) -> None:
        """Another output of another run; `unit` is what an integer step is worth in floats made of integers."""
        if ours.shape != theirs.shape:
            self.error = float("inf")
        elif ours.dtype.kind in "iu" or unit is not None:
            apart = np.abs(ours.astype(np.float64) - theirs.astype(np.float64)) / (unit or 1)
            steps = np.rint(apart)
            if steps.size:
                self.within_one = min(self.within_one, float((steps <= 1).mean()))
                self.units = max(self.units, int(min(steps.max(), 1 << 62)))
        else:
            self.error = max(self.error, relative_error(ours, theirs))

    def within(self, tolerance: float) -> bool:
        steps = self.within_one >= STEP_SHARE and self.units <= MOST_STEPS
        return self.error <= tolerance and steps

    def __str__(self) -> str:
        parts = (
            []
            if self.units and not self.error
            else [f"{self.error:.1e}" if self.error else "equal"]
        )
        if self.units:
            parts.append(f"{self.units} units, {self.within_one:.2%} within 1")
        return ", ".join(parts)


@dataclass(slots=True)
class Row:
    """What became of one model. Sizes in bytes, times in seconds; 0 where it did not get so far."""

    model: str
    outcome: str = "agrees"
    """agrees, restless, differs, refused, crash or timeout"""
    reason: str = ""
    operators: dict[str, int] = field(default_factory=dict[str, int])
    """Of the imported graph, most frequent first."""
    compile_seconds: float = 0.0
    artifact_bytes: int = 0
    """The object file: code and weights."""
    arena_bytes: int = 0
    reference: str = ""
    runs: int = 0
    states: int = 0
    distance: Distance = field(default_factory=Distance)
    """Of our outputs from the reference."""
    usual: Distance | None = None
    """Of ours from the same library as it comes, where the first is too large."""
    spread: Distance | None = None
    """Of the library as it comes from the reference."""
    exact: Distance | None = None
    """Of ours from what the file specifies, over the runs that are too far from the reference."""
    reference_exact: Distance | None = None
    """Of the reference from that, over the same runs."""
    layers: Layers = field(default_factory=Layers)
    """Every layer on its own against what the file specifies."""


def survey(
    name: str,
    target: str = "host",
    shapes: Mapping[str, Any] | None = None,
    seeds: int = 20,
    tolerance: float = 1e-4,
    limit: float = 1800.0,
) -> Row:
    """Compile a model for a target that this machine runs and compare it on `seeds` inputs (a model with states:
    at least 100, one after the other), within `limit` seconds."""
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(1, mp_context=context)
    task = pool.submit(_judged, name, target, dict(shapes or {}), seeds, tolerance)
    try:
        return task.result(timeout=limit)
    except BrokenProcessPool:
        return Row(name, "crash", "its process ended: a crash, or no memory left")
    except TimeoutError:
        for process in (pool._processes or {}).values():  # no public way to stop a running task
            process.kill()
        return Row(name, "timeout", f"not done within {limit:g} s")
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _judged(name: str, target: str, shapes: dict[str, Any], seeds: int, tolerance: float) -> Row:
    row = Row(name)
    try:
        _judge(row, target, shapes, seeds, tolerance)
    except TilewrightError as err:
        row.outcome, row.reason = "refused", str(err)
    return row


def _judge(row: Row, target: str, shapes: dict[str, Any], seeds: int, tolerance: float) -> None:
    known = named(row.model)
    path = fetch(known) if known else Path(row.model)
    sizes = {**(known.shapes if known else {}), **shapes}
    graph = load_model(path, sizes)
    row.operators = dict(Counter(n.op for n in graph.nodes).most_common())
    began = time.perf_counter()
    model = api.compile(path, target, sizes)
    row.compile_seconds = time.perf_counter() - began
    row.arena_bytes = model.spec.arena_bytes
    with tempfile.TemporaryDirectory(prefix="tilewright-") as folder:
        api.write(model.program, Path(folder))
        row.artifact_bytes = next(Path(folder).glob("*.o")).stat().st_size
    verifier = Verifier(path, model, tolerance, inside=False)
    row.reference = verifier.reference_name
    row.states = len(verifier.states)
    row.runs = max(seeds, STATEFUL_RUNS) if row.states else seeds
    units = {o: _unit(graph, o) for o in graph.outputs}
    # a model with states goes its own way from the first difference on: there is one reference for it
    library = None if row.states or verifier.reference is None else as_it_comes(path)
    usual, spread, exact, reference_exact = Distance(), Distance(), Distance(), Distance()
    for seed in range(row.runs):
        inputs = make_inputs(model.spec.inputs, graph, seed, known.given if known else None)
        turn = verifier.turn(inputs)
        other = library(turn.inputs)[0] if library else turn.theirs
        this = Distance()
        for i, t in enumerate(model.spec.outputs):
            ours, plain, second = turn.ours[i], turn.theirs[i], other[i]
            for distance, a, b in (
                (this, ours, plain),
                (row.distance, ours, plain),
                (usual, ours, second),
                (spread, second, plain),
            ):
                if not is_noise(turn.graph, t.name, a, b):
                    distance.add(a, b, units.get(t.name))
        if not this.within(tolerance):
            specified = interp.run(graph, turn.inputs)
            for i, t in enumerate(model.spec.outputs):
                exact.add(turn.ours[i], specified[t.name], units.get(t.name))
                reference_exact.add(turn.theirs[i], specified[t.name], units.get(t.name))
        if seed < JUDGED_RUNS and isinstance(model, api.CompiledModel):
            judge_layers(row.layers, model, graph, list(turn.inputs.values()))
    if row.distance.within(tolerance):
        return
    row.usual, row.spread = (usual, spread) if library else (None, None)
    row.exact, row.reference_exact = exact, reference_exact
    if library and usual.within(tolerance):
        return
    row.outcome = "restless" if library and not spread.within(tolerance) else "differs"
    row.reason = f"see `tilewright verify {row.model}`"


def _unit(graph: Graph, output: str) -> float | None:
    """What one integer step is worth in a float output that a dequantisation makes; None for others."""
    node = graph.producers().get(output)
    while node is not None and node.op in ("reshape", "transpose", "copy"):
        node = graph.producers().get(node.inputs[0])
    if node is None or node.op != "dequantize":
        return None
    scale = graph.constants.get(node.inputs[1])
    return float(scale.max()) if scale is not None else None


def agreement(row: Row) -> str:
    """How far a model is from its reference, in a few words."""
    if row.outcome not in ("agrees", "restless", "differs"):
        return f"{row.outcome}: {row.reason}"
    parts = [] if row.outcome == "agrees" else [f"**{row.outcome}**"]
    parts.append(str(row.distance))
    if row.usual is not None:
        parts += [f"as it comes {row.usual}", f"itself {row.spread}"]
    if row.exact is not None:
        parts.append(f"as specified: we {row.exact}, it {row.reference_exact}")
    if row.states:
        parts.append("with state")
    return "; ".join(parts)
