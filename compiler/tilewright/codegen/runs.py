"""Vector accesses whose lanes come in runs of neighbours, as in loops that were fused.

In: the address form of an access in a vector loop. Out: one access per run.
Invariant: all lanes count, and lanes of a run lie side by side; None (False) where there are no such runs.
"""

from __future__ import annotations

from tilewright.codegen.addressing import Addressing, Slot
from tilewright.codegen.values import Value, llvm_type
from tilewright.core.dtypes import BOOL
from tilewright.core.index import Ix


def load_runs(at: Addressing, slot: Slot, offset: Ix) -> Value | None:
    """The lanes of a load, run by run."""
    starts, width = _runs(at, slot, offset)
    if width == 1:
        return None
    dtype = slot.buffer.dtype
    parts = [at.load_vector(at.address(slot, o), dtype, width, None).ssa for o in starts]
    while len(parts) > 1:
        kind = llvm_type(dtype, width)
        width *= 2
        picks = ", ".join(f"i32 {i}" for i in range(width))
        parts = [
            at.op(f"shufflevector {kind} {x}, {kind} {y}, <{width} x i32> <{picks}>")
            for x, y in zip(parts[::2], parts[1::2], strict=True)
        ]
    return Value(parts[0], dtype, width)


def store_runs(at: Addressing, slot: Slot, offset: Ix, value: Value) -> bool:
    """Store a vector run by run."""
    starts, width = _runs(at, slot, offset)
    if width == 1:
        return False
    for i, start in enumerate(starts):
        picks = ", ".join(f"i32 {i * width + k}" for k in range(width))
        part = at.op(
            f"shufflevector {value.type} {value.ssa}, {value.type} poison, <{width} x i32> <{picks}>"
        )
        at.store_vector(at.address(slot, start), Value(part, value.dtype, width), None)
    return True


def _runs(at: Addressing, slot: Slot, offset: Ix) -> tuple[list[Ix], int]:
    """Where runs begin and how many lanes they have: the longest power of two, 1 if there are none."""
    vec = at.vector
    assert vec is not None
    if vec.active != vec.lanes or slot.buffer.dtype is BOOL or at.lane_names(offset) != {vec.var}:
        return [], 1
    lanes = [at.lane_offset(offset, i) for i in range(vec.lanes)]
    width = vec.lanes // 2
    while width > 1:
        starts = lanes[::width]
        if all(o == starts[i // width] + i % width for i, o in enumerate(lanes)):
            return starts, width
        width //= 2
    return [], 1
