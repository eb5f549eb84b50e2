"""A program running inside this process, step by step or as a whole.

In: a `Program`. Out: results, the time of single steps, and every value that lies in memory.
Invariant: the code is the same module an artifact holds; only the weights are passed as a pointer
instead of being part of the object.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Mapping, Sequence

import numpy as np

from tilewright.codegen.llvm import Jit
from tilewright.codegen.module import emit_parts
from tilewright.errors import TilewrightError
from tilewright.graph.ir import Array
from tilewright.program import Program, spec_of
from tilewright.runtime.model import aligned_bytes
from tilewright.runtime.spec import FIRST_FAULT

_RUN = ctypes.CFUNCTYPE(ctypes.c_int32, *[ctypes.c_void_p] * 5)
_STEP = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64)


class Session:
    """Native code, weights, arena and tensors of one program, for profiling and verification."""

    def __init__(self, program: Program, jit: Jit | None = None) -> None:
        self.program = program
        self.jit = jit or Jit(emit_parts(program.plan(), with_weights=False), program.target)
        self.weights = aligned_bytes(max(len(program.weights), 64))
        self.weights[: len(program.weights)] = np.frombuffer(program.weights, np.uint8)
        self.arena = aligned_bytes(max(program.arena_bytes, 64))
        self.inputs = [np.zeros(t.type.shape, t.type.dtype.numpy) for t in program.inputs]
        self.outputs = [np.zeros(t.type.shape, t.type.dtype.numpy) for t in program.outputs]
        self.sizes = np.array([s.high for s in program.sizes], np.int64)
        """Sizes to run at: the largest, until others are written here. Arrays keep the bound's shapes."""
        self._in = _pointers([*self.inputs, self.sizes] if program.sizes else self.inputs)
        self._out = _pointers(self.outputs)
        self._context = (ctypes.c_void_p * 4)(
            ctypes.addressof(self._in),
            ctypes.addressof(self._out),
            self.arena.ctypes.data,
            self.weights.ctypes.data,
        )
        self.main = _RUN(self.jit.address(f"{program.name}_main"))
        self._steps = [
            _STEP(self.jit.address(f"{program.name}_step{i}")) for i in range(len(program.steps))
        ]

    def set_inputs(self, arrays: Sequence[Array] | Mapping[str, Array]) -> None:
        """Copy input values in (in order, or by name)."""
        names = [t.name for t in self.program.inputs]
        given = [arrays[n] for n in names] if isinstance(arrays, Mapping) else arrays
        for mine, new in zip(self.inputs, given, strict=True):
            mine[...] = new

    def run(self) -> list[Array]:
        """Run the whole model on one thread; returns copies of the outputs."""
        code = self.main(
            ctypes.addressof(self._in),
            ctypes.addressof(self._out),
            self.arena.ctypes.data,
            self.weights.ctypes.data,
            None,
        )
        if code >= FIRST_FAULT and self.program.faults:
            raise spec_of(self.program).failed(code, self.arena)
        if code:
            raise TilewrightError(f"internal error: the compiled model returned {code}")
        return [o.copy() for o in self.outputs]

    def run_step(self, i: int) -> None:
        """Run one step on the calling thread."""
        step = self.program.steps[i]
        self._steps[i](ctypes.addressof(self._context), 0, step.count)

    def time_step(self, i: int, repeats: int = 5) -> float:
        """Least wall time of step `i` in seconds over `repeats` runs."""
        call, context, count = (
            self._steps[i],
            ctypes.addressof(self._context),
            self.program.steps[i].count,
        )
        best = float("inf")
        for _ in range(repeats):
            start = time.perf_counter()
            call(context, 0, count)
            best = min(best, time.perf_counter() - start)
        return best

    def read(self, name: str) -> Array:
        """The value `name` as it lies in memory now; `KeyError` if no step materialises it."""
        return read_value(self.program, name, self.arena, self.inputs, self.outputs)


def read_value(
    program: Program, name: str, arena: Array, inputs: Sequence[Array], outputs: Sequence[Array]
) -> Array:
    """The value `name` of a program from the bytes of its arena, its inputs and outputs."""
    place = program.placement
    window = place.storage[name]
    t = program.graph.types[name]
    at = program.places[window.root]
    base: Array
    if at.base == "arena":
        size = place.elements(window.root) * t.dtype.bytes
        base = arena[at.offset : at.offset + size]
    else:
        base = (inputs if at.base == "input" else outputs)[at.number]
    flat = base.reshape(-1).view(t.dtype.numpy)
    strides = tuple(s * t.dtype.bytes for s in window.strides)
    return np.array(
        np.lib.stride_tricks.as_strided(flat[window.offset :], t.shape, strides, writeable=False)
    )


def _pointers(arrays: Sequence[Array]) -> ctypes.Array[ctypes.c_void_p]:
    return (ctypes.c_void_p * max(len(arrays), 1))(*[a.ctypes.data for a in arrays])
