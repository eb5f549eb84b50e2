"""A function over arrays as the entry point that `runtime.model.Model` calls.

In: what runs a model somewhere else. Out: a function of addresses, like the native one.
Invariant: arrays lie over the caller's memory: inputs are copied on their way out only, outputs once.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence

import numpy as np

from tilewright.runtime.model import Array, Entry, Spec, TensorSpec


def entry_of(spec: Spec, call: Callable[[list[Array]], Sequence[Array]]) -> Entry:
    """The entry point that reads its inputs, hands them to `call` and stores what that returns."""

    def entry(inputs: int, outputs: int, arena: int) -> int:
        results = call(_arrays(inputs, spec.given))
        for mine, theirs in zip(_arrays(outputs, spec.outputs), results, strict=True):
            mine[...] = theirs
        return 0

    return entry


def _arrays(address: int, tensors: Sequence[TensorSpec]) -> list[Array]:
    """Arrays over the memory that a table of pointers points to."""
    pointers = (ctypes.c_void_p * max(len(tensors), 1)).from_address(address)
    out: list[Array] = []
    for pointer, t in zip(pointers, tensors, strict=False):
        if not t.nbytes or pointer is None:
            out.append(np.empty(t.shape, t.dtype))
            continue
        raw = memoryview((ctypes.c_uint8 * t.nbytes).from_address(pointer)).cast("B")
        out.append(np.frombuffer(raw, np.dtype(t.dtype)).reshape(t.shape))
    return out
