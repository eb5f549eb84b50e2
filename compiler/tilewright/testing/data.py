"""Data for tests of kernels, by kind.

In: a kind, a buffer, a seed. Out: an array of the buffer's shape.
Invariant: the same kind, buffer and seed give the same values everywhere.
"""

from __future__ import annotations

import zlib
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from tilewright.loop.ir import Buffer

#: integers     small whole numbers, no zeros: sums of products are exact, so nothing may differ
#: one_hot      one 1, zeros elsewhere: which operand an element came from
#: random       normally distributed floats, integers of the full range
#: adversarial  signed zeros, denormals, infinities, NaN, huge and tiny values, sums that cancel
#: cancelling   large values whose sums are small, all finite
Kind = Literal["integers", "one_hot", "random", "adversarial", "cancelling"]

Array = npt.NDArray[Any]


def make(kind: Kind, buffer: Buffer, seed: int) -> Array:
    """Values of a kind for a parameter; parameters of one kernel differ although they share a seed."""
    rng = np.random.default_rng([seed, zlib.crc32(buffer.name.encode())])
    dtype, shape = buffer.dtype.numpy, buffer.shape
    if buffer.dtype.kind == "bool":
        return np.asarray(rng.integers(0, 2, shape)).astype(dtype)
    if buffer.dtype.is_float:
        return np.asarray(_floats(kind, shape, rng, dtype)).astype(dtype)
    return np.asarray(_whole(kind, shape, rng, dtype)).astype(dtype)


def _floats(
    kind: Kind, shape: tuple[int, ...], rng: np.random.Generator, dtype: np.dtype[Any]
) -> Array:
    if kind == "integers":
        return np.asarray(rng.integers(1, 4, shape) * rng.choice((-1, 1), shape), np.float64)
    if kind == "one_hot":
        return _one_hot(shape, rng)
    values: Array = np.asarray(rng.standard_normal(shape))
    if kind == "cancelling":
        return np.asarray(values * 1e-3 + rng.choice((-1e4, 1e4), shape))
    if kind == "adversarial":
        special = np.array([
            0.0, -0.0, 1e-40, -1e-45, np.inf, -np.inf, np.nan, 3e38, -3e38, 1e-20, 88.9, -104.5, 1e6, 0.5,
        ])  # fmt: skip
        with np.errstate(over="ignore"):
            special = special.astype(dtype).astype(np.float64)
        where = rng.random(shape) < 0.3
        return np.asarray(np.where(where, rng.choice(special, shape), values))
    return values


def _whole(
    kind: Kind, shape: tuple[int, ...], rng: np.random.Generator, dtype: np.dtype[Any]
) -> Array:
    info = np.iinfo(dtype)
    if kind == "one_hot":
        return _one_hot(shape, rng)
    if kind == "integers":
        return np.asarray(rng.integers(0 if info.min == 0 else -3, 4, shape))
    if kind == "random":
        return np.asarray(rng.integers(info.min, info.max, shape, dtype=dtype, endpoint=True))
    ends = np.array([info.min, info.max, 0, 1, info.max // 2], dtype)
    return np.asarray(rng.choice(ends, shape))


def _one_hot(shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    out = np.zeros(shape)
    if out.size:
        out.reshape(-1)[rng.integers(out.size)] = 1
    return out
