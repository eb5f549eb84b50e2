"""Make a failing case small, and say which step or pass is to blame.

In: a case that fails, the judge. Out: a smaller case that still fails; the first guilty stage.
Invariant: every step taken keeps a failure (of any oracle). Greedy: fewer steps, smaller numbers in them, fewer
iterations, simpler data (Zeller and Hildebrandt, "Simplifying and Isolating Failure-Inducing Input", 2002).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace

from tilewright.core.index import Ix
from tilewright.errors import ScheduleError, TilewrightError
from tilewright.loop.ir import Alloc, Block, For, If, Kernel, Stmt, dense
from tilewright.loop.passes.expand_math import expand_math
from tilewright.loop.passes.specialize_tails import specialize_tails
from tilewright.loop.passes.split_sums import split_sums
from tilewright.loop.rewrite import map_block
from tilewright.loop.verify import verify
from tilewright.schedule.trace import Step, Trace, apply
from tilewright.testing.case import Case, Data, Failure, iterations
from tilewright.testing.oracles import INTERPRETED, interpreted, judge, pack_all, ring_arrays
from tilewright.testing.ring import ring
from tilewright.testing.worker import Worker

Judge = Callable[[Case], Failure | None]

#: Seconds that making a case smaller may take.
SECONDS = 60.0


def minimise(case: Case, test: Judge = judge, seconds: float = SECONDS) -> Case:
    """The smallest case found that still fails, with its failure."""
    end = time.monotonic() + seconds
    best = _failing(case, test)
    if best is None:
        return case
    shrunk = True
    while shrunk and time.monotonic() < end:
        shrunk = False
        for candidate in _smaller(best):
            if time.monotonic() > end:
                break
            found = _failing(candidate, test)
            if found is not None:
                best, shrunk = found, True
                break
    return best


def _failing(case: Case, test: Judge) -> Case | None:
    try:
        failure = test(case)
    except TilewrightError:
        return None  # no legal case any more
    except Exception as err:  # what the search calls a failure, too
        failure = Failure("error", f"{type(err).__name__}: {err}")
    return None if failure is None else case.with_(failure=failure)


def _smaller(case: Case) -> Iterator[Case]:
    """Candidates, the boldest first."""
    trace = case.trace
    for size in (len(trace) // 2, 1):
        for i in range(0, len(trace), max(size, 1)) if size else ():
            yield case.with_(trace=trace[:i] + trace[i + size :])
    for i, s in enumerate(trace):
        if (
            s.primitive == "split" and len(s.args) == 4
        ):  # without it, the whole loop for the part of it
            whole, parts = s.args[0], s.args[2:]
            for part in parts:
                rest = (Step(t.primitive, _renamed(t.args, part, whole)) for t in trace[i + 1 :])
                yield case.with_(trace=(*trace[:i], *rest))
    for kernel in _smaller_kernels(case.kernel):
        smaller = case.with_(kernel=kernel)
        if _complete(smaller):
            yield smaller
    for i, s in enumerate(trace):
        for args in _smaller_arguments(s):
            yield case.with_(trace=(*trace[:i], Step(s.primitive, args), *trace[i + 1 :]))
    for kind in ("one_hot", "integers"):
        if any(d.kind != kind for d in case.data.values()) and not any(
            d.kind == "one_hot" for d in case.data.values()
        ):
            yield case.with_(data={n: Data(kind) for n in case.data})


def _complete(case: Case) -> bool:
    """Whether the kernel still writes every element of its outputs, which oracles take for granted."""
    if not case.kernel.body or iterations(case.kernel) > INTERPRETED:
        return False
    arrays = case.arrays()
    try:
        verify(case.kernel)
        first, second = (interpreted(case.kernel, arrays, fill) for fill in (7, 9))
    except (TilewrightError, LookupError):
        return False
    return all(first[n].tobytes() == second[n].tobytes() for n in first)


def _renamed(args: tuple[object, ...], old: object, new: object) -> tuple[object, ...]:
    """Arguments with another name for a loop."""
    return tuple(
        _renamed(a, old, new) if isinstance(a, tuple) else new if a == old else a for a in args
    )


def _smaller_arguments(s: Step) -> Iterator[tuple[object, ...]]:
    for i, a in enumerate(s.args):
        if type(a) is int and a > 1:
            for n in _fewer(a):
                yield (*s.args[:i], n, *s.args[i + 1 :])


def _fewer(n: int) -> list[int]:
    """Smaller numbers, positive and the smallest first; 3 and what is next to the half keep a remainder of pairs."""
    return sorted({m for m in (1, 2, 3, n // 2, n // 2 + 1, n - 1) if 0 < m < n})


def _smaller_kernels(kernel: Kernel) -> Iterator[Kernel]:
    """Loops with fewer iterations, all of an extent at once with the dims of that length; statements left out."""
    sizes = {n for p in kernel.params for n in p.buffer.shape} | {
        s.extent.const
        for _, s in _statements(kernel.body, ())
        if isinstance(s, For) and s.extent.is_const
    }
    for n in sorted(sizes, reverse=True):
        for m in _fewer(n):
            yield _resized(kernel, n, m)
    for path, s in _statements(kernel.body, ()):
        if isinstance(s, For) and s.extent.is_const and s.extent.const > 1:
            n = s.extent.const
            for m in _fewer(n):
                yield replace(kernel, body=_put(kernel.body, path, replace(s, extent=Ix(m))))
    for path, s in _statements(kernel.body, ()):
        if isinstance(s, If):
            for side in (s.then, s.orelse):
                yield replace(kernel, body=_put(kernel.body, path, *side))
        else:
            yield replace(kernel, body=_put(kernel.body, path))


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


# ---------------------------------------------------------------- who is to blame


def blame(case: Case) -> str:
    """The first stage whose result is wrong: `step 2: split(...)`, a loop pass, code generation, or LLVM."""
    stages = list(_stages(case.kernel, case.trace))
    ringed = _ringed(case)
    if ringed is not None and iterations(case.kernel) <= INTERPRETED:
        for (name, _), (_, kernel) in zip(stages, _stages(ringed, case.trace), strict=False):
            if _wrong(ringed, kernel, case):
                return name
    for n in range(len(case.trace) + 1):  # the shortest part of the trace that fails natively
        part = case.with_(trace=case.trace[:n])
        try:
            failure = judge(part)
        except TilewrightError:
            continue
        if failure is not None:
            where = f"step {n}: {case.trace[n - 1]}" if n else "the kernel without a schedule"
            with Worker(optimised=False) as plain:
                right = judge(part, plain) is None
            what = "LLVM's optimiser (right without it)" if right else "code generation"
            return f"{what}, beginning with {where}"
    return "code generation"


def _ringed(case: Case) -> Kernel | None:
    try:
        return ring(case.kernel)
    except ScheduleError:
        return None


def _stages(kernel: Kernel, trace: Trace) -> Iterator[tuple[str, Kernel]]:
    made = kernel
    for i, s in enumerate(trace):
        try:
            made = apply(made, (s,))
        except ScheduleError:
            return
        yield f"step {i + 1}: {s}", made
    made = split_sums(made)
    yield "loop pass split_sums", made
    made = specialize_tails(made)
    yield "loop pass specialize_tails", made
    yield "loop pass expand_math", expand_math(made)


def _wrong(plain: Kernel, made: Kernel, case: Case) -> bool:
    """Whether the interpreter gives other results after a stage."""
    arrays = ring_arrays(case.arrays(), plain)

    def result(kernel: Kernel) -> dict[str, bytes] | None:
        try:
            outputs = interpreted(*pack_all(kernel, arrays))
        except TilewrightError:
            return None
        return {n: a.tobytes() for n, a in outputs.items()}

    return result(plain) != result(made)
