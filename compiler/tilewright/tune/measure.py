"""Check and time candidates for one kernel on the machine this process runs on.

In: a `Job` (an unscheduled kernel, its default trace, candidate traces). Out: an `Outcome` for each.
Invariants: a candidate is compared with the unscheduled kernel, compiled natively, before it is timed; the
default runs in the same process and takes its turn in every round, so a disturbance hits both.
"""

from __future__ import annotations

import ctypes
import gc
import math
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from tilewright.codegen.kernel import parallel_extent
from tilewright.codegen.llvm import Jit
from tilewright.codegen.module import emit_module, one_call
from tilewright.codegen.repeat import repeat_entry
from tilewright.emulate import view_of
from tilewright.errors import TilewrightError
from tilewright.loop import simt
from tilewright.loop.ir import Kernel
from tilewright.loop.pack import pack_array
from tilewright.schedule.target import Target
from tilewright.schedule.trace import Trace
from tilewright.tune.admit import admit, finish
from tilewright.tune.data import Array, aligned, departure, make_data, memory
from tilewright.tune.estimate import estimate
from tilewright.tune.identity import extents, kernel_hash, volume
from tilewright.tune.verdicts import Outcome, one_line, paired_ratio, verdict_of

#: A candidate this much slower after the first rounds is not timed any further.
HOPELESS = 1.15
FIRST_ROUNDS = 3
#: A turn lasts at least this long (seconds), so that the clock does not matter.
TURN = 2e-4
#: Kernels that take longer find their data outside the inner caches in a real model.
COLD = 1e-4
#: Above this many iterations the unscheduled kernel takes too long: the default is the reference.
MAX_PLAIN = 1 << 31


@dataclass(frozen=True, slots=True)
class Job:
    """Candidates for one kernel; `rounds` turns each, `depth` the length of the kernel's sums.

    `mode`: run the candidates here (`measure`), only compile and judge them (`estimate`), or run them
    on the device at `address` (`device`). `check`: what an estimate calls faster is run in the target's
    emulator, to compare its results."""

    kernel: Kernel
    target: Target
    default: Trace
    candidates: tuple[Trace, ...]
    depth: int = 1
    rounds: int = 12
    mode: Literal["measure", "estimate", "device"] = "measure"
    address: str | None = None
    check: bool = False


def measure(job: Job) -> list[Outcome]:
    """Judge all candidates of a job, in order."""
    if job.mode == "estimate":
        return _checked(job, _estimated(job)) if job.check else _estimated(job)
    if job.mode == "device" and job.target.board is not None:
        from tilewright.tune.board import measure_on_board

        return measure_on_board(job.kernel, job.target, job.default, job.candidates, job.depth)
    if job.mode == "device":
        from tilewright.tune.remote import measure_there

        return measure_there(
            job.kernel, job.target, job.default, job.candidates, job.depth, job.address
        )
    bench = _bench(job)
    outcomes: list[Outcome | None] = [None] * len(job.candidates)
    running: dict[int, _Code] = {}
    for i, trace in enumerate(job.candidates):
        try:
            code = _Code(admit(job.kernel, trace), job.target)
        except TilewrightError as err:
            outcomes[i] = Outcome("illegal", note=one_line(err))
            continue
        reason = bench.difference(code)
        if reason:
            outcomes[i] = Outcome("wrong", note=reason)
        else:
            running[i] = code
    for i, outcome in _timed(bench, running, job.rounds).items():
        outcomes[i] = outcome
    return [o if o is not None else Outcome("illegal", note="not judged") for o in outcomes]


def _checked(job: Job, estimates: list[Outcome]) -> list[Outcome]:
    """Compare results in the emulator; estimates stand, with the ratio of instructions as a note."""
    from tilewright.tune.remote import measure_there

    if job.target.gpu is not None:
        return [
            _emulated(job, trace, outcome) if outcome.verdict == "faster" else outcome
            for trace, outcome in zip(job.candidates, estimates, strict=True)
        ]
    out: list[Outcome] = []
    for trace, outcome in zip(job.candidates, estimates, strict=True):
        if outcome.verdict != "faster":
            out.append(outcome)
            continue
        try:
            (ran,) = measure_there(
                job.kernel, job.target, job.default, (trace,), job.depth, job.address
            )
        except TilewrightError as err:
            out.append(replace(outcome, note=f"estimate; results not checked: {one_line(err)}"))
            continue
        if ran.verdict in ("wrong", "crash", "illegal"):
            out.append(ran)
        else:
            counted = f", {ran.ratio:.3f} times the instructions" if ran.ratio else ""
            out.append(replace(outcome, note=f"estimate; same results in the emulator{counted}"))
    return out


#: Blocks of a grid that are run to check a candidate for a GPU.
GPU_BLOCKS = 4


def _emulated(job: Job, trace: Trace, estimate: Outcome) -> Outcome:
    """A candidate for a GPU: some blocks in the interpreter of threads, against the unscheduled kernel as this
    machine's code."""
    from tilewright.pipeline import resolve_target

    if any(s < 0 for p in job.kernel.params for s in p.buffer.strides):
        return replace(estimate, note="estimate; results not checked: a window runs backwards")
    try:
        bench = _Bench(replace(job, target=resolve_target("host"), default=(), candidates=()))
        kernel = admit(job.kernel, trace)
        packs = {p.buffer: p for p in kernel.packs}
        arrays: dict[str, Array] = {}
        wanted: dict[str, Array] = {}
        for p in kernel.params:
            name = p.buffer.name
            if p.role == "out":
                plain = np.ascontiguousarray(bench.expected[name])
                wanted[name] = view_of(p.buffer, plain.view(np.uint8), 0)
                arrays[name] = np.zeros(p.buffer.shape, p.buffer.dtype.numpy)
            elif name in packs:
                arrays[name] = pack_array(bench.values[name], packs[name])
            else:
                memory = np.ascontiguousarray(bench.values[name]).reshape(-1)
                arrays[name] = view_of(p.buffer, memory.view(np.uint8), 0)
        written = simt.run(kernel, arrays, GPU_BLOCKS)
    except TilewrightError as err:
        return Outcome("wrong", note=one_line(err))
    for name, mask in written.items():
        reason = departure(wanted[name][mask], arrays[name][mask], job.depth)
        if reason:
            return Outcome("wrong", note=f"{name}: {reason}")
    return replace(estimate, note="estimate; same results in the interpreter of threads")


def _estimated(job: Job) -> list[Outcome]:
    """The same verdicts by the target's static model."""
    base, source = estimate(finish(job.kernel, job.default), job.target)
    out: list[Outcome] = []
    for trace in job.candidates:
        try:
            seconds, _ = estimate(admit(job.kernel, trace), job.target)
        except TilewrightError as err:
            out.append(Outcome("illegal", note=one_line(err), source=source))
            continue
        ratio = seconds / base
        verdict = verdict_of(ratio, 0.0)
        out.append(Outcome(verdict, seconds, base, ratio, 0.0, 1, "estimate", source))
    return out


# ---------------------------------------------------------------- timing


def _timed(bench: _Bench, running: dict[int, _Code], rounds: int) -> dict[int, Outcome]:
    """Interleaved turns of the default and all candidates; hopeless ones leave early."""
    turns: dict[int, list[float]] = {i: [] for i in running}
    base: list[float] = []
    left = list(running)
    collecting = gc.isenabled()
    gc.disable()
    try:
        for r in range(max(rounds, 1)):
            if not left:
                break
            base.append(bench.turn(bench.default))
            for i in left[r % len(left) :] + left[: r % len(left)]:
                turns[i].append(bench.turn(running[i]))
            if r + 1 == FIRST_ROUNDS:
                left = [i for i in left if min(turns[i]) <= HOPELESS * min(base)]
    finally:
        if collecting:
            gc.enable()
    return {i: _judged(turns[i], base[: len(turns[i])]) for i in running}


def _judged(mine: Sequence[float], base: Sequence[float]) -> Outcome:
    ratio, error = paired_ratio(mine, base)
    verdict = verdict_of(ratio, error)
    if verdict == "faster" and min(mine) >= min(base):
        verdict = "same"
    return Outcome(verdict, min(mine), min(base), ratio, error, len(mine))


# ---------------------------------------------------------------- running kernels


class _Code:
    """A finished kernel as native code."""

    def __init__(self, kernel: Kernel, target: Target) -> None:
        self.kernel = replace(kernel, name="candidate")
        self.count = parallel_extent(self.kernel)
        plan = one_call("t", target, self.kernel)
        self.jit = Jit(emit_module(plan, with_weights=False) + repeat_entry(plan), target)
        kind = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64)
        self.repeat = kind(self.jit.address("t_repeat"))
        self.context: Any = None
        self.times = 0


class _Bench:
    """Data for one kernel, its default as native code, and the expected result."""

    def __init__(self, job: Job) -> None:
        self.job = job
        rng = np.random.default_rng(0)
        raw = job.kernel
        self.values = {
            p.buffer.name: make_data(p.buffer, rng) for p in raw.params if p.role != "out"
        }
        self.outputs = {p.buffer.name: memory(p.buffer) for p in raw.params if p.role == "out"}
        self.names_out = [p.buffer.name for p in raw.params if p.role == "out"]
        self.packed: OrderedDict[tuple[str, str], Array] = OrderedDict()
        l2, l3 = job.target.l2_bytes, job.target.l3_bytes
        touched = sum(a.nbytes for a in (*self.values.values(), *self.outputs.values()))
        # data that no inner cache holds come from memory in a real model
        self.streams = touched > l2
        self.evict = np.zeros(max(2 * l2, l3 if self.streams else 0), np.uint8)
        self.default = _Code(finish(raw, job.default), job.target)
        if volume(extents(raw)) <= MAX_PLAIN:
            plain = _Code(finish(raw, ()), job.target)
            self.expected = self.run(plain)
            reason = self.difference(self.default)
            if reason:
                raise TilewrightError(
                    f"the default schedule of {raw.name} gives another result than the unscheduled "
                    f"kernel ({reason}): report this as a bug"
                )
        else:
            self.expected = self.run(self.default)

    def prepare(self, code: _Code) -> None:
        """Pointers to the kernel's parameters, constants packed as it wants them."""
        if code.context is not None:
            return
        packs = {p.buffer: p for p in code.kernel.packs}
        inputs: list[Array] = []
        for p in code.kernel.params:
            name = p.buffer.name
            if p.role == "out":
                continue
            array = self.values[name]
            if name in packs:
                key = (name, repr(packs[name]))
                if key not in self.packed:
                    self.packed[key] = aligned(pack_array(array, packs[name]))
                    if len(self.packed) > 16:
                        self.packed.popitem(last=False)
                array = self.packed[key]
            inputs.append(array)
        outputs = [self.outputs[n] for n in self.names_out]
        ins = (ctypes.c_void_p * max(1, len(inputs)))(*[a.ctypes.data for a in inputs])
        outs = (ctypes.c_void_p * max(1, len(outputs)))(*[a.ctypes.data for a in outputs])
        pointers = (ctypes.addressof(ins), ctypes.addressof(outs), None, None)
        code.context = ((ctypes.c_void_p * 4)(*pointers), ins, outs, inputs)

    def run(self, code: _Code) -> dict[str, Array]:
        """Run once on outputs full of a pattern; returns copies of their memory."""
        self.prepare(code)
        for array in self.outputs.values():
            array.view(np.uint8)[...] = 0xA5
        code.repeat(ctypes.addressof(code.context[0]), code.count, 1)
        return {n: a.copy() for n, a in self.outputs.items()}

    def difference(self, code: _Code) -> str:
        """How the candidate's result departs from the expected one; empty if it does not."""
        got = self.run(code)
        for name, want in self.expected.items():
            mine = got[name]
            reason = departure(want, mine, self.job.depth)
            if reason:
                return f"{name}: {reason}"
        return ""

    def turn(self, code: _Code) -> float:
        """Seconds per run of one turn."""
        self.prepare(code)
        context, count = ctypes.addressof(code.context[0]), code.count
        if code.times == 0:
            code.repeat(context, count, 1)
            start = time.perf_counter()
            code.repeat(context, count, 1)
            once = max(time.perf_counter() - start, 1e-8)
            warm = once < COLD and not self.streams
            code.times = max(1, math.ceil(TURN / once)) if warm else 1
        if code.times == 1:
            self.evict.fill(1)
        start = time.perf_counter()
        code.repeat(context, count, code.times)
        return (time.perf_counter() - start) / code.times


def _bench(job: Job) -> _Bench:
    """The bench of a kernel; the last one is kept, since jobs come in batches."""
    key = f"{kernel_hash(job.kernel)} {job.default} {job.target}"
    if key not in _kept:
        _kept.clear()
        _kept[key] = _Bench(job)
    _kept[key].job = job
    return _kept[key]


_kept: dict[str, _Bench] = {}
