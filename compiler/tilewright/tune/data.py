"""Data for checking a kernel, and when two results are the same.

Data are small whole numbers: sums of products are exact in any order, so a wrong operand or a missed
tail shows as a difference of at least one. What is left (divisions, exponentials) is held to a bound that
grows with the length of the kernel's sums.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from tilewright.loop.ir import Buffer
from tilewright.runtime.model import aligned_bytes

Array = npt.NDArray[Any]


def departure(want: Array, mine: Array, depth: int) -> str:
    """How a result departs from the expected one, for sums of `depth` terms; empty if it does not."""
    if not np.issubdtype(want.dtype, np.floating):
        if np.array_equal(mine, want):
            return ""
        return f"{int(np.sum(mine != want))} of {want.size} elements differ"
    same = (mine == want) | (np.isnan(mine) & np.isnan(want))
    if same.all():
        return ""
    finite = want[np.isfinite(want) & (np.abs(want) < 1e30)]
    scale = float(np.abs(finite).max()) if finite.size else 1.0
    bound = float(np.finfo(want.dtype).eps) * (16 + depth) * max(scale, 1e-30)
    with np.errstate(all="ignore"):
        off = np.where(same, 0.0, np.abs(mine.astype(np.float64) - want))
    worst = float(np.max(np.where(np.isnan(off), np.inf, off)))
    return f"off by {worst:.3g}, the bound is {bound:.3g}" if worst > bound else ""


def span(buffer: Buffer) -> int:
    """Elements between the first and the last one of a strided window."""
    return 1 + sum((n - 1) * abs(s) for n, s in zip(buffer.shape, buffer.strides, strict=True))


def memory(buffer: Buffer) -> Array:
    dtype = np.dtype(buffer.dtype.numpy)
    size = span(buffer) * dtype.itemsize
    return aligned_bytes(max(64, size))[:size].view(dtype)


def aligned(array: Array) -> Array:
    out: Array = aligned_bytes(max(64, array.nbytes))[: array.nbytes].view(array.dtype)
    out[...] = array.reshape(-1)
    return out.reshape(array.shape)


def make_data(buffer: Buffer, rng: np.random.Generator) -> Array:
    """Small whole numbers without zero for floats, the full range for bytes; constants keep shape."""
    dtype = np.dtype(buffer.dtype.numpy)
    n = span(buffer)
    if dtype.kind == "f":
        data = rng.integers(1, 4, n) * rng.choice((-1, 1), n)
    elif dtype.kind == "b":
        data = rng.integers(0, 2, n)
    elif dtype.itemsize == 1:
        low = -128 if dtype.kind == "i" else 0
        data = rng.integers(low, low + 256, n)
    else:
        data = rng.integers(0 if dtype.kind == "u" else -100, 101, n)
    out = memory(buffer)
    out[...] = data.astype(dtype)
    return out.reshape(buffer.shape) if buffer.space == "const" else out
