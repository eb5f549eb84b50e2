"""Hypothesis strategies: dims, data, schedules, cases.

In: a target, operators. Out: strategies whose values are legal by construction, and shrink.
Invariant: a schedule is drawn step by step: "stop", or a step that is legal now, so every prefix is a schedule.
Fewer and simpler steps, smaller dims and plainer data are what shrinking goes for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any, get_args

from hypothesis import strategies as st

from tilewright.core.dtypes import BOOL, F16
from tilewright.errors import ScheduleError, TilewrightError
from tilewright.loop.ir import Alloc, Buffer, For, Kernel
from tilewright.loop.passes.specialize_tails import specialize_tails
from tilewright.loop.rewrite import accesses, loops, walk
from tilewright.registry import operators
from tilewright.schedule.space import Space
from tilewright.schedule.target import Target, load_target
from tilewright.schedule.trace import Step, Trace, apply, step
from tilewright.testing.case import Case, Data, iterations
from tilewright.testing.data import Kind
from tilewright.testing.oracles import outside
from tilewright.testing.subjects import Subject, samples, subject, testable
from tilewright.testing.subjects import dims as dims_of
from tilewright.tune.admit import admit, statements
from tilewright.tune.library import default_trace, space_of

#: Kernels that run more statements than this are not drawn.
MOST_WORK = 400_000
#: Statements of a drawn schedule's code: more takes LLVM long and shows nothing new.
MOST_STATEMENTS = 600
#: Steps of a drawn schedule, attempts to draw a legal one.
MOST_STEPS, ATTEMPTS = 8, 5
KINDS: tuple[Kind, ...] = get_args(Kind)


def dims(target: Target) -> st.SearchStrategy[int]:
    """Extents around what matters on a target: 1, vectors and two of them, register tiles, primes."""
    lanes = target.lanes(4) if target.family != "cuda" else 32
    near = sorted({
        n for base in (lanes, 2 * lanes, 4 * lanes) for n in (base - 1, base, base + 1) if n > 0
    })  # fmt: skip
    return st.one_of(st.integers(1, 9), st.sampled_from(near), st.integers(1, 4 * lanes + 3))


def data(kinds: Sequence[Kind] = KINDS) -> st.SearchStrategy[Data]:
    """Data of a kind."""
    return st.builds(Data, st.sampled_from(list(kinds)), st.integers(0, 7))


@st.composite
def subjects(draw: st.DrawFn, target: Target, names: Sequence[str] | None = None) -> Subject:
    """A kernel: an operator's sample, with some of its dims renamed and rows apart in memory."""
    usable = [n for n in (names or sorted(operators())) if testable(n)]
    if not usable:
        raise TilewrightError(
            f"none of {', '.join(names or ())} has a sample that becomes a kernel"
        )
    name = draw(st.sampled_from(usable))
    number = draw(st.sampled_from(list(testable(name))))
    constants = draw(st.booleans())
    old = dims_of(samples(name)[number])
    renamed: dict[int, int] = {}
    for n in old:
        if draw(st.booleans()):
            renamed[n] = draw(dims(target))
    found: Subject | None = None
    for attempt in (renamed, dict(list(renamed.items())[:1]), {}):
        try:
            found = subject(name, number, attempt, constants)
        except TilewrightError:
            continue
        if iterations(found.kernel) <= MOST_WORK:
            break
    if found is None:
        found = subject(name, number, {}, True)
    return replace(found, kernel=draw(spread(found.kernel)))


@st.composite
def spread(draw: st.DrawFn, kernel: Kernel) -> Kernel:
    """The kernel on buffers whose rows lie further apart than they are long."""
    params = []
    for p in kernel.params:
        gap = draw(st.integers(0, 3)) if p.role != "const" else 0
        params.append(replace(p, buffer=_apart(p.buffer, gap)) if gap else p)
    return replace(kernel, params=tuple(params))


def _apart(b: Buffer, gap: int) -> Buffer:
    """`gap` elements more between rows: between neighbours along every dim but the innermost."""
    inner = min((s for s in b.strides if s > 0), default=1)
    if any(s < 0 for s in b.strides) or inner != 1 or b.shape.count(1) == len(b.shape):
        return b
    order = sorted(range(len(b.shape)), key=lambda d: b.strides[d])
    new = dict(zip(order, [b.strides[d] for d in order], strict=True))
    reach = 1
    for d in order:
        if b.strides[d] == 0 or b.shape[d] == 1:
            continue
        if b.strides[d] > 1:
            new[d] = max(b.strides[d], reach) + gap
        reach = new[d] * (b.shape[d] - 1) + reach
    return replace(b, strides=tuple(new[d] for d in range(len(b.shape))))


# ---------------------------------------------------------------- schedules


@st.composite
def traces(draw: st.DrawFn, subject: Subject, target: Target) -> Trace:
    """A legal schedule: drawn step by step, from nothing, from (a part of) the default, or from a point of the
    operator's space."""
    start = draw(st.sampled_from(["nothing", "default", "space"]))
    trace: list[Step] = []
    made = [subject.kernel]  # after no step, after one ...
    if start != "nothing":
        base = _default(subject, target) if start == "default" else draw(_point(subject, target))
        kept = draw(st.integers(0, len(base)))  # shrinks to none of it
        for one in base[:kept]:
            try:
                made.append(apply(made[-1], (one,)))
            except ScheduleError:
                break
            trace.append(one)
    for _ in range(draw(st.integers(0, MOST_STEPS))):
        if statements(made[-1].body) > MOST_STATEMENTS:
            break
        found = draw(_next(made[-1], target, len(trace)))
        if found is None:
            break
        trace.append(found[0])
        made.append(found[1])
    whole = tuple(trace)
    while trace and not _reasonable(made[-1]):
        if tuple(trace) == whole and outside(Case(made[0], whole, target.name)) is not None:
            break  # a bug: primitives accepted it. What shows it in a part of the steps shows it in all of them
        trace.pop()
        made.pop()
    return tuple(trace)


def _reasonable(made: Kernel) -> bool:
    """Whether a scheduled kernel is of reasonable size and provable."""
    try:
        if statements(specialize_tails(made).body) > MOST_STATEMENTS:
            return False  # known before anything is proved, which takes long
        return statements(admit(made, ()).body) <= MOST_STATEMENTS
    except ScheduleError:
        return False


def _default(subject: Subject, target: Target) -> Trace:
    return default_trace(operators().get(subject.operator), subject.kernel, target)


@st.composite
def _point(draw: st.DrawFn, subject: Subject, target: Target) -> Trace:
    space: Space | None = space_of(operators().get(subject.operator), subject.kernel, target)
    if space is None or not all(space.params.values()):
        return _default(subject, target)
    choice = {name: draw(st.sampled_from(list(values))) for name, values in space.params.items()}
    try:
        return space.trace(choice)
    except ScheduleError:
        return _default(subject, target)


@st.composite
def _next(
    draw: st.DrawFn, kernel: Kernel, target: Target, count: int
) -> tuple[Step, Kernel] | None:
    """A step that is legal now, and what it makes: the first legal one of some that name what is there."""
    kinds = _steps(kernel, target, f"v{count}")
    for _ in range(ATTEMPTS if kinds else 0):
        drawn = draw(draw(st.sampled_from(kinds)))
        try:
            return drawn, apply(kernel, (drawn,))
        except ScheduleError:
            continue
    return None


def _steps(kernel: Kernel, target: Target, fresh: str) -> list[st.SearchStrategy[Step]]:
    """Steps of every kind that could be legal, whose arguments name what is there."""
    names = list(loops(kernel.body))
    consts = [p.buffer for p in kernel.params if p.role == "const" and p.buffer.dtype is not BOOL]
    lanes = target.lanes(4) if target.family != "cuda" else 32
    factor = st.one_of(st.integers(1, 9), st.sampled_from([lanes, lanes // 2 or 1, 2 * lanes]))
    options: list[st.SearchStrategy[Step]] = []
    if consts:
        options.append(st.sampled_from(consts).flatmap(lambda b: _pack(b, factor)))
    if not names:
        return options
    var = st.sampled_from(names)
    options += [
        st.builds(lambda v, f: step("split", v, f, f"{fresh}o", f"{fresh}i"), var, factor),
        st.builds(lambda v, f: step("overlap", v, f, f"{fresh}o", f"{fresh}i"), var, factor),
        st.builds(lambda v: step("unroll", v), var),
        st.builds(lambda v: step("vectorize", v), var),
        st.builds(lambda v: step("parallelize", v), var),
    ]
    nests = [n for n in _nests(kernel) if len(n) > 1]
    if nests:
        pairs = st.sampled_from([pair for n in nests for pair in pairwise(n)])
        options.append(st.builds(lambda p: step("fuse", *p, f"{fresh}f"), pairs))
        orders = st.sampled_from(nests).flatmap(_order)
        options.append(st.builds(lambda order: step("reorder", order), orders))
    around = _around_scratch(kernel)
    if around:
        options.append(st.builds(lambda n: step("stage", n), st.sampled_from(around)))
    sums = _sums(kernel)
    if sums:
        width = st.sampled_from([2, 4, lanes, 2 * lanes])
        options.append(
            st.builds(lambda pair, w: step("lanes", *pair, w), st.sampled_from(sums), width)
        )
    if sums:
        options.append(st.builds(lambda pair: step("hold", pair[1]), st.sampled_from(sums)))
    if sums and nests:
        inside = st.sampled_from(nests).flatmap(
            lambda n: st.integers(1, len(n) - 1).flatmap(
                lambda i: st.integers(0, i).map(lambda o: (n[o], n[i]))
            )
        )
        acc = st.sampled_from(sums).map(lambda pair: pair[0])
        options.append(st.builds(lambda a, pair: step("rfactor", a, *pair), acc, inside))
    if target.dot:
        options.append(st.builds(lambda v: step("tensorize", v), var))
    return options + (_gpu_steps(kernel, var) if target.family == "cuda" else [])


def _gpu_steps(kernel: Kernel, var: st.SearchStrategy[str]) -> list[st.SearchStrategy[Step]]:
    """Steps of GPUs. Tensor cores come with what the default begins with: tiles of their shape."""
    axis = st.sampled_from(["block", "thread"])
    options: list[st.SearchStrategy[Step]] = [
        st.builds(lambda v, k: step("bind", v, k), var, axis),
        st.builds(lambda v: step("cooperate", v), st.one_of(st.just(""), var)),
    ]
    read = [p.buffer.name for p in kernel.params if p.role != "out"]
    if read:
        sizes = st.sampled_from([1, 4, 32]), st.sampled_from([1, 2, 4]), st.sampled_from([0, 1])
        options.append(
            st.builds(lambda b, v, *n: step("share", b, v, *n), st.sampled_from(read), var, *sizes)
        )
    halves = [
        s.buffer.name for s in walk(kernel.body) if isinstance(s, Alloc) and s.buffer.dtype is F16
    ]
    if halves:
        options.append(st.builds(lambda b: step("widen", b, "f32"), st.sampled_from(halves)))
    return options


def _nests(kernel: Kernel) -> list[list[str]]:
    """Perfectly nested loops, outermost first."""
    return [[f.var for f in _nest(s)] for s in walk(kernel.body) if isinstance(s, For)]


def _nest(s: For) -> list[For]:
    chain = [s]
    while len(s.body) == 1 and isinstance(s.body[0], For):
        s = s.body[0]
        chain.append(s)
    return chain


def _order(nest: list[str]) -> st.SearchStrategy[list[str]]:
    """The outer loops of a nest in any order; shrinks to as they are."""
    return st.integers(2, len(nest)).flatmap(lambda n: st.permutations(nest[:n]))


def _around_scratch(kernel: Kernel) -> list[list[str]]:
    """Perfectly nested loops with scratch in the innermost one, which `stage` may keep alive."""
    found: list[list[str]] = []
    for s in walk(kernel.body):
        if isinstance(s, For):
            nest = _nest(s)
            if any(isinstance(x, Alloc) for x in nest[-1].body):
                found.append([f.var for f in nest])
    return found


def _sums(kernel: Kernel) -> list[tuple[str, str]]:
    """Scratch and loops that store into it, of which `lanes` and `rfactor` make partial sums."""
    scratch = {s.buffer.name for s in walk(kernel.body) if isinstance(s, Alloc)}
    found = {
        (name, s.var): None
        for s in walk(kernel.body) if isinstance(s, For)
        for name, _, stored in accesses(s.body) if stored and name in scratch
    }  # fmt: skip
    return list(found)


@st.composite
def _pack(draw: st.DrawFn, b: Buffer, factor: st.SearchStrategy[int]) -> Step:
    """Another order of a constant's dims, one of them in tiles or none."""
    order = draw(st.permutations(range(len(b.shape))))
    parts: list[list[Any]] = [[d, 0, "whole"] for d in order]
    tiled = bool(parts) and draw(st.sampled_from([False, True]))
    if tiled:
        d = draw(st.sampled_from(list(order)))
        tile = draw(factor)
        at = draw(st.integers(0, len(parts)))
        parts = [[x, tile, "outer"] if x == d else [x, z, p] for x, z, p in parts]
        parts.insert(at, [d, tile, "inner"])
    return step("pack", b.name, parts)


# ---------------------------------------------------------------- cases


@st.composite
def cases(
    draw: st.DrawFn,
    target: str | Target,
    names: Sequence[str] | None = None,
    oracles: Sequence[str] = (),
) -> Case:
    """A kernel, a schedule and data for a target (a name or a `Target`); `names`: of which operators."""
    machine = target if isinstance(target, Target) else load_target(target)
    found = draw(subjects(machine, names))
    trace = draw(traces(found, machine))
    kinds: Sequence[Kind] = ("integers", "one_hot") if machine.family == "cuda" else KINDS
    one = draw(data(kinds))
    values = {p.buffer.name: one for p in found.kernel.params if p.role != "out"}
    return Case(found.kernel, trace, machine.name, values, tuple(oracles), found.operator)
