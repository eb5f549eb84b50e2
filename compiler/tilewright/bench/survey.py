"""Many models at once: does each compile, how large does it become, does it agree with its reference?

In: model files or names of the zoo. Out: one `Row` per model, whatever happens to it.
Invariant: every model is compiled and run in a process of its own, so that a crash, a hang or a lack of memory is
a row like any other. Only whole outputs are judged; `verify` says which layer departs.

The reference is ONNX Runtime without graph optimisations or LiteRT's reference kernels; without either it is our
interpreter. A model agrees if every float output is within `tolerance` of its largest magnitude, and of every
integer output 99.9 % of the elements are at most 1 unit away and none is more than 2. Floats that a model makes of
integers (its last operator dequantises) are counted in units of the last scale, like those integers.
"""

from __future__ import annotations

import multiprocessing
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tilewright import api
from tilewright.bench.inputs import make_inputs
from tilewright.bench.verify import (
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
from tilewright.graph.ir import Array, Graph


@dataclass(slots=True)
class Row:
    """What became of one model. Sizes in bytes, times in seconds; 0 where it did not get so far."""

    model: str
    outcome: str = "agrees"
    """agrees, differs, refused, crash or timeout"""
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
    error: float = 0.0
    """Largest difference of float outputs over their largest magnitude."""
    within_one: float = 1.0
    """The least share of elements of an integer output that are at most 1 unit away."""
    units: int = 0
    """Largest difference of integer outputs."""


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
        return Row(**task.result(timeout=limit))
    except BrokenProcessPool:
        return Row(name, "crash", "its process ended: a crash, or no memory left")
    except TimeoutError:
        for process in (pool._processes or {}).values():  # no public way to stop a running task
            process.kill()
        return Row(name, "timeout", f"not done within {limit:g} s")
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _judged(
    name: str, target: str, shapes: dict[str, Any], seeds: int, tolerance: float
) -> dict[str, Any]:
    """A row as a table, which every process can read."""
    row = Row(name)
    try:
        _judge(row, target, shapes, seeds, tolerance)
    except TilewrightError as err:
        row.outcome, row.reason = "refused", str(err)
    return asdict(row)


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
    for seed in range(row.runs):
        inputs = make_inputs(model.spec.inputs, graph, seed, known.given if known else None)
        turn = verifier.turn(inputs)
        for t, a, b in zip(model.spec.outputs, turn.ours, turn.theirs, strict=True):
            if not is_noise(turn.graph, t.name, a, b):
                _compare(row, a, b, units.get(t.name))
    if row.error > tolerance or row.within_one < STEP_SHARE or row.units > MOST_STEPS:
        row.outcome = "differs"
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


def _compare(row: Row, ours: Array, theirs: Array, unit: float | None) -> None:
    if ours.shape != theirs.shape:
        row.error = float("inf")
    elif ours.dtype.kind in "iu" or unit is not None:
        apart = np.abs(ours.astype(np.float64) - theirs.astype(np.float64)) / (unit or 1)
        steps = np.rint(apart)
        if steps.size:
            row.within_one = min(row.within_one, float((steps <= 1).mean()))
            row.units = max(row.units, int(min(steps.max(), 1 << 62)))
    else:
        row.error = max(row.error, relative_error(ours, theirs))


def agreement(row: Row) -> str:
    """How far a model is from its reference, in a few words."""
    if row.outcome not in ("agrees", "differs"):
        return f"{row.outcome}: {row.reason}"
    parts = [] if row.outcome == "agrees" else ["**differs**"]
    if row.error or row.units == 0:
        parts.append(f"{row.error:.1e}" if row.error else "equal")
    if row.units:
        parts.append(f"{row.units} units, {row.within_one:.2%} within 1")
    if row.states:
        parts.append("with state")
    return ", ".join(parts)
