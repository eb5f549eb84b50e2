"""Who is to blame for a failure: the first stage of a kernel's way to native code whose result is wrong.

In: a case that fails. Out: a step, a loop pass, code generation, or LLVM, in words.
Invariant: a stage is blamed for what the interpreter says of its result, where that can be asked; else the shortest
part of the schedule that fails natively is named.
"""

from __future__ import annotations

from collections.abc import Iterator

from tilewright.errors import ScheduleError, TilewrightError
from tilewright.loop.ir import Kernel
from tilewright.loop.passes.expand_math import expand_math
from tilewright.loop.passes.specialize_tails import specialize_tails
from tilewright.loop.passes.split_sums import split_sums
from tilewright.schedule.trace import Trace, apply
from tilewright.testing.case import Case, iterations
from tilewright.testing.oracles import INTERPRETED, interpreted, judge, pack_all, ring_arrays
from tilewright.testing.ring import ring
from tilewright.testing.worker import Worker


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
