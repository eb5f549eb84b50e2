"""Cases that are a little smaller than a case: what `minimise` tries.

In: a case. Out: by way of making it smaller, candidates, the boldest first. A candidate may well be no legal case.
Invariant: every candidate is smaller in one respect and larger in none that comes before it: steps, dims,
iterations, statements, numbers in steps, rows apart in memory, data.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import combinations

from tilewright.core.index import Ix, ix, substitute
from tilewright.errors import TilewrightError
from tilewright.loop.ir import Alloc, Block, Buffer, For, If, Kernel, Stmt, dense, dense_strides
from tilewright.loop.rewrite import accesses, loops, map_block, walk
from tilewright.schedule.trace import Step, Trace, apply
from tilewright.testing.case import Case, Data

Way = Callable[[Case], Iterator[Case]]


# ---------------------------------------------------------------- fewer steps


def fewer_steps(case: Case) -> Iterator[Case]:
    """No steps; one step or two with those that they need; a part of the trace left out (delta debugging); without
    splits."""
    seen: list[Trace] = []
    for candidate in (*_left_out(case), *_unsplit(case)):
        if candidate.trace not in seen:
            seen.append(candidate.trace)
            yield candidate


def _left_out(case: Case) -> Iterator[Case]:
    trace = case.trace
    if not trace:
        return
    needs = _needs(case)
    tried: set[tuple[int, ...]] = {tuple(range(len(trace)))}
    sets = [(), *_closures(range(len(trace)), needs, 1), *_closures(range(len(trace)), needs, 2)]
    for kept in sets:
        if kept not in tried:
            tried.add(kept)
            yield case.with_(trace=tuple(trace[i] for i in kept))
    size = len(trace) // 2
    while size:
        for at in range(0, len(trace), size):
            gone = set(range(at, min(at + size, len(trace))))
            for i in range(len(trace)):  # what names something that is gone goes with it
                if needs[i] & gone:
                    gone.add(i)
            kept = tuple(i for i in range(len(trace)) if i not in gone)
            if kept not in tried:
                tried.add(kept)
                yield case.with_(trace=tuple(trace[i] for i in kept))
        size //= 2


def _closures(
    indices: Sequence[int], needs: Sequence[set[int]], count: int
) -> list[tuple[int, ...]]:
    """Every `count` steps with all that they need, the fewest first."""
    found: dict[tuple[int, ...], None] = {}
    for some in combinations(reversed(indices), count):
        kept: set[int] = set()
        todo = list(some)
        while todo:
            i = todo.pop()
            if i not in kept:
                kept.add(i)
                todo += needs[i]
        found[tuple(sorted(kept))] = None
    return sorted((k for k in found if len(k) < len(indices)), key=len)


def _needs(case: Case) -> list[set[int]]:
    """For each step those that made the loops and buffers it names."""
    made: dict[str, int] = {}
    needs: list[set[int]] = []
    kernel = case.kernel
    known = _names(kernel)
    for i, s in enumerate(case.trace):
        needs.append({made[a] for a in _strings(s.args) if a in made})
        try:
            kernel = apply(kernel, (s,))
        except TilewrightError:
            return needs + [set() for _ in case.trace[i + 1 :]]
        now = _names(kernel)
        made.update(dict.fromkeys(now - known, i))
        known |= now
    return needs


def _names(kernel: Kernel) -> set[str]:
    return {
        *loops(kernel.body),
        *(s.buffer.name for s in walk(kernel.body) if isinstance(s, Alloc)),
    }


def _strings(args: object) -> Iterator[str]:
    if isinstance(args, str):
        yield args
    elif isinstance(args, tuple):
        for a in args:
            yield from _strings(a)


def _distinct(*traces: Trace) -> list[Trace]:
    """Traces without repetition (arguments of a step need not have a hash)."""
    return [t for i, t in enumerate(traces) if t not in traces[:i]]


def _unsplit(case: Case) -> Iterator[Case]:
    """Without a split: what was done to its parts is done to the whole loop."""
    trace = case.trace
    for i, s in enumerate(trace):
        if s.primitive in ("split", "overlap") and len(s.args) == 4:
            whole, parts = s.args[0], s.args[2:]
            for part in parts:
                rest = tuple(
                    Step(t.primitive, _renamed(t.args, part, whole)) for t in trace[i + 1 :]
                )
                others = {str(p) for p in parts if p != part}
                for after in _distinct(_without(rest, others), rest):
                    yield case.with_(trace=(*trace[:i], *after))


def _renamed(args: tuple[object, ...], old: object, new: object) -> tuple[object, ...]:
    """Arguments with another name for a loop."""
    return tuple(
        _renamed(a, old, new) if isinstance(a, tuple) else new if a == old else a for a in args
    )


# ---------------------------------------------------------------- smaller dims


def smaller_dims(case: Case) -> Iterator[Case]:
    """All loops of an extent at once with the dims of that length, and the numbers in steps in proportion."""
    for n in _sizes(case.kernel):
        for m in fewer(n):
            kernel = _resized(case.kernel, n, m)
            for trace in _distinct(case.trace, *_scaled(case.trace, n, m)):
                yield case.with_(kernel=kernel, trace=trace)


def fewer_iterations(case: Case) -> Iterator[Case]:
    """One loop with fewer iterations, and the dims that it alone goes along; without them."""
    kernel = case.kernel
    for var, f in loops(kernel.body).items():
        for m in fewer(f.extent.const) if f.extent.is_const else ():
            yield case.with_(kernel=_narrowed(kernel, var, f.extent.const, m))
    for path, s in _statements(kernel.body, ()):
        if isinstance(s, For) and s.extent.is_const and s.extent.const > 1:
            for m in fewer(s.extent.const):
                body = _put(kernel.body, path, replace(s, extent=Ix(m)))
                yield case.with_(kernel=replace(kernel, body=body))


def _narrowed(kernel: Kernel, var: str, n: int, m: int) -> Kernel:
    """Loops called `var` of n iterations with m, and dims of n elements that are indexed by it."""
    along = {
        (name, d)
        for name, index, _ in accesses(kernel.body)
        for d, i in enumerate(index)
        if i == ix(var)
    }

    def stmt(s: Stmt) -> Stmt:
        return replace(s, extent=Ix(m)) if isinstance(s, For) and s.var == var else s

    def shape(b: Buffer) -> tuple[int, ...]:
        return tuple(m if x == n and (b.name, d) in along else x for d, x in enumerate(b.shape))

    params = tuple(
        replace(p, buffer=replace(p.buffer, shape=shape(p.buffer))) for p in kernel.params
    )
    return replace(kernel, params=params, body=map_block(kernel.body, stmt=stmt))


def fewer_statements(case: Case) -> Iterator[Case]:
    """A statement left out; one side of a choice."""
    kernel = case.kernel
    for path, s in _statements(kernel.body, ()):
        for new in (s.then, s.orelse) if isinstance(s, If) else ((),):
            yield case.with_(kernel=replace(kernel, body=_put(kernel.body, path, *new)))


def fewer_loops(case: Case) -> Iterator[Case]:
    """A loop left out, or its first iteration instead of it, and its name in steps with it."""
    for var, f in loops(case.kernel.body).items():
        kernel = (
            _narrowed(case.kernel, var, f.extent.const, 1) if f.extent.is_const else case.kernel
        )
        for path, s in _statements(kernel.body, ()):
            if not isinstance(s, For) or s.var != var:
                continue
            zero = {var: Ix(0)}
            first = map_block(s.body, index=lambda i, zero=zero: substitute(i, zero))  # type: ignore[misc]
            for new in ((), first):
                made = replace(kernel, body=_put(kernel.body, path, *new))
                gone = set(loops(kernel.body)) - set(loops(made.body))
                yield case.with_(kernel=made, trace=_without(case.trace, gone))


def _without(trace: Trace, gone: set[str]) -> Trace:
    """The trace where loops are gone: lists without their names, no step that needs one, or a loop made of one."""
    gone = set(gone)
    kept: list[Step] = []
    for s in trace:
        args = tuple(
            tuple(x for x in a if not isinstance(x, str) or x not in gone)
            if isinstance(a, tuple)
            else a
            for a in s.args
        )
        if gone & {a for a in args if isinstance(a, str)}:
            gone |= {a for a in s.args[2:] if isinstance(a, str)}
        elif not any(
            a != b and len(a) < (2 if s.primitive == "reorder" else 1)
            for a, b in zip(args, s.args, strict=True)
            if isinstance(a, tuple)
        ):
            kept.append(Step(s.primitive, args))
    return tuple(kept)


def fewer(n: int) -> list[int]:
    """Smaller numbers, positive and the smallest first: those that leave a remainder of pairs, and of short vectors;
    what is next to the half."""
    some = (1, 2, 3, 5, 9, 17, n // 2, n // 2 + 1, n - 1)
    return sorted({m for m in some if 0 < m < n})


def _sizes(kernel: Kernel) -> list[int]:
    sizes = {n for p in kernel.params for n in p.buffer.shape}
    for s in walk(kernel.body):
        if isinstance(s, For) and s.extent.is_const:
            sizes.add(s.extent.const)
    return sorted(sizes, reverse=True)


def _scaled(trace: Trace, n: int, m: int) -> Iterator[Trace]:
    """The trace with its numbers as much smaller as m is than n, and with pairs instead of them."""

    def scaled(number: Callable[[int], int]) -> Trace:
        return tuple(
            Step(s.primitive, tuple(number(a) if type(a) is int and a > 2 else a for a in s.args))
            for s in trace
        )

    yield scaled(lambda a: max(2, a * m // n))
    yield scaled(lambda a: 2)


def _resized(kernel: Kernel, n: int, m: int) -> Kernel:
    """Every loop of n iterations with m, every dim of n elements with m (strides stay)."""

    def stmt(s: Stmt) -> Stmt:
        if isinstance(s, For) and s.extent == Ix(n):
            return replace(s, extent=Ix(m))
        if isinstance(s, Alloc):
            shape = tuple(m if x == n else x for x in s.buffer.shape)
            return Alloc(dense(s.buffer.name, s.buffer.dtype, shape, s.buffer.space))
        return s

    params = tuple(
        replace(
            p, buffer=replace(p.buffer, shape=tuple(m if x == n else x for x in p.buffer.shape))
        )
        for p in kernel.params
    )
    return replace(kernel, params=params, body=map_block(kernel.body, stmt=stmt))


def _statements(block: Block, path: tuple[int, ...]) -> Iterator[tuple[tuple[int, ...], Stmt]]:
    for i, s in enumerate(block):
        yield (*path, i), s
        if isinstance(s, For):
            yield from _statements(s.body, (*path, i))


def _put(block: Block, path: tuple[int, ...], *new: Stmt) -> Block:
    """The block with the statement at `path` replaced."""
    i, *rest = path
    if not rest:
        return (*block[:i], *new, *block[i + 1 :])
    s = block[i]
    assert isinstance(s, For)
    return (*block[:i], replace(s, body=_put(s.body, tuple(rest), *new)), *block[i + 1 :])


# ---------------------------------------------------------------- plainer


def smaller_numbers(case: Case) -> Iterator[Case]:
    """One number of one step smaller."""
    for i, s in enumerate(case.trace):
        for k, a in enumerate(s.args):
            for n in fewer(a) if type(a) is int and a > 1 else ():
                args = (*s.args[:k], n, *s.args[k + 1 :])
                yield case.with_(
                    trace=(*case.trace[:i], Step(s.primitive, args), *case.trace[i + 1 :])
                )


def denser_rows(case: Case) -> Iterator[Case]:
    """Rows that follow each other in memory: all buffers at once, then one by one."""
    params = case.kernel.params
    dense_ones = tuple(
        replace(p, buffer=replace(p.buffer, strides=dense_strides(p.buffer.shape)))
        if all(s > 0 for s in p.buffer.strides)
        else p
        for p in params
    )
    if dense_ones == params:
        return
    yield case.with_(kernel=replace(case.kernel, params=dense_ones))
    for i, p in enumerate(dense_ones):
        if p != params[i]:
            some = (*params[:i], p, *params[i + 1 :])
            yield case.with_(kernel=replace(case.kernel, params=some))


def plainer_data(case: Case) -> Iterator[Case]:
    """One 1 among zeros, else small whole numbers."""
    for kind in ("one_hot", "integers"):
        if any(d.kind != kind for d in case.data.values()) and not any(
            d.kind == "one_hot" for d in case.data.values()
        ):
            yield case.with_(data={n: Data(kind) for n in case.data})


#: What is tried, in order, again and again.
WAYS: tuple[Way, ...] = (
    fewer_steps, smaller_dims, fewer_iterations, fewer_statements, fewer_loops, smaller_numbers, denser_rows, plainer_data,
)  # fmt: skip
