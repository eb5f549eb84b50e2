"""share(buffer, loop, threads, width, pad): the threads of a block copy what they read of a buffer to shared memory.

    for k: thread t: .. x[base + f(t)] ..
      ->
    for k:
      alloc s in shared
      for step: thread i: unroll j in width: s[..] = x[base + ..]      all threads, consecutive elements
      thread t: .. s[f(t)] ..

Each thread copies `width` neighbours at a time; rows of `s` lie `pad` elements apart, so that columns are
spread over the banks of the memory.
Inserted at the start of the body of `loop`, which is a loop of blocks or a serial one around all threads.
Legal iff all reads inside have one base (what does not move inside the loop) per dim, the buffer is not
written by the kernel, the part that is read has constant bounds, and `width` divides its rows. A part that
reaches over the end of the buffer, as the last one of a ragged split does, repeats the last element there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import prod

from tilewright.core.index import Ix, bounds, imin, ix, simplify, variables
from tilewright.errors import ScheduleError
from tilewright.loop.ir import (
    Alloc,
    Block,
    Buffer,
    Dot,
    Expr,
    For,
    Kernel,
    Load,
    Stmt,
    Store,
    dense,
    dense_strides,
)
from tilewright.loop.rewrite import (
    Ranges,
    children,
    expressions,
    loads,
    loop_ranges,
    map_block,
    map_loads,
    walk,
)
from tilewright.schedule.legality import require_fresh, require_loop


def share(
    kernel: Kernel, buffer: str, loop: str, threads: int, width: int = 1, pad: int = 0
) -> Kernel:
    """Stage `buffer` in shared memory at loop `loop`, copied by `threads` threads."""
    param = next((p for p in kernel.params if p.buffer.name == buffer), None)
    if param is None or param.role == "out":
        raise ScheduleError(f"`{buffer}` is not an input of this kernel")
    if threads < 1 or width < 1 or pad < 0:
        raise ScheduleError(f"{threads} threads, {width} elements: at least 1 is wanted")
    found = require_loop(kernel, loop)
    if len(found) != 1 or found[0].kind not in ("serial", "block"):
        raise ScheduleError(f"`{loop}` must be one loop of blocks or a serial one")
    if any(
        isinstance(s, For) and s.kind == "thread" and found[0] in walk(s.body)
        for s in walk(kernel.body)
    ):
        raise ScheduleError(f"`{loop}` is inside a loop of threads")
    if any(isinstance(s, For) and s.kind == "block" for s in walk(found[0].body)):
        raise ScheduleError(
            f"there are blocks inside `{loop}`: nothing comes between loops of blocks"
        )
    require_fresh(kernel, f"{buffer}_step", f"{buffer}_at", f"{buffer}_next")
    around = _ranges(kernel.body)
    body = _staged(found[0].body, param.buffer, threads, width, pad, around)

    def rewrite(s: Stmt) -> Stmt:
        return replace(s, body=body) if isinstance(s, For) and s.var == loop else s

    return replace(kernel, body=map_block(kernel.body, stmt=rewrite))


def _ranges(body: Block) -> Ranges:
    """Values of all variables of loops, every one of which must be bounded."""
    ranges = loop_ranges(body)
    for s in walk(body):
        if isinstance(s, For) and s.var not in ranges:
            raise ScheduleError(f"the extent of `{s.var}` has no bound")
    return ranges


def _staged(
    body: Block, buffer: Buffer, threads: int, width: int, pad: int, around: Ranges
) -> Block:
    ranges = _ranges(body)
    for e in expressions(body):
        _dots(e, ranges)
    reads = [x for e in expressions(body) for x in loads(e) if x.buffer == buffer.name]
    if not reads:
        raise ScheduleError(f"`{buffer.name}` is not read there")
    bases: list[Ix] = []
    lows: list[int] = []
    spans: list[int] = []
    for d in range(len(buffer.shape)):
        parts = [_parts(x.index[d], ranges) for x in reads]
        if any(base != parts[0][0] for base, _ in parts):
            raise ScheduleError(f"`{buffer.name}` is read from several places in dim {d}")
        ends = [bounds(inner, ranges) for _, inner in parts]
        low = min(lo for lo, _ in ends if lo is not None)
        high = max(hi for _, hi in ends if hi is not None)
        bases.append(parts[0][0])
        lows.append(low)
        spans.append(high - low + 1)
    if width > 1 and (not spans or spans[-1] % width):
        raise ScheduleError(f"rows of {spans[-1:]} elements are not copied {width} at a time")
    strides = dense_strides((*spans[:-1], spans[-1] + pad)) if pad and spans else None
    shared = dense(f"{buffer.name}_shared", buffer.dtype, tuple(spans), "shared")
    shared = replace(shared, strides=strides or shared.strides)

    def load(e: Load) -> Expr:
        if e.buffer != buffer.name:
            return e
        index = tuple(_parts(i, ranges)[1] - low for i, low in zip(e.index, lows, strict=True))
        return Load(shared.name, index, e.dtype)

    inner = map_block(body, expr=lambda e: map_loads(e, load))
    return (Alloc(shared), _copy(buffer, shared, bases, lows, threads, width, around), *inner)


def _dots(e: Expr, ranges: Ranges) -> None:
    """Ranges of the variables that dot products bind."""
    if isinstance(e, Dot):
        ranges[e.var] = (0, e.extent - 1)
    for c in children(e):
        _dots(c, ranges)


def _parts(form: Ix, inner: Ranges) -> tuple[Ix, Ix]:
    """(what stays, what moves inside the loop) of an index."""
    stays, moves = Ix(form.const), Ix(0)
    for atom, coef in form.terms:
        term = Ix(0, ((atom, coef),))
        inside = [v in inner for v in variables(term)]
        if all(inside) and inside:
            moves = moves + term
        elif not any(inside):
            stays = stays + term
        else:
            raise ScheduleError(f"the index {form} mixes what moves in the loop and what does not")
    return stays, moves


def _within(first: Ix, offset: Ix, extents: tuple[int, int], ranges: Ranges, together: bool) -> Ix:
    """first + offset, inside the buffer; `extents` of the buffer and of the part that is copied. Elements that are
    copied `together` must stay inside by themselves."""
    extent, held = extents
    low, high = bounds(first, ranges)
    if low is None or low < 0 or high is None:
        raise ScheduleError(f"the index {first} is not proved to be inside the buffer")
    if high + held <= extent:
        return first + offset
    if together:
        raise ScheduleError(
            f"rows that reach over the end, to {high + held}, are copied one by one only"
        )
    return imin(extent - 1, first + offset)


def _copy(
    buffer: Buffer,
    shared: Buffer,
    bases: Sequence[Ix],
    lows: Sequence[int],
    threads: int,
    width: int,
    around: Ranges,
) -> Stmt:
    """All threads copy runs of `width` consecutive elements, `threads` at a time."""
    total = prod(shared.shape) // width
    count = min(threads, total)
    step, lane = f"{buffer.name}_step", f"{buffer.name}_at"
    steps = -(-total // count)
    size = Ix(count)
    if total % count:
        size = imin(count, Ix(total) - ix(step) * count)
    ranges = {step: (0, steps - 1), lane: (0, count - 1)}
    rest = ix(lane) if steps == 1 else ix(step) * count + ix(lane)
    at: list[Ix] = []
    inner = 1
    run, last = f"{buffer.name}_next", len(shared.shape) - 1
    for d in reversed(range(len(shared.shape))):
        n = shared.shape[d] // width if d == last else shared.shape[d]  # runs do not cross rows
        i = rest // inner if d == 0 else (rest // inner) % n
        i = simplify(i, ranges) if n > 1 else Ix(0)
        at.insert(0, i * width + ix(run) if d == last and width > 1 else i)
        inner *= n
    source = tuple(
        _within(b + low, i, (n, held), around, d == last and width > 1)
        for d, (b, low, i, n, held) in enumerate(
            zip(bases, lows, at, buffer.shape, shared.shape, strict=True)
        )
    )
    store = Store(shared.name, tuple(at), Load(buffer.name, source, buffer.dtype))
    each: Stmt = store if width == 1 else For(run, Ix(width), (store,), "unroll")
    nest: Stmt = For(lane, size, (each,), "thread")
    return nest if steps == 1 else For(step, Ix(steps), (nest,))
