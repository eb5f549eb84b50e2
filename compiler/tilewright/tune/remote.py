"""Run candidates for one kernel on a device: over ssh, or in an emulator.

In: an unscheduled kernel, traces, an address (see `device.choose`). Out: an `Outcome` each.
Invariants: the default and all candidates are linked into one program, so they take turns; results are
compared before a time is believed. In an emulator nothing is timed: instructions are counted, which is an
estimate and labelled as one.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from tilewright.codegen.kernel import parallel_extent
from tilewright.codegen.llvm import to_object
from tilewright.codegen.module import CallSite, ModulePlan, Place, emit_module
from tilewright.device.link import Unit
from tilewright.device.linux import LinuxRun
from tilewright.device.measure import measure as run_all
from tilewright.errors import TilewrightError
from tilewright.loop.ir import Kernel
from tilewright.loop.pack import pack_array
from tilewright.runtime.model import Spec, TensorSpec
from tilewright.schedule.target import Target
from tilewright.schedule.trace import Trace
from tilewright.tune.admit import admit, finish
from tilewright.tune.data import Array, departure, make_data, span
from tilewright.tune.identity import extents, volume
from tilewright.tune.records import Source
from tilewright.tune.verdicts import Outcome, one_line, verdict_of

#: Above this many iterations the unscheduled kernel takes too long on a device: the default is the reference.
MAX_PLAIN = 1 << 26
#: Spread of times on a device between rounds of one program, where only least and median come back.
ROUNDS = 12


def measure_there(
    kernel: Kernel,
    target: Target,
    default: Trace,
    candidates: tuple[Trace, ...],
    depth: int,
    address: str | None,
) -> list[Outcome]:
    """Judge all candidates, in order; `TilewrightError` if the device cannot be used."""
    rng = np.random.default_rng(0)
    values = {p.buffer.name: make_data(p.buffer, rng) for p in kernel.params if p.role != "out"}
    inputs = [values[p.buffer.name].reshape(-1) for p in kernel.params if p.role == "in"]
    units = [unit("default", finish(kernel, default), target, values)]
    plain = volume(extents(kernel)) <= MAX_PLAIN
    if plain:
        units.append(unit("plain", finish(kernel, ()), target, values))
    reasons: dict[int, str] = {}
    place: dict[int, int] = {}
    for i, trace in enumerate(candidates):
        try:
            made = unit(f"candidate{i}", admit(kernel, trace), target, values)
        except TilewrightError as err:
            reasons[i] = one_line(err)
            continue
        place[i] = len(units)
        units.append(made)
    runs = run_all(units, inputs, target, address, ROUNDS, outputs=True)
    for run in runs[: 2 if plain else 1]:
        if run.error:
            raise TilewrightError(f"the default of {kernel.name} failed on the device: {run.error}")
    want = runs[1 if plain else 0].outputs
    out: list[Outcome] = []
    for i in range(len(candidates)):
        if i in reasons:
            out.append(Outcome("illegal", note=reasons[i]))
        else:
            out.append(_judged(runs[place[i]], runs[0], want, depth))
    return out


def _judged(run: LinuxRun, base: LinuxRun, want: list[Array], depth: int) -> Outcome:
    """One candidate against the default."""
    if run.error:
        return Outcome("crash", note=one_line(run.error))
    for k, (a, b) in enumerate(zip(want, run.outputs, strict=True)):
        reason = departure(a.reshape(-1), b.reshape(-1), depth)
        if reason:
            return Outcome("wrong", note=f"output {k}: {reason}")
    if base.least > 0 and run.least > 0:
        ratio = run.least / base.least
        error = abs(run.median - run.least) / run.least / ROUNDS**0.5
        verdict = verdict_of(ratio, error)
        return Outcome(verdict, run.least, base.least, ratio, error, ROUNDS, source="measured")
    if run.instructions and base.instructions:
        ratio = run.instructions / base.instructions
        source: Source = "instructions"
        mine, theirs = run.instructions * 1e-9, base.instructions * 1e-9
        note = f"estimate: {run.instructions} instructions in the emulator"
        return Outcome(verdict_of(ratio, 0.0), mine, theirs, ratio, 0.0, 1, note, source)
    return Outcome("same", note="the device neither times nor counts")


def unit(name: str, kernel: Kernel, target: Target, values: dict[str, Array]) -> Unit:
    """A kernel as a model of one step, its constants as weights."""
    packs = {p.buffer: p for p in kernel.packs}
    weights = bytearray()
    places: list[Place] = []
    inputs: list[TensorSpec] = []
    outputs: list[TensorSpec] = []
    for p in kernel.params:
        buffer = p.buffer
        if p.role == "const":
            array = values[buffer.name]
            if buffer.name in packs:
                array = pack_array(array, packs[buffer.name])
            weights.extend(b"\0" * (-len(weights) % 64))
            places.append(Place("weights", len(weights)))
            weights.extend(np.ascontiguousarray(array).tobytes())
            continue
        side = outputs if p.role == "out" else inputs
        places.append(Place("output" if p.role == "out" else "input", 0, len(side)))
        side.append(TensorSpec(buffer.name, (span(buffer),), str(np.dtype(buffer.dtype.numpy))))
    step = replace(kernel, name=f"{name}_kernel")
    call = CallSite(step.name, tuple(places), parallel_extent(step), False)
    plan = ModulePlan(name, target, (step,), (call,), len(weights))
    code = to_object(emit_module(plan, with_weights=True), target, bytes(weights))
    spec = Spec(name, target.name, tuple(inputs), tuple(outputs), 64, len(weights), target.required)
    return Unit(spec, code)
