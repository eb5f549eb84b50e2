"""From a trace of any origin to a kernel that may be compiled, or the reason why not.

In: an unscheduled kernel and a trace from a search or a log. Out: the finished kernel.
Invariant: what `admit` lets through passed every primitive's legality check, the verifier's bounds proof, the
proof that threads keep to their own scratch, and limits on scratch and on the amount of code, so a bad trace can
neither compute something else nor exhaust the compiler or the device's stack.
"""

from __future__ import annotations

import math

from tilewright.codegen.values import scratch_shape
from tilewright.errors import ScheduleError, TilewrightError
from tilewright.loop.ir import Alloc, Block, Buffer, For, If, Kernel
from tilewright.loop.owners import check_owners
from tilewright.loop.passes.expand_math import expand_math
from tilewright.loop.passes.specialize_tails import specialize_tails
from tilewright.loop.passes.split_sums import split_sums
from tilewright.loop.rewrite import walk
from tilewright.loop.verify import verify
from tilewright.schedule.trace import Trace, apply

#: Scratch of a kernel may take this much stack, statements this many copies by unrolling.
MAX_SCRATCH = 1 << 18
MAX_STATEMENTS = 20_000
#: Bytes of the widest vectors of any target.
WIDEST = 64


def formed(kernel: Kernel, trace: Trace) -> Kernel:
    """The kernel with its schedule and the passes that decide the order of its sums and the form of its loops."""
    return specialize_tails(split_sums(apply(kernel, trace)))


def finish(kernel: Kernel, trace: Trace) -> Kernel:
    """Apply, specialise, prove: for traces of our own."""
    made = formed(kernel, trace)
    verify(made)
    check_owners(made)
    return expand_math(made)


def admit(kernel: Kernel, trace: Trace) -> Kernel:
    """Like `finish` for traces of any origin; `ScheduleError` if anything is not acceptable."""
    try:
        made = formed(kernel, trace)
        scratch = sum(
            _stack_bytes(s.buffer)
            for s in walk(made.body)
            if isinstance(s, Alloc) and s.buffer.space != "shared"
        )
        if scratch > MAX_SCRATCH:
            raise ScheduleError(f"the schedule needs {scratch} bytes of scratch")
        if (count := statements(made.body)) > MAX_STATEMENTS:
            raise ScheduleError(f"the schedule spells out {count} statements")
        verify(made)
        check_owners(made)
        return expand_math(made)
    except ScheduleError:
        raise
    except TilewrightError as err:
        raise ScheduleError(str(err)) from None
    except (ArithmeticError, LookupError, TypeError, ValueError, AssertionError) as err:
        # arguments of steps are untrusted: wrong types surface inside primitives
        raise ScheduleError(f"malformed step ({type(err).__name__}: {err})") from None


def _stack_bytes(buffer: Buffer) -> int:
    """What scratch takes on any target."""
    size = buffer.dtype.bytes
    return math.prod(scratch_shape(buffer.shape, WIDEST // size)) * size


def statements(block: Block) -> int:
    """Statements after unrolling."""
    total = 0
    for s in block:
        match s:
            case For(_, extent, body, kind):
                times = extent.const if kind == "unroll" and extent.is_const else 1
                total += times * statements(body)
            case If(_, then, orelse):
                total += statements(then) + statements(orelse)
            case _:
                total += 1
    return total
