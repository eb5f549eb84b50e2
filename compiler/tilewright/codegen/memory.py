"""Loads and stores of a kernel as LLVM instructions.

In: accesses to buffers, in a vector loop or outside. Out: one access for lanes that are neighbours, one per run for
lanes that come in runs, else one per lane. Invariant: no access is wider than the schedule proved legal: partial
vectors are masked, or blended where they lie in registers.
"""

from __future__ import annotations

from tilewright.codegen.addressing import Addressing, Slot
from tilewright.codegen.runs import load_runs, store_runs
from tilewright.codegen.values import Value
from tilewright.core.index import Ix, coefficient, substitute
from tilewright.errors import IRError
from tilewright.loop.ir import Kernel, Load
from tilewright.schedule.target import Target


class Memory(Addressing):
    """Adds accesses to buffers to index arithmetic."""

    def __init__(self, kernel: Kernel, target: Target) -> None:
        super().__init__(target.pointer_bytes)
        self.kernel = kernel
        self.target = target
        self.masked = target.masked
        self.helium = "mve" in target.dot

    def load(self, e: Load) -> Value:
        slot = self.slots[e.buffer]
        dtype = slot.buffer.dtype
        offset = self.offset(slot, e.index)
        varying = self.lane_names(offset)
        if not varying:
            return self.load_scalar(slot, offset)
        vec = self.vector
        assert vec is not None
        unit = varying == {vec.var} and coefficient(offset, vec.var) == 1
        if unit:
            ptr = self.address(slot, substitute(offset, {vec.var: Ix(0)}))
            full = self.unmasked(slot, e.index)
            return self.load_vector(ptr, dtype, vec.lanes, None if full else vec.active)
        in_runs = None if self.helium else load_runs(self, slot, offset)
        if in_runs is not None:
            return in_runs
        lanes = [self.load_scalar(slot, self.lane_offset(offset, i)) for i in range(vec.count)]
        return self.pack_lanes(lanes, vec.lanes)

    def load_scalar(self, slot: Slot, offset: Ix) -> Value:
        align = self.alignment(slot, offset)
        return self.load_vector(self.address(slot, offset), slot.buffer.dtype, 1, None, align)

    def store(self, buffer: str, index: tuple[Ix, ...], value: Value) -> None:
        slot = self.slots[buffer]
        offset = self.offset(slot, index)
        varying = self.lane_names(offset)
        if not varying:
            if value.lanes > 1:
                raise IRError(f"{self.kernel.name}: a vector is stored to one element of {buffer}")
            align = self.alignment(slot, offset)
            self.store_vector(self.address(slot, offset), value, None, align)
            return
        vec = self.vector
        assert vec is not None
        value = self.splat(value, vec.lanes)
        if varying == {vec.var} and coefficient(offset, vec.var) == 1:
            ptr = self.address(slot, substitute(offset, {vec.var: Ix(0)}))
            partial = vec.active != vec.lanes
            if partial and slot.buffer.space == "register" and self.unmasked(slot, index):
                # Blend with what is there: SROA sees through this, not through a masked store.
                if not slot.private and not self.ends_row(slot, index):
                    value = self.blend(
                        self.load_vector(ptr, value.dtype, vec.lanes, None), value, vec.active
                    )
                partial = False
            self.store_vector(ptr, value, vec.active if partial else None)
            return
        if not self.helium and store_runs(self, slot, offset, value):
            return
        for i in range(vec.count):
            ptr = self.address(slot, self.lane_offset(offset, i))
            self.store_vector(ptr, self.extract(value, i), None)

    def ends_row(self, slot: Slot, index: tuple[Ix, ...]) -> bool:
        """Whether a partial vector is the last of a row of scratch: what it writes beyond is padding."""
        vec = self.vector
        assert vec is not None
        first = substitute(index[-1], {**self.scope.index, vec.var: Ix(0)})
        row = slot.buffer.shape[-1]
        return first.is_const and isinstance(vec.active, int) and first.const + vec.active >= row
