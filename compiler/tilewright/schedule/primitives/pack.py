"""pack(buffer, dims): re-lay a constant at compile time in the order a kernel reads it.

    B: const [K, N], dims = [[1, 32, outer], [0, 0, whole], [1, 32, inner]]
    B[k, j]   ->   B'[j // 32, k, j % 32],  B': const [ceil(N / 32), K, 32], padding is zero

Legal iff the buffer is a constant of the kernel that was not packed before and no element gets lost:
every dim of it is there once as a whole, or as outer and inner piece of one tile size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from tilewright.core.index import Ix
from tilewright.errors import ScheduleError
from tilewright.loop.ir import Buffer, Expr, Kernel, Load, Pack, PackDim, dense
from tilewright.loop.rewrite import map_block, map_loads, simplify_kernel


def pack(kernel: Kernel, buffer: str, dims: Sequence[Sequence[Any]]) -> Kernel:
    """Pack constant `buffer`; each entry of `dims` is (source dim, tile, "whole|outer|inner")."""
    param = next((p for p in kernel.params if p.buffer.name == buffer), None)
    if param is None or param.role != "const":
        raise ScheduleError(f"`{buffer}` is not a constant of this kernel")
    if any(p.buffer == buffer for p in kernel.packs):
        raise ScheduleError(f"`{buffer}` is packed already")
    layout = tuple(PackDim(*d) for d in dims)
    _require_all(param.buffer, layout)
    shape = tuple(_extent(param.buffer, d) for d in layout)
    packed = dense(buffer, param.buffer.dtype, shape, "const")

    def at(index: tuple[Ix, ...], d: PackDim) -> Ix:
        i = index[d.source]
        return i if d.part == "whole" else i // d.tile if d.part == "outer" else i % d.tile

    def load(e: Load) -> Expr:
        if e.buffer != buffer:
            return e
        return Load(buffer, tuple(at(e.index, d) for d in layout), e.dtype)

    params = tuple(replace(p, buffer=packed) if p is param else p for p in kernel.params)
    body = map_block(kernel.body, expr=lambda e: map_loads(e, load))
    entry = Pack(buffer, shape, layout)
    return simplify_kernel(replace(kernel, params=params, body=body, packs=(*kernel.packs, entry)))


def _extent(source: Buffer, d: PackDim) -> int:
    n = source.shape[d.source]
    if d.part == "whole":
        return n
    return -(-n // d.tile) if d.part == "outer" else d.tile


def _require_all(source: Buffer, layout: Sequence[PackDim]) -> None:
    """Raises `ScheduleError` unless the layout holds every dim of the source exactly once."""
    for i in range(len(source.shape)):
        parts = sorted((d.part, d.tile) for d in layout if d.source == i)
        tile = parts[0][1] if parts else 0
        if parts != [("whole", 0)] and (parts != [("inner", tile), ("outer", tile)] or tile < 1):
            raise ScheduleError(f"dim {i} must be packed once as a whole, or as outer and inner")
    if any(d.source not in range(len(source.shape)) for d in layout):
        raise ScheduleError(f"the buffer has {len(source.shape)} dims")
