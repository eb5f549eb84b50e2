"""The interpreter's operations on arrays of lanes, one value per thread.

In: arrays of one shape. Out: arrays. Invariant: each lane has what `loop.interp` computes for it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from tilewright.core.dtypes import DType
from tilewright.loop import interp

Lanes = npt.NDArray[Any]


def _scalars(f: Any, dtype: Any, *arrays: Lanes) -> Lanes:
    """The interpreter's own scalar operation, element by element."""
    wide = np.broadcast_arrays(*arrays)
    flat = [f(*values) for values in zip(*[w.reshape(-1) for w in wide], strict=True)]
    return np.array(flat, dtype).reshape(wide[0].shape)


def unary(op: str, a: Lanes) -> Lanes:
    if op == "erf":
        return _scalars(lambda v: interp.unary("erf", v), a.dtype, a)
    return interp.unary_lanes(op, a)


def binary(op: str, a: Lanes, b: Lanes, dtype: DType) -> Lanes:
    if dtype.is_integer and op in ("div", "mod", "pow"):
        return _scalars(lambda x, y: interp.binary(op, x, y, dtype), dtype.numpy, a, b)
    return np.asarray(interp.binary(op, a, b, dtype))


def fma(a: Lanes, b: Lanes, c: Lanes) -> Lanes:
    if c.dtype == np.float32:
        return (a.astype(np.float64) * b + c).astype(np.float32)
    return np.asarray(a * b + c)


def cast(v: Lanes, dtype: DType) -> Lanes:
    if dtype.is_integer and v.dtype.kind == "f":
        info = np.iinfo(str(dtype.numpy))
        whole = np.nan_to_num(
            np.trunc(v.astype(np.float64)), nan=0.0, posinf=np.inf, neginf=-np.inf
        )
        low, high = whole <= info.min, whole >= info.max
        inside = np.where(low | high, 0.0, whole).astype(dtype.numpy)
        return np.where(low, info.min, np.where(high, info.max, inside)).astype(dtype.numpy)
    return v != 0 if dtype.kind == "bool" else v.astype(dtype.numpy)
