"""Reductions: along contiguous rows with partial sums per lane, or down columns with one sum per lane.

In: an unscheduled kernel. Out: a trace, in which what cannot be vectorised stays serial, or the space of
such traces, of which the default is one point.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod

from tilewright.loop.ir import Alloc, For, Kernel, Store
from tilewright.loop.rewrite import accesses, loads, loops, walk
from tilewright.schedule.space import Choice, Space, Value, upto
from tilewright.schedule.target import Target
from tilewright.schedule.templates.draft import (
    Draft,
    buffers,
    contiguous,
    parallelize_outer,
    scalars,
    stride,
    vectorize_pass,
    volume,
)
from tilewright.schedule.trace import Trace


def reduction(kernel: Kernel, target: Target) -> Trace:
    """Reductions with kept loops o0.. and reduced loops r0..: along rows or down columns."""
    return _reduction(kernel, target, 0)


def reduction_space(kernel: Kernel, target: Target) -> Space | None:
    """Reductions: how many vectors of partial results."""
    return _sums_space("reduction", target, lambda sums: _reduction(kernel, target, sums))


def rows_space(kernel: Kernel, target: Target) -> Space | None:
    """Passes over rows: how many vectors of partial results per reduction."""
    if passes(kernel, target) != row_reduction(kernel, target):
        return None
    return _sums_space("rows", target, lambda sums: row_reduction(kernel, target, sums))


def _sums_space(family: str, target: Target, make: Callable[[int], Trace]) -> Space | None:
    """A space of one parameter; 0 stands for the default's own rule."""
    if target.family != "simd":
        return None
    params: dict[str, tuple[Value, ...]] = {"sums": upto(target.registers // 2, 0, 1, 2, 4, 8)}

    def build(choice: Choice) -> Trace:
        return make(int(choice["sums"]))

    return Space(family, params, {"sums": 0}, build)


def _reduction(kernel: Kernel, target: Target, vectors: int) -> Trace:
    names = list(loops(kernel.body))
    kept = [v for v in names if v.startswith("o")]
    sums = [v for v in names if v.startswith("r")]
    known = buffers(kernel)
    inputs = [
        (b, i) for b, i, store in accesses(kernel.body) if not store and known[b].space == "global"
    ]
    for v in kept:
        if all(stride(known[b], i, v) in (0, 1) for b, i in inputs) and any(
            stride(known[b], i, v) == 1 for b, i in inputs
        ):
            return column_reduction(kernel, target, v, sums, vectors)
    unit = next((v for v in sums if any(stride(known[b], i, v) == 1 for b, i in inputs)), None)
    d = Draft(kernel)
    if unit is not None and unit != sums[-1]:
        d.try_("reorder", [*[v for v in sums if v != unit], unit])
    if sums and unit == sums[-1]:
        _join_rows(d, sums)
    return (*d.trace, *row_reduction(d.kernel, target, vectors))


def _join_rows(d: Draft, sums: Sequence[str]) -> None:
    """Make one loop of reduced dims that follow each other in memory: partial results are combined once at the
    end, not once a row, so that it costs less and fewer roundings add up."""
    inner = sums[-1]
    for outer in reversed(sums[:-1]):
        trial = Draft(d.kernel)
        if not trial.try_("fuse", outer, inner, outer) or not contiguous(trial.kernel, outer):
            return
        d.do("fuse", outer, inner, outer)
        inner = outer


def accumulators(kernel: Kernel) -> dict[str, str]:
    """Scalar scratch -> the innermost loop that updates it."""
    names = scalars(kernel)
    found: dict[str, str] = {}
    for s in walk(kernel.body):
        if not isinstance(s, For) or any(isinstance(b, For) for b in s.body):
            continue
        for b in s.body:
            if isinstance(b, Store) and b.buffer in names:
                reads = {x.buffer for x in loads(b.value)}
                if b.buffer in reads:
                    found.setdefault(f"{b.buffer}@{s.var}", s.var)
    return found


def row_reduction(kernel: Kernel, target: Target, sums: int = 0) -> Trace:
    """Reductions along the innermost dim and passes over rows: vectors along the row.

    Every innermost loop is either a reduction into a scalar (gets lanes) or an elementwise pass
    (is split and vectorised). What cannot be vectorised stays serial. `sums` vectors of partial
    results per reduction; 0 chooses by the length of the row.
    """
    d = Draft(kernel)
    width = target.lanes(4)
    for key, var in accumulators(kernel).items():
        acc = key.split("@")[0]
        n = d.extent(var)
        if n < 4 or width == 1 or not contiguous(d.kernel, var):
            continue
        count = _lane_count(n, width)
        if sums:
            count = min(sums * width, 1 << (n.bit_length() - 1))
        d.try_("lanes", acc, var, count)
    for var, f in list(loops(d.kernel.body).items()):
        if f.kind != "serial" or any(isinstance(s, For) for s in f.body) or not f.extent.is_const:
            continue
        if any(isinstance(s, Store) and s.buffer in scalars(d.kernel) for s in f.body):
            continue
        vectorize_pass(d, var, width)
    parallelize_outer(d, volume(kernel))
    return d.trace


def _lane_count(n: int, width: int) -> int:
    """Partial sums for a row of n: several vectors hide the latency where the row is long."""
    for k in (4, 2, 1):
        if n >= 2 * k * width or k == 1:
            return min(k * width, 1 << (n.bit_length() - 1))
    return width


def column_reduction(
    kernel: Kernel, target: Target, cols: str, sums: Sequence[str], block: int = 0
) -> Trace:
    """Reductions along outer dims: vectors along the contiguous kept loop `cols`, `block` of them at a
    time; 0 takes four, or as many as there are."""
    d = Draft(kernel)
    width = target.lanes(4)
    if width == 1:
        return _scalar_columns(d, cols, sums)
    n = d.extent(cols)
    block = min(block or 4, max(1, n // width))
    sums = [*sums, *_chains(d, sums, target.registers // 2 // block)]
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
    parallelize_outer(d, volume(kernel))
    return d.trace


#: A sum of so many terms a chain is worth being cut into chains.
_LONG_CHAIN = 256


def _chains(d: Draft, sums: Sequence[str], most: int) -> list[str]:
    """Cut the only sum into as many chains as there are registers for, at most eight; the loops that came of it.

    Additions of one chain wait for each other, and their roundings add up.
    """
    accumulated = {key.split("@")[0] for key in accumulators(d.kernel)}
    if not sums or len(accumulated) != 1:
        return []
    last, total = sums[-1], prod(d.extent(v) for v in sums)
    for ways in (8, 4, 2):
        if ways <= most and d.extent(last) % ways == 0 and total >= ways * _LONG_CHAIN:
            trial = Draft(d.kernel)
            trial.do("split", last, ways, last, f"{last}c")
            outer = sums[0] if trial.has(sums[0]) else f"{last}c"
            if not trial.try_("rfactor", *accumulated, outer, f"{last}c"):
                return []
            for s in trial.steps:
                d.do(s.primitive, *s.args)
            return [f"{last}c"]
    return []


def _scalar_columns(d: Draft, cols: str, sums: Sequence[str]) -> Trace:
    """Without vectors: four columns at once, so that the loops cost less."""
    if d.extent(cols) % 4 or d.extent(cols) <= 4:
        return ()
    d.do("split", cols, 4, f"{cols}o", f"{cols}i")
    kept = [v for v in loops(d.kernel.body) if v not in {f"{cols}o", f"{cols}i", *sums}]
    d.do("reorder", [*kept, f"{cols}o", f"{cols}i"])
    d.do("stage", [f"{cols}i"])
    d.do("reorder", [*[v for v in sums if d.has(v)], f"{cols}i"])
    d.do("unroll", f"{cols}i")
    return d.trace


#: Scratch of a kernel that keeps one row per lane may take this much of a device's stack.
MAX_COLUMN_SCRATCH = 1 << 17


def passes(kernel: Kernel, target: Target) -> Trace:
    """Several passes over a row (softmax): vectors along it where it is contiguous, else one row per
    lane, so that the passes run down columns of vectors."""
    outer: list[str] = []
    block = kernel.body
    while len(block) == 1 and isinstance(block[0], For):
        outer.append(block[0].var)
        block = block[0].body
    inner = list(loops(block))
    known = buffers(kernel)
    memory = [(b, i) for b, i, _ in accesses(kernel.body) if known[b].space == "global"]
    width = target.lanes(4)
    scratch = sum(
        prod(s.buffer.shape) * s.buffer.dtype.bytes for s in block if isinstance(s, Alloc)
    )
    cols = next((v for v in outer if any(stride(known[b], i, v) == 1 for b, i in memory)), None)
    along = all(contiguous(kernel, v) for v in inner)
    if cols is None or along or width == 1 or scratch * width > MAX_COLUMN_SCRATCH:
        return row_reduction(kernel, target)
    d = Draft(kernel)
    lane, order = cols, [v for v in outer if v != cols]
    if d.extent(cols) > width:
        d.do("split", cols, width, f"{cols}o", f"{cols}l")
        lane, order = f"{cols}l", [*order, f"{cols}o"]
    d.do("reorder", [*order, lane])
    if not d.try_("stage", [lane]):  # a value of one pass is used in another
        return row_reduction(kernel, target)
    for v in inner:
        d.do("reorder", [v, lane])
    d.do("vectorize", lane)
    parallelize_outer(d, volume(kernel))
    return d.trace
