"""What all default schedules share: a trace under construction and questions about kernels.

In: a kernel. Out: steps that were found legal, facts about loops and accesses.
Invariant: `Draft.kernel` is always the kernel that `Draft.trace` makes of the original.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from tilewright.core.index import Ix, coefficient, simplify, variables
from tilewright.errors import ScheduleError
from tilewright.loop.ir import Alloc, Buffer, Fma, For, Kernel
from tilewright.loop.rewrite import accesses, expressions, loads, loops, walk
from tilewright.schedule.target import Target
from tilewright.schedule.trace import Step, Trace, apply, step

#: Below this many operations a second thread does not pay: waking it costs as much as the work.
MIN_PARALLEL_WORK = 1 << 16
#: What it costs to find out in every iteration where in two loops it is, as a part of the work.
FUSED = 0.02


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

    def tile(self, var: str, size: int, outer: list[str], inner: list[str]) -> None:
        """Cut loop `var` into tiles of `size` iterations; which loops then go from tile to tile and run inside
        one is added to `outer` and `inner`."""
        if size == 1:
            outer.append(var)
        elif size < self.extent(var):
            self.do("split", var, size, f"{var}o", f"{var}i")
            outer.append(f"{var}o")
            inner.append(f"{var}i")
        else:
            inner.append(var)

    @property
    def trace(self) -> Trace:
        return tuple(self.steps)


def parallelize_outer(d: Draft, work: int) -> None:
    """Run an outer loop on threads where there is enough work: the first one with enough iterations to balance, else
    the longest."""
    nest = _outer_loops(d, work)
    if nest:
        _move_out(d, nest)
        d.try_("parallelize", _outer_loops(d, work)[0].var)


def share_out(d: Draft, work: int, target: Target, move: bool = False) -> None:
    """Run the loop on threads that costs them least, where there is enough work of `work` multiply-adds; loops around
    it stay around it. A loop that comes out uneven becomes one with the loop inside it where that helps.

    With `move`, the loop that `parallelize_outer` would take is brought outermost before, unless an operand that half
    of the second-level cache does not hold would be read again in each of its iterations, or one that is larger than
    what is read again as it is now, if the outermost loop keeps two threads busy.
    """
    nest = _outer_loops(d, work)
    if nest and move:
        _move_out(d, nest, target.l2_bytes // 2)
        nest = _outer_loops(d, work)
    cycles = work / (target.fma_per_cycle * target.lanes(4))
    ways: list[tuple[float, str, str]] = []
    for i, f in enumerate(nest):
        if f not in _free(nest):
            continue
        moved, n = _moved(d.kernel, f, target.l2_bytes // 2) / target.l3_rate, f.extent.const
        ways.append((moved + _idle(n) * cycles, f.var, ""))
        if nest[i + 1 :] and nest[i + 1] in _free(nest) and _joins(d.kernel, f, nest[i + 1]):
            n *= nest[i + 1].extent.const
            ways.append((moved + (_idle(n) + FUSED) * cycles, f.var, nest[i + 1].var))
    for _, var, inner in sorted(ways):
        trial = Draft(d.kernel)
        if (not inner or trial.try_("fuse", var, inner, var)) and trial.try_("parallelize", var):
            for s in trial.steps:
                d.do(s.primitive, *s.args)
            return


def _outer_loops(d: Draft, work: int) -> list[For]:
    """The loops around everything else in a kernel, outermost first; none where threads do not pay."""
    if work < MIN_PARALLEL_WORK or len(d.kernel.body) != 1 or not isinstance(d.kernel.body[0], For):
        return []
    nest: list[For] = [d.kernel.body[0]]
    while len(nest[-1].body) == 1 and isinstance(nest[-1].body[0], For):
        nest.append(nest[-1].body[0])
    return nest if _free(nest) else []


def _free(nest: Sequence[For]) -> list[For]:
    return [f for f in nest if f.kind == "serial" and f.extent.is_const and f.extent.const > 1]


def _move_out(d: Draft, nest: Sequence[For], cache_bytes: int = 0) -> None:
    """Bring the first loop with enough iterations to balance, else the longest, outermost; see `share_out`."""
    free = _free(nest)
    pick = next((f for f in free if f.extent.const >= 8), max(free, key=lambda f: f.extent.const))
    before = [f.var for f in nest[: nest.index(pick)]]
    if not before:
        return
    more, less = (
        _read_again(d.kernel, a, b) for a, b in ((pick.var, before), (before[0], [pick.var]))
    )
    if not (0 < cache_bytes < more or (cache_bytes > 0 and more > less and _even(nest[0]))):
        d.try_("reorder", [pick.var, *before])


def _even(f: For) -> bool:
    """Whether the iterations of a loop come out about even on two threads."""
    return f.extent.is_const and (f.extent.const == 2 or f.extent.const > 3)


def _idle(n: int) -> float:
    """Which part of the time threads wait for the one that has the most of `n` iterations: two, and four half as much."""
    two, four = (math.ceil(n / t) / n - 1 / t for t in (2, 4))
    return two + four / 2


def _moved(kernel: Kernel, f: For, near: int) -> float:
    """Bytes that each of two threads gets from afar where they share out loop `f`.

    Constants that all iterations read are fetched by each of them, and where the `near` bytes of a cache do not hold
    them, again for each of the pieces, about three, in which a thread takes its share. Of maps that all iterations read
    half lies in the other thread's cache, as kernels leave it that share out rows; the same for maps of which
    iterations take small pieces all over, and who reads such a result will have to fetch half of it again.
    """
    steps, moved = _steps(kernel, f), 0.0
    for p in kernel.params:
        b, step = p.buffer, steps.get(p.buffer.name)
        size = math.prod(b.shape) * b.dtype.bytes
        span = max((abs(s) * e for s, e in zip(b.strides, b.shape, strict=True)), default=1)
        if step == 0:
            moved += size * (2.5 if p.role == "const" and size > near else 0.5)
        elif step is not None and p.role != "const" and 2 * step * f.extent.const < span:
            moved += size / (2 if p.role == "out" else 4)
    return moved


def _steps(kernel: Kernel, f: For) -> dict[str, int]:
    """Parameter -> elements from what an iteration of `f` touches to what the next one does, at most."""
    steps: dict[str, int] = {}
    known = {p.buffer.name: p.buffer for p in kernel.params}
    for name, index, _ in accesses(kernel.body):
        if name in known:
            step = stride(known[name], index, f.var)
            steps[name] = max(steps.get(name, 0), 0 if step is None else abs(step))
    return steps


def _joins(kernel: Kernel, f: For, g: For) -> bool:
    """Whether `f` and the loop `g` inside it cut the same maps, and no constants, into pieces that are all alike."""
    constants = {p.buffer.name for p in kernel.params if p.role == "const"}
    cut = [n for x in (f, g) for n, step in _steps(kernel, x).items() if step and n in constants]
    even = all(s.extent.is_const for s in walk(f.body) if isinstance(s, For))
    return even and not cut


def _read_again(kernel: Kernel, var: str, inside: Sequence[str]) -> int:
    """Bytes of the largest operand that loops `inside` run over and loop `var` does not."""
    known = {p.buffer.name: p.buffer for p in kernel.params}
    moves: dict[str, set[str]] = {}
    for name, index, store in accesses(kernel.body):
        if name in known and not store:
            moves.setdefault(name, set()).update(*[variables(i) for i in index])
    return max(
        (
            math.prod(known[name].shape) * known[name].dtype.bytes
            for name, used in moves.items()
            if var not in used and used & set(inside)
        ),
        default=0,
    )


def on_threads(kernel: Kernel, trace: Trace) -> Trace:
    """`trace` with a loop on threads, if it has none and there is work for several."""
    if any(s.primitive == "parallelize" for s in trace):
        return trace
    d = Draft(apply(kernel, trace))
    parallelize_outer(d, volume(kernel))
    return (*trace, *d.steps)


def vectorize_pass(d: Draft, var: str, width: int) -> None:
    n = d.extent(var)
    if n <= 1 or width == 1:
        return
    if n <= width:
        d.try_("vectorize", var)
        return
    saved = (d.kernel, list(d.steps))
    if not (d.try_("split", var, width, f"{var}o", f"{var}l") and d.try_("vectorize", f"{var}l")):
        d.kernel, d.steps = saved


def volume(kernel: Kernel) -> int:
    total = 1
    for f in loops(kernel.body).values():
        total *= f.extent.const if f.extent.is_const else 1
    return total


def scalars(kernel: Kernel) -> set[str]:
    return {s.buffer.name for s in walk(kernel.body) if isinstance(s, Alloc) and not s.buffer.shape}


def buffers(kernel: Kernel) -> dict[str, Buffer]:
    out = {p.buffer.name: p.buffer for p in kernel.params}
    out.update({s.buffer.name: s.buffer for s in walk(kernel.body) if isinstance(s, Alloc)})
    return out


def stride(buffer: Buffer, index: tuple[Ix, ...], var: str) -> int | None:
    """Elements between consecutive iterations of `var`; None if not linear."""
    offset = Ix(0)
    for i, s in zip(index, buffer.strides, strict=True):
        offset = offset + i * s
    return coefficient(simplify(offset, {}), var)  # dims that a fused loop runs over are one


def contiguous(kernel: Kernel, var: str) -> bool:
    """Whether all memory accesses inside loop `var` move by 0 or 1 element with it."""
    f = loops(kernel.body)[var]
    known = buffers(kernel)
    return all(stride(known[b], index, var) in (0, 1) for b, index, _ in accesses(f.body))


def weights_of(kernel: Kernel, cols: str, sums: Sequence[str]) -> tuple[str, int, list[int]] | None:
    """The constant operand that varies with `cols`: (buffer, its dim along cols, other dims).

    The other dims come in the order of the reduction loops that index them, outermost first, after
    those that no reduction loop touches.
    """
    constants = {p.buffer.name: p.buffer for p in kernel.params if p.role == "const"}
    for e in expressions(kernel.body):
        factor = list(loads(e.b)) if isinstance(e, Fma) else []  # maybe widened or decoded first
        if len(factor) != 1 or factor[0].buffer not in constants:
            continue
        load = factor[0]
        along = [d for d, i in enumerate(load.index) if cols in variables(i)]
        if len(along) != 1:
            return None
        rank: dict[int, int] = {}
        for d, i in enumerate(load.index):
            rank[d] = max((sums.index(v) + 1 for v in variables(i) if v in sums), default=0)
        rest = sorted((d for d in rank if d != along[0]), key=lambda d: (rank[d], d))
        return load.buffer, along[0], rest
    return None


def batch_dims(kernel: Kernel, buffer: str, batch: Sequence[str]) -> set[int]:
    """Dims of constant `buffer` that only loops of `batch` move along."""
    out: set[int] = set()
    for name, index, store in accesses(kernel.body):
        if name == buffer and not store:
            out |= {d for d, i in enumerate(index) if variables(i) and variables(i) <= set(batch)}
    return out


def pack_panels(
    d: Draft, weights: tuple[str, int, Sequence[int]], batch: Sequence[str], span: int, run: int = 0
) -> None:
    """Lay constant `weights` (see `weights_of`) out in panels of `span` output channels in the order of the sum;
    `run`: so many products of the innermost sum lie side by side for each channel."""
    buffer, along, rest = weights
    first = batch_dims(d.kernel, buffer, batch)
    dims: list[list[object]] = [[r, 0, "whole"] for r in rest if r in first]  # as they are read
    dims += [[along, span, "outer"], *[[r, 0, "whole"] for r in rest if r not in first]]
    dims.append([along, span, "inner"])
    if run:
        dims[-2] = [rest[-1], run, "outer"]
        dims.append([rest[-1], run, "inner"])
    d.do("pack", buffer, dims)
