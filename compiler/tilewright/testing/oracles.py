"""What must hold for every legal schedule of every kernel, from cheap to dear.

In: a `Case`. Out: a `Failure`, or None.
Invariant: no oracle has a tolerance of its own. Results are compared bit for bit, or with a bound that follows
from the schedule (`testing.bounds`).

static   what primitives accept stays inside its buffers and reads nothing that was not written
replay   text and trace read back are the same kernel
ring     in integers modulo 2**32, native code of the schedule gives what the interpreter gives without one
exact    on small whole numbers, native code with and without the schedule gives the same bits
bound    on any data, native code is as near to float64 as the schedule's own sums allow
same     memory, alignment, what was in outputs before, the order of threads change no bit

where code cannot run here:
schedule in integers modulo 2**32, the interpreter gives the same with and without the schedule
device   in the target's emulator, code gives what `ring` and `exact` say
gpu      the interpreter of threads gives what the serial one gives without a schedule, and finds no race
ptx      a GPU's code is generated, and LLVM takes it
"""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from tilewright.codegen.cuda import emit_cuda
from tilewright.codegen.llvm import runs_here, to_assembly
from tilewright.errors import IRError, ScheduleError, TilewrightError
from tilewright.loop import interp, simt
from tilewright.loop.ir import Binary, Const, Expr, Kernel, Unary, dense
from tilewright.loop.pack import pack_array
from tilewright.loop.parse import parse
from tilewright.loop.passes.split_sums import split_sums
from tilewright.loop.rewrite import children, expressions
from tilewright.loop.text import to_text
from tilewright.schedule.target import Target
from tilewright.schedule.trace import apply, trace_from_json, trace_to_json
from tilewright.testing.bounds import bounded
from tilewright.testing.case import Case, Failure, iterations
from tilewright.testing.native import Array, Native
from tilewright.testing.on_device import can_emulate, outcomes
from tilewright.testing.ring import ring
from tilewright.testing.worker import Outcome, Unjudged, Worker, shared
from tilewright.tune.admit import admit, finish, formed
from tilewright.tune.workers import WorkerLost

#: Statements that interpreters are given at most.
INTERPRETED = 30_000
_WHOLE_OPS = frozenset({"add", "sub", "mul", "min", "max", "lt", "le", "gt", "ge", "eq", "ne"})


def names(target: Target) -> tuple[str, ...]:
    """The oracles that apply to a target here."""
    if target.family == "cuda":
        return ("replay", "gpu", "ptx")
    if runs_here(target):
        return tuple(_ORACLES)
    return ("replay", "schedule", "device") if can_emulate(target) else ("replay", "schedule")


def judge(case: Case, worker: Worker | None = None) -> Failure | None:
    """The first oracle that a case fails. Raises `ScheduleError` if its trace is not legal."""
    target = case.machine()
    try:
        made = admit(case.kernel, case.trace)
    except ScheduleError:
        wrong = outside(case)
        if wrong is None:
            raise
        return wrong
    at_work = worker or shared()
    for name in case.oracles or names(target):
        oracle = ORACLES.get(name)
        if oracle is None:
            raise TilewrightError(f"there is no oracle `{name}` (there are: {', '.join(ORACLES)})")
        found = oracle(_Subject(case, target, made, at_work))
        if found is not None:
            return replace(found, oracle=name)
    return None


def outside(case: Case) -> Failure | None:
    """What the bounds-checked interpreter says of a schedule that every primitive accepted, and the proof did not."""
    if iterations(case.kernel) > INTERPRETED:
        return None
    try:
        made = formed(case.kernel, case.trace)
    except ScheduleError:
        return None
    shaped, packed = pack_all(made, case.arrays())
    try:
        interpreted(shaped, packed)
    except IRError as err:
        return Failure("static", str(err))
    return None


class _Subject:
    """A case at work: what oracles share."""

    def __init__(self, case: Case, target: Target, made: Kernel, worker: Worker) -> None:
        self.case, self.target, self.made, self.worker = case, target, made, worker
        self.kernel, self.arrays = case.kernel, case.arrays()
        self.small = iterations(case.kernel) <= INTERPRETED

    @cached_property
    def ringed(self) -> tuple[Kernel, dict[str, Array], dict[str, Array]] | None:
        """The schedule of the kernel in integers modulo 2**32, its inputs, and what the interpreter gives without a
        schedule (nothing where that takes long); None where the ring says nothing."""
        try:
            plain = ring(self.kernel)
            made = admit(plain, self.case.trace)
            arrays = ring_arrays(self.arrays, plain)
            return made, arrays, _meaning(plain, arrays) if self.small else {}
        except (ScheduleError, IRError):
            return None

    def native(self, kernel: Kernel, arrays: Mapping[str, Array], **how: Any) -> Outcome:
        return self.worker.run(Native(kernel, self.target, arrays, **how))


def _replay(s: _Subject) -> Failure | None:
    if not _alike(parse(to_text(s.kernel)), s.kernel):
        return Failure("", "the kernel's text reads back as another kernel")
    trace = trace_from_json(trace_to_json(s.case.trace))
    if apply(s.kernel, trace) != apply(s.kernel, s.case.trace):
        return Failure("", "the trace's JSON replays to another kernel")
    made = formed(s.kernel, s.case.trace)
    if not _alike(parse(to_text(made)), made):
        return Failure("", "the scheduled kernel's text reads back as another kernel")
    return None


def _alike(a: Kernel, b: Kernel) -> bool:
    """Whether two kernels are the same; a literal NaN is no number that equals itself."""
    return a == b or ("nan:" in to_text(b) and to_text(a) == to_text(b))


def _ring(s: _Subject) -> Failure | None:
    try:
        plain = ring(s.kernel)
        made = admit(plain, s.case.trace)
    except ScheduleError:
        return None  # a step that wants floats
    arrays = ring_arrays(s.arrays, plain)
    try:
        want = _expected(s, plain, arrays)
    except IRError:
        return None  # what it does depends on values that mean nothing here
    return _compare(s.native(made, arrays), want)


def _exact(s: _Subject) -> Failure | None:
    if any(d.kind not in ("integers", "one_hot") for d in s.case.data.values()):
        return None
    if _reordered(s) and not _whole(s.kernel):
        return None  # sums of rounded numbers in another order
    want = s.native(finish(s.kernel, ()), s.arrays)
    if want.problem:
        return _compare(want, {})
    return _compare(s.native(s.made, s.arrays), want.outputs)


def _bound(s: _Subject) -> Failure | None:
    if not s.small:
        return None
    scheduled = formed(s.kernel, s.case.trace)
    packed = _packed(scheduled, s.arrays)
    shaped = _as_packed(scheduled)
    try:
        exact = bounded(shaped, packed)
    except IRError:
        return None  # it branches on a rounded value
    got = s.native(s.made, s.arrays)
    if got.problem:
        return _compare(got, {})
    for name, (values, errors) in exact.items():
        mine = got.outputs[name]
        if mine.dtype.kind != "f":
            wrong = (mine != values) & (errors == 0)
        else:
            wide = mine.astype(np.float64)
            with np.errstate(all="ignore"):
                same = (wide == values) | (np.isnan(wide) & np.isnan(values))
                wrong = ~same & ~(np.abs(wide - values) <= errors) & np.isfinite(errors)
            # what is only moved or negated keeps the sign of a zero
            wrong |= (values == 0) & (errors == 0) & (np.signbit(wide) != np.signbit(values))
        if wrong.any():
            at = _first(wrong)
            return Failure(
                "", f"{mine[at]} where {values[at]:.9g} is exact and the error is bounded by {errors[at]:.3g}",
                name, at,
            )  # fmt: skip
    return None


def _same(s: _Subject) -> Failure | None:
    first = s.native(s.made, s.arrays)
    if first.problem:
        return _compare(first, {})
    second = s.native(s.made, s.arrays, poison=0x3F, side="left", backwards=True)
    found = _compare(second, first.outputs)
    if found is None or second.problem:
        return found
    return replace(found, message=f"another run gives something else: {found.message}")


def _gpu(s: _Subject) -> Failure | None:
    if not s.small:
        return None
    want = _expected(s, s.kernel, s.arrays)
    arrays = {n: a.copy() for n, a in _packed(s.made, s.arrays).items()}
    for p in s.made.params:
        if p.role == "out":
            arrays[p.buffer.name] = np.full(p.buffer.shape, 7, p.buffer.dtype.numpy)
    try:
        simt.run(_as_packed(s.made), arrays)
    except IRError as err:
        return Failure("", str(err))
    if not _whole(s.kernel) or any(
        d.kind not in ("integers", "one_hot") for d in s.case.data.values()
    ):
        return None
    return _compare(Outcome(arrays), want)


def _ptx(s: _Subject) -> Failure | None:
    try:
        s.worker.call(_assembly, s.made, s.target)
    except Unjudged:
        raise
    except WorkerLost as err:
        return Failure("", f"LLVM ends the process: {err}")
    except TilewrightError as err:
        return Failure("", str(err))
    return None


def _assembly(kernel: Kernel, target: Target) -> None:
    """Generate a GPU's code. Runs in a worker: nothing interrupts LLVM but the end of its process."""
    to_assembly(emit_cuda([kernel], target), target)


def _schedule(s: _Subject) -> Failure | None:
    if not s.small or s.ringed is None:
        return None
    made, arrays, want = s.ringed
    shaped, packed = pack_all(made, arrays)
    try:
        return _compare(Outcome(interpreted(shaped, packed)), want)
    except IRError as err:
        return Failure("", str(err))


def _device(s: _Subject) -> Failure | None:
    """`exact` for whole numbers, `ring` for all other data: starting an emulator is what takes time."""
    whole = all(d.kind in ("integers", "one_hot") for d in s.case.data.values())
    if whole and (_whole(s.kernel) or not _reordered(s)):
        found = _emulated(s, [finish(s.kernel, ()), s.made], s.arrays)
        if isinstance(found, Failure):
            return found
        return _compare(found[1], found[0].outputs) if found else None
    if s.ringed is None:
        return None
    made, arrays, want = s.ringed
    found = _emulated(s, [made], arrays)
    if isinstance(found, Failure):
        return found
    return _compare(found[0], want) if found else None


def _emulated(
    s: _Subject, kernels: list[Kernel], arrays: Mapping[str, Array]
) -> list[Outcome] | Failure:
    """What kernels compute in the emulator, nothing where it cannot be asked, or why they do not run."""
    try:
        found = outcomes(kernels, s.target, arrays) or []
    except TilewrightError as err:
        return Failure("", f"{type(err).__name__}: {err}")
    problems = (_compare(one, {}) for one in found)
    return next((p for p in problems if p is not None), found)


def _reordered(s: _Subject) -> bool:
    """Whether the schedule, or what is done to long sums, adds in another order."""
    made = apply(s.kernel, s.case.trace)
    return split_sums(made) != made or any(
        step.primitive in ("lanes", "rfactor", "widen", "hold", "tensorize_mma")
        for step in s.case.trace
    )


#: Those that run native code here, and those for other machines.
_ORACLES: dict[str, Callable[[_Subject], Failure | None]] = {
    "replay": _replay, "ring": _ring, "exact": _exact, "bound": _bound, "same": _same,
}  # fmt: skip
_ELSEWHERE: dict[str, Callable[[_Subject], Failure | None]] = {
    "gpu": _gpu, "ptx": _ptx, "schedule": _schedule, "device": _device,
}  # fmt: skip
#: All of them by name; `static` is no oracle to ask for: it judges every case.
ORACLES = {**_ORACLES, **_ELSEWHERE}


# ---------------------------------------------------------------- helpers


def _expected(s: _Subject, kernel: Kernel, arrays: Mapping[str, Array]) -> dict[str, Array]:
    """The unscheduled kernel's results: by the interpreter where that is quick."""
    if not s.small:
        return s.native(finish(kernel, ()), arrays).outputs
    return _meaning(kernel, arrays)


def _meaning(kernel: Kernel, arrays: Mapping[str, Array]) -> dict[str, Array]:
    """What an unscheduled kernel computes; known of the last few, which making a case small asks for again and again
    with other schedules."""
    key = pickle.dumps((kernel, dict(arrays)))
    if key not in _meanings:
        if len(_meanings) >= 8:
            _meanings.pop(next(iter(_meanings)))
        _meanings[key] = interpreted(kernel, arrays)
    return _meanings[key]


_meanings: dict[bytes, dict[str, Array]] = {}


def interpreted(kernel: Kernel, arrays: Mapping[str, Array], fill: int = 7) -> dict[str, Array]:
    """Outputs of a kernel that find `fill` in them."""
    values = {n: np.array(a) for n, a in arrays.items()}
    for p in kernel.params:
        if p.role == "out":
            values[p.buffer.name] = np.full(p.buffer.shape, fill, p.buffer.dtype.numpy)
    interp.run(kernel, values)
    return {p.buffer.name: values[p.buffer.name] for p in kernel.params if p.role == "out"}


def ring_arrays(arrays: Mapping[str, Array], plain: Kernel) -> dict[str, Array]:
    """Any 32 bits in place of floats; integers as they are."""
    rng = np.random.default_rng(1)
    return {
        p.buffer.name: rng.integers(0, 1 << 32, p.buffer.shape, np.uint32)
        if p.buffer.dtype.name == "u32"
        else arrays[p.buffer.name]
        for p in plain.params
        if p.role != "out"
    }


def pack_all(kernel: Kernel, arrays: Mapping[str, Array]) -> tuple[Kernel, dict[str, Array]]:
    """A scheduled kernel and its arrays in the form that packing gives them."""
    return _as_packed(kernel), _packed(kernel, arrays)


def _packed(kernel: Kernel, arrays: Mapping[str, Array]) -> dict[str, Array]:
    packs = {p.buffer: p for p in kernel.packs}
    return {n: pack_array(a, packs[n]) if n in packs else a for n, a in arrays.items()}


def _as_packed(kernel: Kernel) -> Kernel:
    """The kernel with parameters of the shapes that packing gives them."""
    packs = {p.buffer: p for p in kernel.packs}
    params = tuple(
        replace(p, buffer=dense(p.buffer.name, p.buffer.dtype, packs[p.buffer.name].shape, "const"))
        if p.buffer.name in packs
        else p
        for p in kernel.params
    )
    return replace(kernel, params=params, packs=())


def _compare(got: Outcome, want: Mapping[str, npt.NDArray[Any]]) -> Failure | None:
    """Bit for bit; a NaN is a NaN."""
    if got.problem:
        return Failure("", f"{got.problem}: {got.message}", got.buffer)
    for name, expected in want.items():
        mine = got.outputs[name]
        differ = mine != expected
        if mine.dtype.kind == "f":
            differ &= ~(np.isnan(mine) & np.isnan(expected))
        if differ.any():
            at = _first(differ)
            count = int(np.count_nonzero(differ))
            return Failure(
                "", f"{count} of {differ.size} elements differ: {mine[at]} instead of {expected[at]}", name, at
            )  # fmt: skip
    return None


def _first(flags: npt.NDArray[Any]) -> tuple[int, ...]:
    """Index of the first element that is set."""
    return tuple(int(i) for i in np.unravel_index(int(np.argmax(flags)), flags.shape))


def _whole(kernel: Kernel) -> bool:
    """Whether whole numbers stay whole: only sums, products, extrema and choices."""
    seen: set[int] = set()
    stack: list[Expr] = list(expressions(kernel.body))
    while stack:
        e = stack.pop()
        if id(e) in seen:
            continue
        seen.add(id(e))
        match e:
            case Const(value, dtype) if dtype.is_float and math.isfinite(value):
                if value != int(value):
                    return False
            case Unary(op, a) if a.dtype.is_float and op not in ("neg", "abs"):
                return False
            case Binary(op, a, _) if a.dtype.is_float and op not in _WHOLE_OPS:
                return False
            case _:
                pass
        stack.extend(children(e))
    return True
