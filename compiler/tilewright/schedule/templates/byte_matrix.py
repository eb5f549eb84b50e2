"""Products and convolutions of bytes where one instruction multiplies two rows by two columns (`smmla` of Armv8.6).

In: an unscheduled integer contraction with constant weights. Out: a trace, or the space of such traces, whose
vectors of four lanes are squares of two pixels and two channels; None where that does not come out even.
Invariant: lane q of a square is pixel q // 2 and channel q % 2, from the first value of a sum to the store of the
result, which is what code generation makes one instruction of (`codegen.dot_matrix`).

    pixels 2, channels 2  --fuse-->  lane 4: acc[lane] += dot(8: x[lane // 2, :], w[lane % 2, :])
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tilewright.errors import ScheduleError
from tilewright.loop.ir import Kernel
from tilewright.loop.rewrite import loops
from tilewright.schedule.space import Choice, Space, Value, upto
from tilewright.schedule.target import Target
from tilewright.schedule.templates.dots import dot_loop, dot_types
from tilewright.schedule.templates.draft import (
    Draft,
    pack_panels,
    parallelize_outer,
    volume,
)
from tilewright.schedule.templates.tiles import pieces
from tilewright.schedule.trace import Trace

#: Products that one instruction adds to a sum.
DEPTH = 8
#: Types of pixels and weights that there is an instruction for.
_KINDS = {("i8", "i8"), ("u8", "u8"), ("u8", "i8")}
#: Registers that hold no sums and no operand that is kept: a pair on its way, one to spare.
_SPARE = 3

Weights = tuple[str, int, Sequence[int]]


@dataclass(frozen=True, slots=True)
class Squares:
    """A register tile: `pairs` of pixels along one loop, `rows` along the other one, `columns` pairs of channels."""

    pairs: int
    rows: int
    columns: int

    @property
    def sums(self) -> int:
        """Registers of sums."""
        return self.pairs * self.rows * self.columns

    @property
    def operands(self) -> int:
        """Registers of operands that are kept for a step of the sum, the fewer of the two."""
        return min(self.pairs * self.rows, self.columns)


@dataclass(frozen=True, slots=True)
class _Case:
    """What is to be tiled: the loop of pixels that is cut into pairs, the other one (or none), channels, sum."""

    paired: str
    other: str
    pairs: int
    rows: int
    columns: int
    depth: int
    last: str


def _case(
    kernel: Kernel, target: Target, rows: Sequence[str], cols: str, sums: Sequence[str],
    weights: Weights | None,
) -> _Case | None:  # fmt: skip
    d = Draft(kernel)
    present = [v for v in rows if d.has(v)]
    reduction = [v for v in sums if d.has(v)]
    if "smmla" not in target.dot or weights is None or d.extent(cols) % 2:
        return None
    last = dot_loop(kernel, target, reduction, weights)
    if not last or d.extent(last) % DEPTH or dot_types(kernel, weights) not in _KINDS:
        return None
    paired = next((v for v in reversed(present) if d.extent(v) % 2 == 0), "")
    if not paired:
        return None
    other = next((v for v in present if v != paired), "")
    depth = math.prod(d.extent(v) for v in reduction) // DEPTH
    high = d.extent(other) if other else 1
    return _Case(paired, other, d.extent(paired) // 2, high, d.extent(cols) // 2, depth, last)


def _fits(tile: Squares, target: Target) -> bool:
    return tile.sums + tile.operands + _SPARE <= target.registers


def _cycles(case: _Case, tile: Squares, target: Target) -> float:
    """Modelled cycles of the whole product, as `tiles.register_tile` counts them."""
    total = 0.0
    for count, pairs in pieces(case.pairs, tile.pairs):
        for lines, rows in pieces(case.rows, tile.rows):
            part = Squares(pairs, rows, tile.columns)
            reads = 2 * pairs * rows + tile.columns
            work = max(
                part.sums / target.fma_per_cycle, reads / target.loads_per_cycle, target.fma_latency
            )
            once = case.depth * (work + 0.1 * reads) + 4.0 * part.sums + 8.0
            total += count * lines * (case.columns // tile.columns) * once
    return total


def _tiles(case: _Case, target: Target) -> Iterator[Squares]:
    for columns in range(1, min(case.columns, 16) + 1):
        if case.columns % columns:
            continue
        for pairs in range(1, min(case.pairs, 16) + 1):
            for rows in range(1, min(case.rows, 8) + 1):
                tile = Squares(pairs, rows, columns)
                if _fits(tile, target):
                    yield tile


def _default(case: _Case, target: Target) -> Squares:
    return min(_tiles(case, target), key=lambda t: (_cycles(case, t, target), -t.sums))


def byte_matrix(
    kernel: Kernel, target: Target, rows: Sequence[str], cols: str, sums: Sequence[str],
    weights: Weights | None,
) -> Trace | None:  # fmt: skip
    """The trace of a product by squares; None where another one is wanted. Arguments as for `contraction`."""
    case = _case(kernel, target, rows, cols, sums, weights)
    if case is None or weights is None:
        return None
    try:
        return _trace(kernel, case, _default(case, target), rows, cols, sums, weights)
    except ScheduleError:  # loops between which something else stands
        return None


def byte_matrix_space(
    kernel: Kernel, target: Target, rows: Sequence[str], cols: str, sums: Sequence[str],
    weights: Weights | None,
) -> Space | None:  # fmt: skip
    """All tiles of such a product; None where it is none."""
    case = _case(kernel, target, rows, cols, sums, weights)
    if (
        case is None
        or weights is None
        or not byte_matrix(kernel, target, rows, cols, sums, weights)
    ):
        return None
    start = _default(case, target)
    params: dict[str, tuple[Value, ...]] = {
        "pairs": upto(case.pairs, *range(1, 17)),
        "rows": upto(case.rows, *range(1, 9)),
        "columns": tuple(c for c in range(1, 17) if case.columns % c == 0),
    }
    default: dict[str, Value] = {
        "pairs": start.pairs, "rows": start.rows, "columns": start.columns
    }  # fmt: skip

    def tile(choice: Choice) -> Squares:
        return Squares(*(int(choice[k]) for k in ("pairs", "rows", "columns")))

    def build(choice: Choice) -> Trace:
        t = tile(choice)
        if not _fits(t, target):
            raise ScheduleError(f"a tile of {t.pairs * t.rows} x {t.columns} squares spills")
        return _trace(kernel, case, t, rows, cols, sums, weights)

    def cost(choice: Choice) -> float:
        t = tile(choice)
        return _cycles(case, t, target) if _fits(t, target) else math.inf

    return Space("byte-matrix", params, default, build, cost)


def _trace(
    kernel: Kernel, case: _Case, tile: Squares, rows: Sequence[str], cols: str, sums: Sequence[str],
    weights: Weights,
) -> Trace:  # fmt: skip
    d = Draft(kernel)
    work = volume(kernel)
    reduction = [v for v in sums if d.has(v)]
    names = [v for v in loops(kernel.body) if v not in reduction]
    head = [v for v in names if v not in {*rows, cols}]
    pack_panels(d, weights, head, 2 * tile.columns, DEPTH)
    inner: list[str] = []
    outer: list[str] = []
    d.do("split", case.paired, 2, f"{case.paired}p", f"{case.paired}r")
    for var in (v for v in rows if d.has(v) or v == case.paired):
        if var == case.paired:
            d.tile(f"{var}p", tile.pairs, outer, inner)
        else:
            d.tile(var, tile.rows, outer, inner)
    lane = cols
    if tile.columns < case.columns:
        d.do("split", cols, 2 * tile.columns, f"{cols}o", f"{cols}t")
        outer.insert(0, f"{cols}o")
        lane = f"{cols}t"
    if tile.columns > 1:
        d.do("split", lane, 2, f"{cols}v", f"{cols}r")
        keeps_pixels = tile.pairs * tile.rows < tile.columns  # what the innermost loops read stays
        inner.insert(0 if keeps_pixels else len(inner), f"{cols}v")
        lane = f"{cols}r"
    d.do("reorder", [*head, *outer, *inner, f"{case.paired}r", lane])
    d.do("fuse", f"{case.paired}r", lane, "square")
    d.do("stage", [*inner, "square"])
    d.do("split", case.last, DEPTH, f"{case.last}u", f"{case.last}q")
    steps = [v for v in [*reduction[:-1], f"{case.last}u"] if d.has(v)]
    d.do("reorder", [*steps, *inner, "square", f"{case.last}q"])
    d.do("tensorize", f"{case.last}q")
    for v in inner:
        d.do("unroll", v)
    d.do("vectorize", "square")
    parallelize_outer(d, work)
    return d.trace
