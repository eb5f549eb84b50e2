"""Kernels in a target's emulator, on data of a case.

In: finished kernels over the same parameters, a target, arrays. Out: each kernel's outputs, or what went wrong.
Invariant: all kernels are one program that reads the same inputs; outputs are what lies at the elements of their
buffers, rows apart in memory or not.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from tilewright.device.choose import EMULATOR, device_for
from tilewright.device.linux import LinuxProgram
from tilewright.loop.ir import Buffer, Kernel
from tilewright.schedule.target import Target
from tilewright.testing.native import Array
from tilewright.testing.worker import Outcome
from tilewright.tune.board import emulated, run_on_emulator
from tilewright.tune.data import span
from tilewright.tune.remote import unit

#: What a kernel of a test may take in an emulator, starting it included.
SECONDS = 60.0


def can_emulate(target: Target) -> bool:
    """Whether this machine runs the target's code in an emulator."""
    if target.board is not None:
        return emulated(target)
    return bool(target.emulator) and shutil.which(target.emulator[0]) is not None


def outcomes(
    kernels: Sequence[Kernel], target: Target, arrays: Mapping[str, Array]
) -> list[Outcome] | None:
    """What each kernel computes, in order; None where a buffer runs backwards, which devices are not given.

    Raises `TilewrightError` where code cannot be made, and on a board, where all is one program, if it fails.
    """
    params = kernels[0].params
    if any(s < 0 for p in params for s in p.buffer.strides):
        return None
    values = {
        p.buffer.name: arrays[p.buffer.name]
        if p.role == "const"
        else _memory(p.buffer, arrays[p.buffer.name])
        for p in params
        if p.role != "out"
    }
    results = [p.buffer for p in params if p.role == "out"]
    if target.board is not None:
        _, found = run_on_emulator(kernels, target, values)
        return [Outcome(_elements(results, memory)) for memory in found]
    units = [replace(unit(f"kernel{i}", k, target, values), data=0) for i, k in enumerate(kernels)]
    inputs = [values[p.buffer.name] for p in params if p.role == "in"]
    with LinuxProgram(units, target.triple, device_for(target, EMULATOR)) as program:
        runs = program.run([inputs], 0, outputs=True, timeout=SECONDS)
    return [
        Outcome({}, "crash", r.error) if r.error else Outcome(_elements(results, r.outputs))
        for r in runs
    ]


def _memory(b: Buffer, values: Array) -> Array:
    """The memory of a buffer with these elements, all other bytes set."""
    flat = np.full(span(b) * b.dtype.bytes, 0xA5, np.uint8).view(b.dtype.numpy)
    if b.dtype.kind == "bool":
        flat[...] = True
    _window(b, flat)[...] = values
    return flat


def _window(b: Buffer, flat: Array) -> Array:
    strides = tuple(s * flat.itemsize for s in b.strides)
    return np.lib.stride_tricks.as_strided(flat, b.shape, strides)


def _elements(buffers: Sequence[Buffer], memory: Sequence[Array]) -> dict[str, Array]:
    pairs = zip(buffers, memory, strict=True)
    return {b.name: np.array(_window(b, m.reshape(-1).view(b.dtype.numpy))) for b, m in pairs}
