"""Run a program step by step in the interpreter that models a GPU.

In: a `Program` whose kernels are bound to blocks and threads. Out: results, and every value in memory.
Invariant: memory is laid out as on the device (arena, weights, strided windows), so that what is wrong in
a plan shows here, too. This is how CUDA programs are checked where there is no GPU.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from tilewright.graph.ir import Array
from tilewright.loop import simt
from tilewright.loop.ir import Buffer
from tilewright.program import Program, Step
from tilewright.session import read_value


class Emulator:
    """Arena, weights and tensors of one program, and its kernels run by `loop.simt`."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.kernels = {k.name: k for k in program.kernels}
        self.weights = np.frombuffer(program.weights, np.uint8)
        # poison: what is read before it is written shows
        self.arena = np.full(max(program.arena_bytes, 1), 0xA5, np.uint8)
        self.inputs = [np.zeros(t.type.shape, t.type.dtype.numpy) for t in program.inputs]
        self.outputs = [np.zeros(t.type.shape, t.type.dtype.numpy) for t in program.outputs]

    def set_inputs(self, arrays: Sequence[Array] | Mapping[str, Array]) -> None:
        """Copy input values in (in order, or by name)."""
        names = [t.name for t in self.program.inputs]
        given = [arrays[n] for n in names] if isinstance(arrays, Mapping) else arrays
        for mine, new in zip(self.inputs, given, strict=True):
            mine[...] = new

    def run(self) -> list[Array]:
        """Run all steps; returns copies of the outputs. `IRError` names a race or a bad access."""
        for i in range(len(self.program.steps)):
            self.run_step(i)
        return [o.copy() for o in self.outputs]

    def run_step(self, i: int) -> None:
        """Run step `i` on what memory holds now."""
        step = self.program.steps[i]
        kernel = self.kernels[step.kernel]
        arrays = {
            p.buffer.name: self.window(p.buffer, step, k) for k, p in enumerate(kernel.params)
        }
        simt.run(kernel, arrays)

    def read(self, name: str) -> Array:
        """The value `name` as it lies in memory now; `KeyError` if no step materialises it."""
        return read_value(self.program, name, self.arena, self.inputs, self.outputs)

    def window(self, buffer: Buffer, step: Step, i: int) -> Array:
        """Parameter `i` of a step as a view of memory."""
        place = step.places[i]
        if place.base in ("arena", "weights"):
            flat: Array = self.arena if place.base == "arena" else self.weights
        else:
            tensors = self.inputs if place.base == "input" else self.outputs
            flat = tensors[place.number].reshape(-1).view(np.uint8)
        return view_of(buffer, flat, place.offset)


def view_of(buffer: Buffer, memory: Array, offset: int) -> Array:
    """A buffer in `memory` (bytes) whose first element is `offset` bytes from its start, as a strided view.

    Windows may run backwards along some dims: those are views from their lowest address."""
    size = buffer.dtype.bytes
    steps = list(zip(buffer.shape, buffer.strides, strict=True))
    start = offset + sum((n - 1) * min(s, 0) for n, s in steps) * size
    span = 1 + sum((n - 1) * abs(s) for n, s in steps)
    data = memory[start : start + span * size].view(buffer.dtype.numpy)
    strides = tuple(abs(s) * size for s in buffer.strides)
    view = np.lib.stride_tricks.as_strided(data, buffer.shape, strides)
    if all(s >= 0 for s in buffer.strides):
        return view
    return view[tuple(slice(None, None, -1 if s < 0 else 1) for s in buffer.strides)]
