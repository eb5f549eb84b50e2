"""Some lanes of a vector in memory, where the target has no masked loads and stores.

In: an address, the number of lanes that count. Out: accesses of powers of two that touch exactly those.
Invariant: no byte beyond the active elements is read or written.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from tilewright.codegen import values
from tilewright.core.dtypes import DType

if TYPE_CHECKING:
    from tilewright.codegen.values import Builder


def load_pieces(b: Builder, ptr: str, dtype: DType, lanes: int, active: int) -> str:
    """The first `active` elements by loads of powers of two; zeros follow them."""
    element = values.memory_type(dtype)
    kind, out = f"<{lanes} x {element}>", "zeroinitializer"
    for start, size in _pieces(active):
        at = _shifted(b, ptr, start * dtype.bytes)
        if size == 1:
            one = b.op(f"load {element}, ptr {at}, align {dtype.bytes}")
            out = b.op(f"insertelement {kind} {out}, {element} {one}, i32 {start}")
            continue
        part = b.op(f"load <{size} x {element}>, ptr {at}, align {dtype.bytes}")
        spread = ", ".join(f"i32 {i if i < size else 0}" for i in range(lanes))
        part = b.op(
            f"shufflevector <{size} x {element}> {part}, <{size} x {element}> poison, "
            f"<{lanes} x i32> <{spread}>"
        )
        inside = range(start, start + size)
        picks = ", ".join(f"i32 {lanes + i - start if i in inside else i}" for i in range(lanes))
        out = b.op(f"shufflevector {kind} {out}, {kind} {part}, <{lanes} x i32> <{picks}>")
    return out


def store_pieces(b: Builder, ptr: str, ssa: str, dtype: DType, lanes: int, active: int) -> None:
    """Stores the first `active` elements by stores of powers of two."""
    element = values.memory_type(dtype)
    kind = f"<{lanes} x {element}>"
    for start, size in _pieces(active):
        at = _shifted(b, ptr, start * dtype.bytes)
        if size == 1:
            one = b.op(f"extractelement {kind} {ssa}, i32 {start}")
            b.emit(f"store {element} {one}, ptr {at}, align {dtype.bytes}")
            continue
        picks = ", ".join(f"i32 {start + i}" for i in range(size))
        part = b.op(f"shufflevector {kind} {ssa}, {kind} poison, <{size} x i32> <{picks}>")
        b.emit(f"store <{size} x {element}> {part}, ptr {at}, align {dtype.bytes}")


def _shifted(b: Builder, ptr: str, offset: int) -> str:
    return b.op(f"getelementptr i8, ptr {ptr}, i32 {offset}") if offset else ptr


def _pieces(n: int) -> Iterator[tuple[int, int]]:
    """(start, size) of powers of two that add up to n, the largest first."""
    start = 0
    while start < n:
        size = 1 << (n - start).bit_length() - 1
        yield start, size
        start += size
