"""Kernels of a GPU program against this machine's code, on the same memory, step by step.

The loop IR runs in the interpreter of threads, the PTX made of it in `ptx_machine`.
"""

from __future__ import annotations

from collections.abc import Iterator, Set
from dataclasses import dataclass

import numpy as np
from ptx_machine import Machine

from tilewright.bench.inputs import make_inputs
from tilewright.codegen.cuda import launch_of
from tilewright.emulate import Emulator
from tilewright.gpu import gpu_assembly
from tilewright.graph.ir import Array
from tilewright.loop import simt
from tilewright.loop.ir import Kernel
from tilewright.pipeline import Shapes, Source, build, resolve_target
from tilewright.program import Program, Step, spec_of
from tilewright.schedule.target import Target
from tilewright.session import Session
from tilewright.tune.identity import target_hash
from tilewright.tune.library import Library


@dataclass(frozen=True, slots=True)
class Turn:
    """A kernel that is met for the first time, with memory as this machine's code leaves it before (`gpu`) and
    after (`native`) the step."""

    step: Step
    kernel: Kernel
    gpu: Emulator
    native: Session

    def windows(self) -> dict[str, Array]:
        params = enumerate(self.kernel.params)
        return {p.buffer.name: self.gpu.window(p.buffer, self.step, k) for k, p in params}

    def memory(self, k: int) -> Array:
        """The bytes from the first element of parameter `k` on."""
        place = self.step.places[k]
        if place.base in ("arena", "weights"):
            flat: Array = self.gpu.arena if place.base == "arena" else self.gpu.weights
        else:
            tensors = self.gpu.inputs if place.base == "input" else self.gpu.outputs
            flat = tensors[place.number].reshape(-1).view(np.uint8)
        return flat[place.offset :]

    def sync(self) -> None:
        self.gpu.arena[...] = self.native.arena[: self.gpu.arena.size]
        for mine, theirs in zip(self.gpu.outputs, self.native.outputs, strict=True):
            mine[...] = theirs


def plain(source: Source, target: str | Target, shapes: Shapes | None = None) -> Program:
    """A program by default schedules: without logs, the same nodes make the same steps on every target."""
    machine = resolve_target(target)
    return build(source, machine, shapes, name="m", library=Library(target_hash(machine)))


def turns(here: Program, there: Program, wanted: Set[str] | None = None) -> Iterator[Turn]:
    """The first step of every kernel of `there` (or of those `wanted`), on memory that `here` computed."""
    assert [s.label for s in here.steps] == [s.label for s in there.steps]
    assert here.places == there.places and here.arena_bytes == there.arena_bytes
    kernels = {k.name: k for k in there.kernels if wanted is None or k.name in wanted}
    if not kernels:
        return
    native, gpu = Session(here), Emulator(there)
    inputs = make_inputs(spec_of(here).inputs, here.graph, seed=0)
    native.set_inputs(inputs)
    gpu.set_inputs(inputs)
    for i, step in enumerate(there.steps):
        if not kernels:
            return
        turn = Turn(step, kernels[step.kernel], gpu, native) if step.kernel in kernels else None
        if turn is not None:
            turn.sync()
        native.run_step(i)
        if turn is not None:
            del kernels[step.kernel]
            yield turn


def checked(turn: Turn, ptx: str, blocks: int) -> float:
    """Run a kernel in the interpreter of threads, at most `blocks` blocks of each of its grids, and its PTX on the same
    blocks: all memory that it may write must be equal, bit by bit. Returns how far what it wrote is from what
    native code wrote: the largest error relative to the largest magnitude (integers must be equal)."""
    kernel, launch = turn.kernel, launch_of(turn.kernel)
    roles = [p.role == "out" for p in kernel.params]
    arrays = [(turn.memory(k).copy(), not out) for k, out in enumerate(roles)]
    # several nests have grids of their own, so that a sample of them is no sample of the launch
    most = launch.blocks if len(kernel.body) > 1 else min(blocks, launch.blocks)
    some = np.unique(np.linspace(0, launch.blocks - 1, most).astype(np.int64))
    windows = turn.windows()
    written = simt.run(kernel, windows, most)
    Machine(ptx, kernel.name).run([int(b) for b in some], launch.threads, arrays, launch.blocks)
    for k, (mine, readonly) in enumerate(arrays):
        if not readonly:
            assert np.array_equal(mine, turn.memory(k)), f"{kernel.name} ({turn.step.label})"
    got = {n: windows[n][mask].copy() for n, mask in written.items()}
    turn.sync()
    worst = 0.0
    for name, mask in written.items():
        assert mask.any(), f"{kernel.name} wrote nothing to {name}"
        worst = max(worst, _error(got[name], windows[name][mask], windows[name]))
    return worst


def executed(source: Source, target: str | Target, blocks: int, tolerance: float = 1e-4) -> int:
    """`checked` for every distinct kernel of a model; returns how many there are."""
    there = plain(source, target)
    ptx = gpu_assembly(there)
    count = 0
    for turn in turns(plain(source, "host"), there):
        assert checked(turn, ptx, blocks) <= tolerance
        count += 1
    return count


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
