"""Analytic default schedules, shared by operator files of one kind.

In: an unscheduled kernel (loop names as the operator files define them) and a `Target`. Out: a trace.
Invariant: every number is derived from the target file and the kernel's own extents; a default is
always legal, whatever the shapes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tilewright.core.index import FloorDiv, Ix, Mod, coefficient, simplify, variables
from tilewright.errors import ScheduleError
from tilewright.loop.ir import Alloc, Buffer, Fma, For, Kernel, Load, Store
from tilewright.loop.rewrite import accesses, expressions, loads, loops, walk
from tilewright.schedule.target import Target
from tilewright.schedule.trace import Step, Trace, apply, step

#: Below this many operations per thread a second thread does not pay (see DESIGN.md, threads).
MIN_PARALLEL_WORK = 1 << 16


class Draft:
    """A trace under construction together with the kernel it has produced so far."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.steps: list[Step] = []

    def do(self, primitive: str, *args: object) -> None:
        """Apply a step; raises `ScheduleError` if it is refused."""
        s = step(primitive, *args)
        self.kernel = apply(self.kernel, (s,))
        self.steps.append(s)

    def try_(self, primitive: str, *args: object) -> bool:
        """Apply a step if it is legal."""
        try:
            self.do(primitive, *args)
        except ScheduleError:
            return False
        return True

    def extent(self, var: str) -> int:
        """Constant extent of loop `var`; 1 if the loop does not exist."""
        f = loops(self.kernel.body).get(var)
        return f.extent.const if f is not None and f.extent.is_const else 1

    def has(self, var: str) -> bool:
        return var in loops(self.kernel.body)

    @property
    def trace(self) -> Trace:
        return tuple(self.steps)


# ---------------------------------------------------------------- register tiles


@dataclass(frozen=True, slots=True)
class Tile:
    """A register tile: `rows` x `vectors` accumulators; `cost` in cycles for the whole problem."""

    rows: int
    vectors: int
    cost: float


def _tile_cycles(rows: int, vectors: int, depth: int, target: Target) -> float:
    """Cycles of one tile: `depth` steps of rows*vectors FMAs, plus writing the tile out."""
    fmas = rows * vectors / target.fma_per_cycle
    reads = (rows + vectors) / target.loads_per_cycle
    # Loads never overlap perfectly with arithmetic: charge a share of them on top.
    step = max(fmas, reads, target.fma_latency) + 0.1 * reads
    return depth * step + 2.0 * rows * vectors + 8.0


def register_tile(rows: int, cols: int, depth: int, target: Target, element_bytes: int = 4) -> Tile:
    """The tile with the least modelled time for a rows x cols x depth product.

    Accumulators, one row of B and one broadcast of A must fit the registers, so
    rows*vectors + vectors + 1 <= registers. Remainders are charged what they cost.
    """
    width = target.lanes(element_bytes)
    n_vectors = math.ceil(cols / width)
    best: Tile | None = None
    for vectors in range(1, min(n_vectors, 8) + 1):
        most = (target.registers - 1 - vectors) // vectors
        for r in range(1, min(max(most, 1), max(rows, 1)) + 1):
            cost = 0.0
            for count_r, size_r in _pieces(rows, r):
                for count_v, size_v in _pieces(n_vectors, vectors):
                    cost += count_r * count_v * _tile_cycles(size_r, size_v, depth, target)
            tile = Tile(r, vectors, cost)
            if best is None or cost < best.cost * 0.999 or (cost <= best.cost and r > best.rows):
                best = tile
    assert best is not None
    return best


def _pieces(n: int, size: int) -> Iterator[tuple[int, int]]:
    """n in pieces of `size`: (count, size) of the full ones and of the remainder."""
    if n // size:
        yield n // size, size
    if n % size:
        yield 1, n % size


def spatial_tile(height: int, width: int, rows: int) -> tuple[int, int]:
    """Shape (th, tw) of about `rows` pixels that wastes least on a height x width map."""
    best, best_waste = (1, min(width, rows)), math.inf
    for tw in range(1, min(width, rows) + 1):
        for th in range(1, min(height, rows // tw) + 1):
            tiles = math.ceil(width / tw) * math.ceil(height / th)
            waste = tiles * (rows + 2) - 0.001 * tw
            if waste < best_waste:
                best, best_waste = (th, tw), waste
    return best


# ---------------------------------------------------------------- contractions


def contraction(
    kernel: Kernel,
    target: Target,
    rows: Sequence[str],
    cols: str,
    reduction: Sequence[str],
    weights: tuple[str, int, Sequence[int]] | None,
    group: int = 1,
) -> Trace:
    """Register-tiled product, vectors along `cols`, accumulators in registers.

    rows       loops of output pixels, outermost first (one or two of them exist)
    cols       loop of output channels, innermost of the output loops
    reduction  loops of the sum, outermost first
    weights    (buffer, its dim along cols, its other dims in reduction order) if constant
    """
    d = Draft(kernel)
    names = list(loops(kernel.body))
    work = math.prod(d.extent(v) for v in names)
    nest = [v for v in names if v not in reduction]
    _tile(d, target, nest, rows, cols, reduction, weights, group=group)
    _parallel(d, work)
    return d.trace


def _tile(
    d: Draft,
    target: Target,
    names: Sequence[str],
    rows: Sequence[str],
    cols: str,
    reduction: Sequence[str],
    weights: tuple[str, int, Sequence[int]] | None,
    taps: int = 1,
    group: int = 1,
) -> None:
    """Tile one nest of output loops `names`; `taps` reduction loops stand side by side in it."""
    width = target.lanes(4)
    sums = [v for v in reduction if d.has(v)]
    depth = max(1, math.prod(d.extent(v) for v in sums) if taps == 1 else sum(map(d.extent, sums)))
    n = d.extent(cols)
    present = [v for v in rows if d.has(v)]
    extents = [d.extent(v) for v in present]
    tile = register_tile(math.prod(extents), n, depth, target)
    shape: tuple[int, ...] = ()
    if len(present) == 2:
        tile = _retile(extents, n, depth, target, tile)
        shape = spatial_tile(extents[0], extents[1], tile.rows)
    elif present:
        shape = (min(tile.rows, extents[0]),)
    nr = tile.vectors * width
    if weights is not None:
        buffer, along, rest = weights
        span = nr if group == 1 or n % nr == 0 else n
        dims = [[along, span, "outer"], *[[r, 0, "whole"] for r in rest], [along, span, "inner"]]
        d.do("pack", buffer, dims)
    inner: list[str] = []
    outer: list[str] = []
    for var, size in zip(present, shape, strict=True):
        if size == 1:
            outer.append(var)
        elif size < d.extent(var):
            d.do("split", var, size, f"{var}o", f"{var}i")
            outer.append(f"{var}o")
            inner.append(f"{var}i")
        else:
            inner.append(var)
    head = [v for v in names if d.has(v) and v not in {*present, cols}]
    lane = cols
    if n > nr:
        d.do("split", cols, nr, f"{cols}o", f"{cols}t")
        outer.insert(0, f"{cols}o")
        lane = f"{cols}t"
    if min(n, nr) > width:
        d.do("split", lane, width, f"{cols}v", f"{cols}l")
        inner.append(f"{cols}v")
        lane = f"{cols}l"
    nest = [*inner, lane]
    d.do("reorder", [*head, *outer, *nest])
    d.do("stage", nest)
    if taps == 1 and sums:
        d.do("reorder", [*sums, *nest])
    else:
        for v in sums:
            d.do("reorder", [v, *nest])
    for v in inner:
        d.do("unroll", v)
    d.do("vectorize", lane)


def _retile(extents: list[int], n: int, depth: int, target: Target, tile: Tile) -> Tile:
    """Choose the number of vectors again for the pixels a tile of this map really has."""
    width = target.lanes(4)
    n_vectors = math.ceil(n / width)
    best, best_cost = tile, math.inf
    for vectors in range(1, min(n_vectors, 8) + 1):
        most = (target.registers - 1 - vectors) // vectors
        if most < 1:
            continue
        th, tw = spatial_tile(extents[0], extents[1], most)
        cost = 0.0
        for ch, sh in _pieces(extents[0], th):
            for cw, sw in _pieces(extents[1], tw):
                for cv, sv in _pieces(n_vectors, vectors):
                    cost += ch * cw * cv * _tile_cycles(sh * sw, sv, depth, target)
        if cost < best_cost * 0.999:
            best, best_cost = Tile(most, vectors, cost), cost
    return best


def _parallel(d: Draft, work: int) -> None:
    """Run an outer loop on threads where there is enough work: the first one with enough iterations
    to balance, else the longest."""
    if work < MIN_PARALLEL_WORK or len(d.kernel.body) != 1 or not isinstance(d.kernel.body[0], For):
        return
    nest: list[For] = [d.kernel.body[0]]
    while len(nest[-1].body) == 1 and isinstance(nest[-1].body[0], For):
        nest.append(nest[-1].body[0])
    free = [f for f in nest if f.kind == "serial" and f.extent.is_const and f.extent.const > 1]
    if not free:
        return
    pick = next((f for f in free if f.extent.const >= 8), max(free, key=lambda f: f.extent.const))
    if pick is not nest[0]:
        before = [f.var for f in nest[: nest.index(pick)]]
        if not d.try_("reorder", [pick.var, *before]):
            pick = nest[0]
    d.try_("parallelize", pick.var)


# ---------------------------------------------------------------- windows over channels


def channelwise(
    kernel: Kernel, target: Target, rows: Sequence[str], cols: str, window: Sequence[str]
) -> Trace:
    """Depthwise convolution and pooling: vectors along channels, a block of pixels in registers.

    The window is unrolled, so neighbouring pixels of the block share their loads (LLVM removes the
    repeated ones) and the weights of a channel vector are loaded once per block.
    """
    d = Draft(kernel)
    width = target.lanes(4)
    taps = math.prod(d.extent(v) for v in window)
    n = d.extent(cols)
    unrolled = taps <= 25
    budget = max(1, (target.registers - (taps if taps <= 9 and target.registers > 16 else 2)) // 2)
    present = [v for v in rows if d.has(v)]
    inner: list[str] = []
    outer: list[str] = []
    sizes = _pixel_block([d.extent(v) for v in present], min(budget, 8) if unrolled else 4)
    for var, size in zip(present, sizes, strict=True):
        if size == 1:
            outer.append(var)
        elif size < d.extent(var):
            d.do("split", var, size, f"{var}o", f"{var}i")
            outer.append(f"{var}o")
            inner.append(f"{var}i")
        else:
            inner.append(var)
    lanes: list[str] = []
    if n > width:
        d.do("split", cols, width, f"{cols}o", f"{cols}l")
        outer.append(f"{cols}o")
        lanes = [f"{cols}l"]
    elif n > 1:
        lanes = [cols]
    head = [
        v for v in loops(d.kernel.body) if v not in {*inner, *outer, *lanes, *window}
    ]
    nest = [*inner, *lanes]
    d.do("reorder", [*head, *outer, *nest])
    if nest:
        d.do("stage", nest)
        sums = [v for v in window if d.has(v)]
        if sums:
            d.do("reorder", [*sums, *nest])
            if unrolled:
                for v in sums:
                    d.do("unroll", v)
        for v in inner:
            d.do("unroll", v)
        if lanes:
            d.do("vectorize", lanes[0])
    _parallel(d, taps * n * math.prod(d.extent(v) for v in rows))
    return d.trace


def _pixel_block(extents: list[int], budget: int) -> list[int]:
    """Block sizes per spatial loop: wide rather than high, no more than `budget` pixels."""
    if not extents:
        return []
    if len(extents) == 1:
        return [_even(extents[0], budget)]
    th = 2 if extents[0] >= 2 and budget >= 8 else 1
    tw = _even(extents[1], budget // th)
    return [*([1] * (len(extents) - 2)), th, tw]


def _even(n: int, most: int) -> int:
    """The block size <= most that leaves the smallest remainder, larger ones first."""
    if n <= most:
        return n
    return min(range(max(1, most // 2), most + 1), key=lambda b: (math.ceil(n / b) * (b + 1), -b))


# ---------------------------------------------------------------- entry points of operator files


def _weights(kernel: Kernel, cols: str, sums: Sequence[str]) -> tuple[str, int, list[int]] | None:
    """The constant operand that varies with `cols`: (buffer, its dim along cols, other dims).

    The other dims come in the order of the reduction loops that index them, outermost first, after
    those that no reduction loop touches.
    """
    constants = {p.buffer.name: p.buffer for p in kernel.params if p.role == "const"}
    for e in expressions(kernel.body):
        if not isinstance(e, Fma) or not isinstance(e.b, Load) or e.b.buffer not in constants:
            continue
        along = [d for d, i in enumerate(e.b.index) if cols in variables(i)]
        if len(along) != 1:
            return None
        rank: dict[int, int] = {}
        for d, i in enumerate(e.b.index):
            rank[d] = max((sums.index(v) + 1 for v in variables(i) if v in sums), default=0)
        rest = sorted((d for d in rank if d != along[0]), key=lambda d: (rank[d], d))
        return e.b.buffer, along[0], rest
    return None


def product(kernel: Kernel, target: Target) -> Trace:
    """Matrix product with loops b0.., m, n and reduction k."""
    found = loops(kernel.body)
    if "n" not in found:
        return row_reduction(kernel, target)
    return contraction(kernel, target, ["m"], "n", ["k"], _weights(kernel, "n", ["k"]))


def convolution(kernel: Kernel, target: Target) -> Trace:
    """Convolution with loops n, g, oh, ow, co and reductions kh, kw, ci."""
    sums = ["kh", "kw", "ci"]
    if "co" not in loops(kernel.body):
        return row_reduction(kernel, target)
    weights = _weights(kernel, "co", sums)
    group = loops(kernel.body)["g"].extent.const if "g" in loops(kernel.body) else 1
    return contraction(kernel, target, ["oh", "ow"], "co", sums, weights, group)


def depthwise(kernel: Kernel, target: Target) -> Trace:
    """Depthwise convolution or pooling with loops n, oh, ow, c and window kh, kw."""
    found = loops(kernel.body)
    if "c" not in found:
        return row_reduction(kernel, target)
    draft = Draft(kernel)
    weights = _weights(kernel, "c", ["kh", "kw"])
    if weights is not None:
        buffer, along, rest = weights
        draft.do("pack", buffer, [*[[r, 0, "whole"] for r in rest], [along, 0, "whole"]])
    return (*draft.trace, *channelwise(draft.kernel, target, ["oh", "ow"], "c", ["kh", "kw"]))


def phases(kernel: Kernel, target: Target) -> Trace:
    """Several nests in a row, each a small convolution (transposed convolution by phases)."""
    d = Draft(kernel)
    packed: set[str] = set()
    for top in [s for s in kernel.body if isinstance(s, For)]:
        names, sums = _nest_and_sums(top)
        cols = next((v for v in names if v.split("_")[0] == "co"), None)
        if cols is None or not sums:
            continue
        rows = [v for v in names if v.split("_")[0] in ("oh", "ow")]
        weights = _weights(Kernel(kernel.name, kernel.params, (top,)), cols, sums)
        if weights is not None and weights[0] in packed:
            weights = None
        elif weights is not None:
            packed.add(weights[0])
        _tile(d, target, names, rows, cols, sums, weights, len(sums))
    _parallel(d, _volume(kernel))
    return d.trace


def _nest_and_sums(top: For) -> tuple[list[str], list[str]]:
    """Perfectly nested output loops, then the loops found inside the innermost of them."""
    names = [top.var]
    f = top
    while len(f.body) == 1 and isinstance(f.body[0], For):
        f = f.body[0]
        names.append(f.var)
    return names, list(loops(f.body))


def reduction(kernel: Kernel, target: Target) -> Trace:
    """Reductions with kept loops o0.. and reduced loops r0..: along rows or down columns."""
    names = list(loops(kernel.body))
    kept = [v for v in names if v.startswith("o")]
    sums = [v for v in names if v.startswith("r")]
    known = _buffers(kernel)
    inputs = [
        (b, i) for b, i, store in accesses(kernel.body) if not store and known[b].space == "global"
    ]
    for v in kept:
        if all(_stride(known[b], i, v) in (0, 1) for b, i in inputs) and any(
            _stride(known[b], i, v) == 1 for b, i in inputs
        ):
            return column_reduction(kernel, target, v, sums)
    unit = next(
        (v for v in sums if any(_stride(known[b], i, v) == 1 for b, i in inputs)), None
    )
    d = Draft(kernel)
    if unit is not None and unit != sums[-1]:
        d.try_("reorder", [*[v for v in sums if v != unit], unit])
    return (*d.trace, *row_reduction(d.kernel, target))


# ---------------------------------------------------------------- reductions and copies


def accumulators(kernel: Kernel) -> dict[str, str]:
    """Scalar scratch -> the innermost loop that updates it."""
    scalars = {s.buffer.name for s in walk(kernel.body) if isinstance(s, Alloc) and not s.buffer.shape}
    found: dict[str, str] = {}
    for s in walk(kernel.body):
        if not isinstance(s, For) or any(isinstance(b, For) for b in s.body):
            continue
        for b in s.body:
            if isinstance(b, Store) and b.buffer in scalars:
                reads = {x.buffer for x in loads(b.value)}
                if b.buffer in reads:
                    found.setdefault(f"{b.buffer}@{s.var}", s.var)
    return found


def row_reduction(kernel: Kernel, target: Target) -> Trace:
    """Reductions along the innermost dim and passes over rows: vectors along the row.

    Every innermost loop is either a reduction into a scalar (gets lanes) or an elementwise pass
    (is split and vectorised). What cannot be vectorised stays serial.
    """
    d = Draft(kernel)
    width = target.lanes(4)
    for key, var in accumulators(kernel).items():
        acc = key.split("@")[0]
        n = d.extent(var)
        if n < 4 or not _contiguous(d.kernel, var):
            continue
        d.try_("lanes", acc, var, _lane_count(n, width))
    for var, f in list(loops(d.kernel.body).items()):
        if f.kind != "serial" or any(isinstance(s, For) for s in f.body) or not f.extent.is_const:
            continue
        if any(isinstance(s, Store) and s.buffer in _scalars(d.kernel) for s in f.body):
            continue
        _vectorize_pass(d, var, width)
    _parallel(d, _volume(kernel))
    return d.trace


def _lane_count(n: int, width: int) -> int:
    """Partial sums for a row of n: several vectors hide the latency where the row is long."""
    for k in (4, 2, 1):
        if n >= 2 * k * width or k == 1:
            return min(k * width, 1 << (n.bit_length() - 1))
    return width


def _scalars(kernel: Kernel) -> set[str]:
    return {s.buffer.name for s in walk(kernel.body) if isinstance(s, Alloc) and not s.buffer.shape}


def _vectorize_pass(d: Draft, var: str, width: int) -> None:
    n = d.extent(var)
    if n <= 1:
        return
    if n <= width:
        d.try_("vectorize", var)
        return
    saved = (d.kernel, list(d.steps))
    if not (d.try_("split", var, width, f"{var}o", f"{var}l") and d.try_("vectorize", f"{var}l")):
        d.kernel, d.steps = saved


def _volume(kernel: Kernel) -> int:
    total = 1
    for f in loops(kernel.body).values():
        total *= f.extent.const if f.extent.is_const else 1
    return total


def _buffers(kernel: Kernel) -> dict[str, Buffer]:
    out = {p.buffer.name: p.buffer for p in kernel.params}
    out.update({s.buffer.name: s.buffer for s in walk(kernel.body) if isinstance(s, Alloc)})
    return out


def _stride(buffer: Buffer, index: tuple[Ix, ...], var: str) -> int | None:
    """Elements between consecutive iterations of `var`; None if not linear."""
    offset = Ix(0)
    for i, s in zip(index, buffer.strides, strict=True):
        offset = offset + i * s
    return coefficient(offset, var)


def _contiguous(kernel: Kernel, var: str) -> bool:
    """Whether all memory accesses inside loop `var` move by 0 or 1 element with it."""
    f = loops(kernel.body)[var]
    known = _buffers(kernel)
    return all(
        _stride(known[b], index, var) in (0, 1) for b, index, _ in accesses(f.body)
    )


def column_reduction(kernel: Kernel, target: Target, cols: str, sums: Sequence[str]) -> Trace:
    """Reductions along outer dims: vectors along the contiguous kept loop `cols`."""
    d = Draft(kernel)
    width = target.lanes(4)
    n = d.extent(cols)
    block = min(4, max(1, n // width))
    lanes, inner = cols, []
    outer: list[str] = []
    if n > width:
        if block > 1:
            d.do("split", cols, width * block, f"{cols}o", f"{cols}t")
            d.do("split", f"{cols}t", width, f"{cols}v", f"{cols}l")
            inner, outer = [f"{cols}v"], [f"{cols}o"] if d.has(f"{cols}o") else []
            inner = inner if d.has(f"{cols}v") else []
        else:
            d.do("split", cols, width, f"{cols}o", f"{cols}l")
            outer = [f"{cols}o"]
        lanes = f"{cols}l"
    nest = [*inner, lanes]
    kept = [v for v in loops(d.kernel.body) if v not in {*nest, *outer, *sums}]
    d.do("reorder", [*kept, *outer, *nest])
    d.do("stage", nest)
    present = [v for v in sums if d.has(v)]
    d.do("reorder", [*present, *nest])
    for v in inner:
        d.do("unroll", v)
    d.do("vectorize", lanes)
    _parallel(d, _volume(kernel))
    return d.trace


def injective(kernel: Kernel, target: Target) -> Trace:
    """Elementwise work and data movement: fuse what is contiguous, vectors along the innermost loop."""
    d = Draft(kernel)
    width = _narrowest_width(kernel, target)
    for top in [s for s in kernel.body if isinstance(s, For)]:
        names = _perfect_nest(top)
        while len(names) >= 2:
            outer, inner = names[-2], names[-1]
            saved = (d.kernel, list(d.steps))
            if d.try_("fuse", outer, inner, f"{outer}_{inner}") and _linear(d.kernel):
                names[-2:] = [f"{outer}_{inner}"]
                continue
            d.kernel, d.steps = saved
            break
        if names:
            _vectorize_pass(d, names[-1], width)
    _parallel(d, _volume(kernel))
    return d.trace


def _perfect_nest(f: For) -> list[str]:
    names = [f.var]
    while len(f.body) == 1 and isinstance(f.body[0], For):
        f = f.body[0]
        names.append(f.var)
    return [] if any(isinstance(s, For) for s in f.body) else names


def _linear(kernel: Kernel) -> bool:
    """Whether no memory offset needs a division."""
    known = _buffers(kernel)
    for buffer, index, _ in accesses(kernel.body):
        offset = Ix(0)
        for i, s in zip(index, known[buffer].strides, strict=True):
            offset = offset + i * s
        ranges = {v: (0, f.extent.const - 1) for v, f in loops(kernel.body).items() if f.extent.is_const}
        if any(isinstance(a, FloorDiv | Mod) for a, _ in simplify(offset, ranges).terms):
            return False
    return True


def _narrowest_width(kernel: Kernel, target: Target) -> int:
    sizes = [e.dtype.bytes for e in expressions(kernel.body)]
    sizes += [x.dtype.bytes for e in expressions(kernel.body) for x in loads(e) if isinstance(x, Load)]
    return target.lanes(max(sizes, default=4))
