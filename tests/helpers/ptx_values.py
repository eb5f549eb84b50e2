"""What instructions of PTX compute: arithmetic, conversions, fragments of `mma.sync`.

In: values of many threads. Out: the same, by the "PTX ISA".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Lanes = npt.NDArray[Any]

TYPES = {
    "b8": np.uint8, "u8": np.uint8, "s8": np.int8, "b16": np.uint16, "u16": np.uint16, "s16": np.int16,
    "b32": np.uint32, "u32": np.uint32, "s32": np.int32, "b64": np.uint64, "u64": np.uint64, "s64": np.int64,
    "f16": np.float16, "f32": np.float32, "f64": np.float64,
}  # fmt: skip


def isa_a(lane: int, i: int, size: int) -> tuple[int, int]:
    """(row, column) of element i of a thread's fragment of A, whose elements have `size` bytes: the formulas
    of the PTX ISA, "Matrix Fragments for mma.m16n8k4 / k8 / k16 / k32"."""
    group, thread = lane >> 2, lane % 4
    if size == 2:
        row = group if i < 2 or 4 <= i < 6 else group + 8
        return row, thread * 2 + (i & 1) + (8 if i >= 4 else 0)
    if size == 4:
        return group if i in (0, 2) else group + 8, thread if i < 2 else thread + 4
    row = group if i < 4 or 8 <= i < 12 else group + 8
    return row, thread * 4 + (i & 3) + (16 if i >= 8 else 0)


def isa_b(lane: int, i: int, size: int) -> tuple[int, int]:
    """The same for B: (row, column), its rows along the sum."""
    group, thread = lane >> 2, lane % 4
    if size == 2:
        return thread * 2 + (i & 1) + (8 if i >= 2 else 0), group
    if size == 4:
        return (thread, group) if i == 0 else (thread + 4, group)
    return thread * 4 + (i & 3) + (16 if i >= 4 else 0), group


def isa_c(lane: int, i: int) -> tuple[int, int]:
    """The same for the sums, which all types have in the same places."""
    return (lane >> 2) + (8 if i >= 2 else 0), lane % 4 * 2 + (i & 1)


def gathered(words: Sequence[Lanes], kind: str, length: int, rows: bool) -> Lanes:
    """A warp's operand from its registers; tf32 ignores the low 13 bits."""
    types = {"f16": np.float16, "tf32": np.float32, "s8": np.int8, "u8": np.uint8}
    dtype = np.dtype(types[kind])
    out = np.zeros((16, length) if rows else (length, 8), dtype)
    bits = np.stack(words, axis=1)
    if kind == "tf32":
        bits = bits & np.uint32(0xFFFFE000)
    elements = np.ascontiguousarray(bits).view(dtype).reshape(32, -1)
    place = isa_a if rows else isa_b
    for lane in range(32):
        for i in range(elements.shape[1]):
            out[place(lane, i, dtype.itemsize)] = elements[lane, i]
    return out.astype(np.float64) if dtype.kind == "f" else out.astype(np.int64)


def converted(v: Lanes, parts: list[str]) -> Lanes:
    """`cvt`: rounding modes between floats and integers, widening, narrowing."""
    to = np.dtype(TYPES[parts[-2]]) if parts[-2] != "tf32" else np.dtype(np.uint32)
    with np.errstate(all="ignore"):
        if parts[-2] == "tf32":
            return (v.view(np.uint32) + np.uint32(0x1000)) & np.uint32(0xFFFFE000)
        if v.dtype.kind == "f":
            modes: dict[str, Callable[[Lanes], Lanes]] = {
                "rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil,
            }  # fmt: skip
            for name, mode in modes.items():
                v = mode(v) if name in parts else v
            if to.kind != "f":
                info = np.iinfo(to)
                wide = np.nan_to_num(v.astype(np.float64), nan=0.0, posinf=np.inf, neginf=-np.inf)
                low, high = wide <= info.min, wide >= info.max
                inside = np.where(low | high, 0, wide).astype(to)
                return np.where(low, info.min, np.where(high, info.max, inside)).astype(to)
        if "sat" in parts:
            return np.clip(v, np.iinfo(to).min, np.iinfo(to).max).astype(to)
        return v.astype(to)


def truncated(a: Lanes, b: Lanes) -> Lanes:
    out = [int(abs(int(x)) // abs(int(y))) * (1 if (x < 0) == (y < 0) else -1) for x, y in zip(a, b, strict=True)]  # fmt: skip
    return np.array(out, a.dtype)


def _left(x: Lanes, by: Lanes) -> Lanes:
    bits = 8 * x.dtype.itemsize
    return np.where(by >= bits, 0, x << np.minimum(by, bits - 1).astype(x.dtype)).astype(x.dtype)


def _right(x: Lanes, by: Lanes) -> Lanes:
    bits = 8 * x.dtype.itemsize
    moved = x >> np.minimum(by, bits - 1).astype(x.dtype)
    return moved if x.dtype.kind == "i" else np.where(by >= bits, 0, moved).astype(x.dtype)


def _prmt(a: Lanes, b: Lanes, which: Lanes) -> Lanes:
    both = a.astype(np.uint64) | b.astype(np.uint64) << np.uint64(32)
    out = np.zeros(a.shape, np.uint64)
    for i in range(4):
        pick = which.astype(np.uint64) >> np.uint64(4 * i) & np.uint64(0xF)
        byte = both >> (pick & np.uint64(7)) * np.uint64(8) & np.uint64(0xFF)
        sign = np.where(byte & np.uint64(0x80), np.uint64(0xFF), np.uint64(0))
        out |= np.where(pick & np.uint64(8), sign, byte) << np.uint64(8 * i)
    return out.astype(np.uint32)


def _bfe(a: Lanes, start: Lanes, length: Lanes) -> Lanes:
    mask = (np.uint64(1) << length.astype(np.uint64)) - np.uint64(1)
    return (a.astype(np.uint64) >> start.astype(np.uint64) & mask).astype(np.uint32)


def _bfi(a: Lanes, b: Lanes, start: Lanes, length: Lanes) -> Lanes:
    mask = ((np.uint64(1) << length.astype(np.uint64)) - np.uint64(1)) << start.astype(np.uint64)
    moved = a.astype(np.uint64) << start.astype(np.uint64) & mask
    return (moved | b.astype(np.uint64) & ~mask).astype(np.uint32)


COMPARE: Mapping[str, Callable[[Lanes, Lanes], Lanes]] = {
    "eq": np.equal, "ne": np.not_equal, "lt": np.less, "le": np.less_equal, "gt": np.greater,
    "ge": np.greater_equal,
}  # fmt: skip
LOGIC: Mapping[str, Callable[..., Lanes]] = {
    "and": np.logical_and, "or": np.logical_or, "xor": np.logical_xor, "not": np.logical_not,
}  # fmt: skip
SHIFTS: Mapping[str, Callable[[Lanes, Lanes], Lanes]] = {"shl": _left, "shr": _right}
BITS: Mapping[str, Callable[..., Lanes]] = {"prmt": _prmt, "bfe": _bfe, "bfi": _bfi}
PLAIN: Mapping[str, Callable[..., Lanes]] = {
    "add": np.add, "sub": np.subtract, "min": np.minimum, "max": np.maximum, "and": np.bitwise_and,
    "or": np.bitwise_or, "xor": np.bitwise_xor, "not": np.invert, "neg": np.negative, "abs": np.abs,
    "div": np.divide, "sqrt": np.sqrt,
}  # fmt: skip
