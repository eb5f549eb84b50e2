"""tensorize_mma(row, col, k, lane, held): tiles of 16 x 8 sums are held by a warp, multiplied by tensor cores.

    alloc t[16, 8]
    for row in 16: for col in 8: t[row, col] = 0
    for row in 16: for col in 8: for k in 16: t[row, col] = fma(a[row, k], b[k, col], t[row, col])
    for row in 16: for col in 8: y[row, col] = t[row, col]
      ->
    alloc t[32, 4]
    for lane in 32: for held in 4: t[lane, held] = 0
    for lane in 32: mma lane (row, col, k in 16): t[lane] += a[row, k] * b[k, col]
    for lane in 32: for held in 4: y[lane // 4 + .., lane % 4 * 2 + ..] = t[lane, held]

Legal iff all pairs of loops `row`, `col` have 16 and 8 independent iterations, `k` is in one of them and
a sum of products of loads that a tensor core computes, one moving with rows and one with columns, and the sums
lie in scratch of their own that is indexed by both. Floats may be added in another order; f32 operands
are rounded (see `Mma`).
"""

from __future__ import annotations

from dataclasses import replace

from tilewright.core.index import Ix, ix, variables
from tilewright.errors import ScheduleError
from tilewright.loop import mma
from tilewright.loop.ir import (
    Alloc,
    Cast,
    Expr,
    Fma,
    For,
    Kernel,
    Load,
    Mma,
    Stmt,
    Store,
    dense,
)
from tilewright.loop.rewrite import accesses, map_block, map_loads, substitute_block, walk
from tilewright.schedule.legality import carried, require_fresh, require_loop, require_serial


def tensorize_mma(kernel: Kernel, row: str, col: str, k: str, lane: str, held: str) -> Kernel:
    """Replace every pair of loops `row`, `col`, and the sum `k` in one of them."""
    for var in (row, col, k):
        require_serial(kernel, var)
    require_fresh(kernel, lane, held)
    names = _Names(row, col, k, lane, held)
    sums = _sums(kernel, names)
    dims = _dims(kernel, names, sums)
    pairs = 0

    def rewrite(s: Stmt) -> Stmt:
        nonlocal pairs
        match s:
            case Alloc(buffer) if buffer.name == sums:
                shape = list(buffer.shape)
                shape[dims[0]] = mma.LANES
                kept = [n for d, n in enumerate(shape) if d != dims[1]]
                return Alloc(dense(sums, buffer.dtype, (*kept, mma.HELD), buffer.space))
            case For(var=var) if var == row:
                pairs += 1
                return _by_lanes(s, names, sums, dims)
            case _:
                return s

    body = map_block(kernel.body, stmt=rewrite)
    if pairs != len(require_loop(kernel, col)):
        raise ScheduleError(f"there is a loop `{col}` that is not directly in `{row}`")
    return replace(kernel, body=body)


class _Names:
    def __init__(self, row: str, col: str, k: str, lane: str, held: str) -> None:
        self.row, self.col, self.k, self.lane, self.held = row, col, k, lane, held


def _sums(kernel: Kernel, names: _Names) -> str:
    """The buffer of the sums."""
    loops = require_loop(kernel, names.k)
    match [f.body for f in loops]:
        case [(Store(buffer, index, Fma(_, _, Load(same, at, _))),)] if (
            same == buffer and at == index and loops[0].extent.is_const
        ):
            return buffer
    raise ScheduleError(f"`{names.k}` is not a sum of products and nothing else")


def _dims(kernel: Kernel, names: _Names, sums: str) -> tuple[int, int]:
    """The dims of the sums that `row` and `col` index, the same everywhere."""
    found = {
        s.buffer.name
        for s in walk(kernel.body)
        if isinstance(s, Alloc) and s.buffer.space != "shared"
    }
    if sums not in found:
        raise ScheduleError(f"`{sums}` is not scratch of a thread: `stage` it")
    reached = [index for name, index, _ in accesses(kernel.body) if name == sums]
    places = {_place(index, names) for index in reached}
    dims = places.pop() if len(places) == 1 else None
    if dims is None:
        raise ScheduleError(
            f"`{sums}` is not indexed by `{names.row}` and `{names.col}` throughout"
        )
    return dims


def _place(index: tuple[Ix, ...], names: _Names) -> tuple[int, int] | None:
    """The dims that are `row` and `col` themselves, if nothing else moves with those."""
    found: list[int] = []
    for v in (names.row, names.col):
        moving = [d for d, i in enumerate(index) if v in variables(i)]
        if len(moving) != 1 or index[moving[0]] != ix(v):
            return None
        found += moving
    return found[0], found[1]


def _by_lanes(rows: For, names: _Names, sums: str, dims: tuple[int, int]) -> Stmt:
    """A pair of loops by lanes of a warp."""
    if len(rows.body) != 1 or not isinstance(rows.body[0], For) or rows.body[0].var != names.col:
        raise ScheduleError(f"`{names.col}` is not the only statement inside `{names.row}`")
    cols = rows.body[0]
    if (rows.extent, cols.extent) != (Ix(mma.ROWS), Ix(mma.COLS)):
        raise ScheduleError(
            f"`{names.row}` and `{names.col}` have {rows.extent} and {cols.extent} iterations: "
            f"{mma.ROWS} and {mma.COLS} are wanted"
        )
    body = cols.body
    if len(body) == 1 and isinstance(body[0], For) and body[0].var == names.k:
        return For(names.lane, Ix(mma.LANES), (_product(body[0], names, dims),))
    reason = carried(rows) or carried(cols)
    if reason:
        raise ScheduleError(reason)
    row, col = mma.position(names.lane, names.held)

    def at(index: tuple[Ix, ...]) -> tuple[Ix, ...]:
        return _held(index, names, dims, ix(names.held))

    def load(e: Load) -> Expr:
        return Load(sums, at(e.index), e.dtype) if e.buffer == sums else e

    def store(s: Stmt) -> Stmt:
        own = isinstance(s, Store) and s.buffer == sums
        return Store(sums, at(s.index), s.value) if own else s  # type: ignore[union-attr]

    inner = map_block(body, expr=lambda e: map_loads(e, load), stmt=store)
    inner = substitute_block(inner, {names.row: row, names.col: col})
    return For(names.lane, Ix(mma.LANES), (For(names.held, Ix(mma.HELD), inner),))


def _held(index: tuple[Ix, ...], names: _Names, dims: tuple[int, int], *last: Ix) -> tuple[Ix, ...]:
    """An index of the sums by lane, its last dim `last`."""
    moved = [ix(names.lane) if d == dims[0] else i for d, i in enumerate(index)]
    return (*(i for d, i in enumerate(moved) if d != dims[1]), *last)


def _product(loop: For, names: _Names, dims: tuple[int, int]) -> Mma:
    (store,) = loop.body
    assert isinstance(store, Store) and isinstance(store.value, Fma)
    a, b = (_operand(e) for e in (store.value.a, store.value.b))
    if names.col in _moving(a):
        a, b = b, a
    n = loop.extent.const
    for e, missing in ((a, names.col), (b, names.row)):
        if missing in _moving(e):
            raise ScheduleError(f"`{e.buffer}` moves with `{names.row}` and with `{names.col}`")
    if mma.sum_type(a.dtype, b.dtype) is not store.value.dtype or n not in mma.depths(a.dtype):
        raise ScheduleError(
            f"tensor cores do not add {n} products of {a.dtype} and {b.dtype} in {store.value.dtype}"
        )
    if names.k in {v for i in store.index for v in variables(i)}:
        raise ScheduleError(f"`{names.k}` moves the sums: it is not a reduction")
    index = _held(store.index, names, dims)
    return Mma(ix(names.lane), names.row, names.col, names.k, n, store.buffer, index, a, b)


def _operand(e: Expr) -> Load:
    match e:
        case Load() | Cast(Load(), _):
            return e if isinstance(e, Load) else e.a  # type: ignore[return-value]
    raise ScheduleError("a factor of the products is not a load")


def _moving(e: Load) -> set[str]:
    return {v for i in e.index for v in variables(i)}
