"""GPUs: which loops become blocks and threads.

In: an unscheduled kernel and a target with `[gpu]`. Out: a trace.
`outputs` gives every output a thread of its own; it fits every kernel.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from tilewright.loop.ir import Alloc, For, Kernel, Load, Stmt
from tilewright.loop.rewrite import accesses, loops, walk
from tilewright.schedule.legality import index_variables
from tilewright.schedule.target import Target
from tilewright.schedule.templates.dots import RUN
from tilewright.schedule.templates.draft import Draft, vectorize_pass, weights_of
from tilewright.schedule.templates.gpu_parts import (
    Product,
    cut,
    divisor,
    independent,
    product_of,
    shared_bytes,
    widen_sums,
)
from tilewright.schedule.templates.gpu_tiles import FEWEST, MOST, Tile, default_tile
from tilewright.schedule.templates.rows import accumulators
from tilewright.schedule.templates.tensor_cores import tensor_cores
from tilewright.schedule.trace import Trace

#: Elements of a row of scratch that a thread holds in registers.
MOST_HELD = 16


def schedule(kernel: Kernel, target: Target) -> Trace:
    """The default schedule of any kernel: tiles where it is a product, on tensor cores where those can
    compute it, a block per row where rows are long, else a thread per output."""
    return (
        tensor_cores(kernel, target)
        or tiled(kernel, target)
        or rows(kernel, target)
        or outputs(kernel, target)
    )


def outputs(kernel: Kernel, target: Target, most: int = MOST) -> Trace:
    """One thread per iteration of the independent outer loops of each nest, `most` of them in a block; a single
    block where nests depend on each other."""
    d = Draft(kernel)
    widen_sums(d)
    if any(isinstance(s, Alloc) for s in kernel.body):
        _hold(d)
        return d.trace  # nests that share scratch: one thread
    for i, top in enumerate([s for s in kernel.body if isinstance(s, For)]):
        free = independent(top)
        total = prod(d.extent(v) for v in free)
        size = next((n for n in range(most, FEWEST - 1, -1) if total % n == 0), 0)
        if total <= most or size:
            _linear(d, free, i, size or total)
        elif free:
            _by_loop(d, free, i, most)
    _hold(d)
    return d.trace


def _hold(d: Draft) -> None:
    """Small rows of scratch stay in registers: loops over them are spelled out."""
    small = {n for n, size in _scratch(d.kernel).items() if 1 < size <= MOST_HELD}
    for var, f in loops(d.kernel.body).items():
        if any(name in small and var in index_variables(at) for name, at, _ in accesses(f.body)):
            d.try_("unroll", var)


def _scratch(kernel: Kernel) -> dict[str, int]:
    """Elements of each scratch buffer that is not shared."""
    found = [s.buffer for s in walk(kernel.body) if isinstance(s, Alloc)]
    return {b.name: prod(b.shape) for b in found if b.space != "shared"}


def _volume(block: Sequence[Stmt]) -> int:
    """Iterations of the longest nest of loops in a block."""
    nests = [f for f in block if isinstance(f, For) and f.extent.is_const]
    return max((f.extent.const * _volume(f.body) for f in nests), default=1)


def _linear(d: Draft, free: Sequence[str], i: int, size: int) -> None:
    """All loops as one, cut into blocks of exactly `size` threads."""
    if not free:
        return
    name = free[0]
    for inner in free[1:]:
        d.do("fuse", name, inner, f"p{i}_{inner}")
        name = f"p{i}_{inner}"
    if d.extent(name) == size:
        d.do("bind", name, "thread")
        return
    d.do("split", name, size, f"block{i}", f"thread{i}")
    d.try_("bind", f"block{i}", "block")
    d.do("bind", f"thread{i}", "thread")


def _by_loop(d: Draft, free: Sequence[str], i: int, most: int) -> None:
    """The innermost loop gives the threads, some of which idle in its last block, the others blocks."""
    last = free[-1]
    for v in free[:-1]:
        d.try_("bind", v, "block")
    if d.extent(last) <= most:
        d.do("bind", last, "thread")
        return
    d.do("split", last, most, f"block{i}", f"thread{i}")
    d.try_("bind", f"block{i}", "block")
    d.do("bind", f"thread{i}", "thread")


# ---------------------------------------------------------------- products and convolutions


def tiled(kernel: Kernel, target: Target) -> Trace | None:
    """A block computes a tile of outputs, each thread a small tile of it, from operands in shared memory.

    The tile is the best by the data sheet's numbers; None where the output is too small for any. The sum is
    cut into the largest pieces whose operands fit.
    """
    found = default_tiling(kernel, target)
    return None if found is None else tile_draft(kernel, *found).trace


def default_tiling(kernel: Kernel, target: Target) -> tuple[Product, Tile, int] | None:
    """The product that a kernel is, its tile, the length of the pieces of its sum."""
    assert target.gpu is not None
    p = product_of(kernel)
    tile = default_tile(Draft(kernel), p, target.gpu) if p is not None else None
    if p is None or tile is None:
        return None
    length = Draft(kernel).extent(p.sums[-1])
    for size in sorted({divisor(length, n) for n in (16, 8, 4, 2, 1)}, reverse=True):
        if shared_bytes(tile_draft(kernel, p, tile, size).kernel) <= target.gpu.shared_block:
            return p, tile, size
    return None


def tile_draft(kernel: Kernel, p: Product, tile: Tile, size: int) -> Draft:
    """The schedule with pieces of `size` steps of the innermost sum."""
    d = Draft(kernel)
    each, threads = tile.each, tile.threads
    rows, cols, sums, operands = p.rows, p.cols, p.sums, (p.a, p.b)
    # dp4a multiplies four bytes of each operand that lie side by side
    dots = size % RUN == 0 and all(x.dtype.name in ("i8", "u8") for x in operands)
    widen_sums(d)
    _pack_columns(d, operands[1], cols, sums, dots)
    blocks = [v for v in loops(kernel.body) if v not in {*sums, *rows, cols}]
    lanes: list[str] = []
    inner: list[str] = []
    for v in [*rows, cols]:
        cut(d, v, each[v], threads[v], blocks, lanes, inner)
    d.do("reorder", [*blocks, *lanes, *inner])
    d.do("stage", [*lanes, *inner])
    # taps stay outside: a sum keeps its order
    last, pieces, steps = sums[-1], list(sums[:-1]), [sums[-1]]
    if size == 1:
        pieces, steps = list(sums), []
    elif size < d.extent(last):
        d.do("split", last, size, f"{last}o", f"{last}i")
        pieces, steps = [*sums[:-1], f"{last}o"], [f"{last}i"]
    if dots:
        if size > RUN:
            d.do("split", steps[0], RUN, f"{last}q", f"{last}d")
            steps = [f"{last}q", f"{last}d"]
        d.do("reorder", [*pieces, *lanes, *steps[:-1], *inner, steps[-1]])
        d.do("tensorize", steps[-1])
    else:
        d.do("reorder", [*pieces, *lanes, *steps, *inner])
    for v in blocks:
        d.do("bind", v, "block")
    for v in lanes:
        d.do("bind", v, "thread")
    where = next(iter([*reversed(pieces), *reversed(blocks)]), None)
    for x in operands:
        if where is not None:
            d.try_("share", x.buffer, where, prod(threads.values()))
    for v in inner:
        d.do("unroll", v)
    return d


def _pack_columns(d: Draft, weights: Load, cols: str, sums: Sequence[str], dots: bool) -> None:
    """Constant weights with the output channels side by side, so that threads read consecutive ones;
    for `dots` in runs of the sum."""
    found = weights_of(d.kernel, cols, sums)
    if found is not None and found[0] == weights.buffer:
        _, along, rest = found
        dims = [*[[r, 0, "whole"] for r in rest], [along, 0, "whole"]]
        if dots:
            dims[-2] = [rest[-1], RUN, "outer"]
            dims.append([rest[-1], RUN, "inner"])
        d.try_("pack", weights.buffer, dims)


# ---------------------------------------------------------------- rows


#: Rows shorter than this are left to one thread each, unless there are few of them.
LONG_ROW = 64
#: With so many rows a thread for each keeps the device busy.
MANY_ROWS = 1 << 14


def rows(kernel: Kernel, target: Target, most: int = MOST // 2) -> Trace | None:
    """A block per row of a reduction or of several passes: partial sums per thread in shared memory.

    `most`: threads of a block, a power of two; shorter rows have fewer.

    Rows are long by one of their loops or by several. None where they are many, or short and without scratch
    that a thread alone would keep in memory, or where something in them cannot be shared.
    """
    assert target.gpu is not None
    top = [s for s in kernel.body if not isinstance(s, Alloc)]
    if len(top) == len(kernel.body) > 1:
        return None  # nests of their own, not passes over one row
    free = independent(top[0]) if len(top) == 1 and isinstance(top[0], For) else []
    d = Draft(kernel)
    inside = [v for v in loops(kernel.body) if v not in free]
    longest = max((d.extent(v) for v in inside), default=1)
    held = max(_scratch(kernel).values(), default=1)
    long = longest >= LONG_ROW or (
        4 * longest >= LONG_ROW and _volume(top) >= 4 * LONG_ROW * prod(map(d.extent, free))
    )
    if not (long or held > MOST_HELD) or prod(d.extent(v) for v in free) > MANY_ROWS:
        return None
    width = 1 << min(longest.bit_length() - 1, most.bit_length() - 1)
    for key, var in accumulators(kernel).items():
        n = d.extent(var)
        count = min(width, 1 << (n.bit_length() - 1))
        if count > 1 and not d.try_("lanes", key.split("@")[0], var, count):
            return None
    for var in inside:
        f = loops(d.kernel.body).get(var)
        if f is not None and f.kind == "serial" and not any(isinstance(s, For) for s in f.body):
            vectorize_pass(d, var, width)
    name = ""
    if free:
        name = free[0]
        for inner in free[1:]:
            d.do("fuse", name, inner, f"row_{inner}")
            name = f"row_{inner}"
        if not d.try_("bind", name, "block"):
            return None
    if not d.try_("cooperate", name) or shared_bytes(d.kernel) > target.gpu.shared_block:
        return None
    return d.trace
