"""Kernels of a GPU program against this machine's code, on the same memory, step by step."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from tilewright.bench.inputs import make_inputs
from tilewright.emulate import Emulator
from tilewright.graph.ir import Array
from tilewright.loop import simt
from tilewright.pipeline import Shapes, Source, build
from tilewright.program import Program, spec_of
from tilewright.schedule.target import Target
from tilewright.session import Session
from tilewright.tune.identity import target_hash
from tilewright.tune.library import Library


@dataclass(frozen=True, slots=True)
class Sampled:
    """What a comparison covered: distinct kernels, elements compared, the largest error of a step relative
    to the step's largest magnitude (integers must be equal)."""

    kernels: int
    elements: int
    error: float
    worst: str
    seconds: float


def plain(source: Source, target: str | Target, shapes: Shapes | None = None) -> Program:
    """A program by default schedules: without logs, the same nodes make the same steps on every target."""
    from tilewright.pipeline import resolve_target

    machine = resolve_target(target)
    return build(source, machine, shapes, name="m", library=Library(target_hash(machine)))


def sampled(source: Source, target: str, shapes: Shapes | None, blocks: int) -> Sampled:
    """Run every distinct kernel in the interpreter of threads, at most `blocks` blocks of each, on what
    this machine's code finds in memory, and compare all that it writes."""
    start = time.perf_counter()
    here, there = plain(source, "host", shapes), plain(source, target, shapes)
    assert [s.label for s in here.steps] == [s.label for s in there.steps]
    assert here.places == there.places and here.arena_bytes == there.arena_bytes
    native, gpu = Session(here), Emulator(there)
    spec = spec_of(here)
    inputs = make_inputs(spec.inputs, here.graph, seed=0)
    native.set_inputs(inputs)
    gpu.set_inputs(inputs)
    kernels = {k.name: k for k in there.kernels}
    seen: set[str] = set()
    count, worst, where = 0, 0.0, ""
    for i, step in enumerate(there.steps):
        fresh = step.kernel not in seen
        if fresh:
            seen.add(step.kernel)
            gpu.arena[...] = native.arena[: gpu.arena.size]
            for mine, theirs in zip(gpu.outputs, native.outputs, strict=True):
                mine[...] = theirs
        native.run_step(i)
        if not fresh:
            continue
        kernel = kernels[step.kernel]
        windows = {
            p.buffer.name: gpu.window(p.buffer, step, k) for k, p in enumerate(kernel.params)
        }
        written = simt.run(kernel, windows, blocks)
        got = {n: windows[n][mask].copy() for n, mask in written.items()}
        gpu.arena[...] = native.arena[: gpu.arena.size]
        for mine, theirs in zip(gpu.outputs, native.outputs, strict=True):
            mine[...] = theirs
        for name, mask in written.items():
            assert mask.any(), f"{kernel.name} wrote nothing to {name}"
            error = _error(got[name], windows[name][mask], windows[name])
            count += int(mask.sum())
            if error > worst:
                worst, where = error, f"{kernel.name} ({step.label})"
    return Sampled(len(seen), count, worst, where, time.perf_counter() - start)


def _error(got: Array, wanted: Array, everything: Array) -> float:
    if got.dtype.kind != "f":
        return 0.0 if np.array_equal(got, wanted) else float("inf")
    a, b = got.astype(np.float64), wanted.astype(np.float64)
    finite = np.isfinite(b)
    if (
        not np.array_equal(a[~finite], b[~finite], equal_nan=True)
        or not np.isfinite(a[finite]).all()
    ):
        return float("inf")
    a, b = a[finite], b[finite]
    scale = np.abs(everything[np.isfinite(everything)].astype(np.float64)).max(initial=1e-30)
    return float(np.abs(a - b).max(initial=0) / scale)
