"""Count the instructions of candidates for one kernel on an emulated microcontroller.

In: an unscheduled kernel, traces, a target with a `[board]` that QEMU emulates. Out: an `Outcome` each.
Invariants: the default and all candidates are steps of one program that reads the same inputs; results are compared
before a count is believed. Instructions are exact and repeat, but they are not time: outcomes are labelled
as estimates.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from tilewright.codegen.kernel import parallel_extent
from tilewright.codegen.module import Place
from tilewright.device.qemu_system import EMULATOR, run_on_board
from tilewright.errors import TilewrightError
from tilewright.graph.ir import Graph, TensorType
from tilewright.graph.layout import assign_layouts
from tilewright.loop.ir import Kernel
from tilewright.loop.pack import pack_array
from tilewright.program import Program, Step, Tensor
from tilewright.schedule.target import Target
from tilewright.schedule.trace import Trace
from tilewright.tune.admit import admit, finish
from tilewright.tune.data import Array, departure, make_data, span
from tilewright.tune.identity import extents, volume
from tilewright.tune.verdicts import Outcome, one_line, verdict_of

#: Above this many iterations the unscheduled kernel takes too long there: the default is the reference.
MAX_PLAIN = 1 << 24


def emulated(target: Target) -> bool:
    """Whether this machine can count for the target."""
    known = target.board is not None and bool(target.board.machine)
    return known and shutil.which(EMULATOR) is not None


def measure_on_board(
    kernel: Kernel, target: Target, default: Trace, candidates: Sequence[Trace], depth: int
) -> list[Outcome]:
    """Judge all candidates, in order; `TilewrightError` if the board cannot be emulated."""
    if any(s < 0 for p in kernel.params for s in p.buffer.strides):
        return [Outcome("same", note="not counted: a window runs backwards") for _ in candidates]
    rng = np.random.default_rng(0)
    values = {p.buffer.name: make_data(p.buffer, rng) for p in kernel.params if p.role != "out"}
    first = [finish(kernel, default)]
    if volume(extents(kernel)) <= MAX_PLAIN:
        first.append(finish(kernel, ()))
    outcomes: list[Outcome | None] = [None] * len(candidates)
    made: dict[int, Kernel] = {}
    for i, trace in enumerate(candidates):
        try:
            made[i] = admit(kernel, trace)
        except TilewrightError as err:
            outcomes[i] = Outcome("illegal", note=one_line(err))
    if not made:
        return [o for o in outcomes if o is not None]
    try:
        counts, results = run_on_emulator([*first, *made.values()], target, values)
    except TilewrightError as err:
        if len(made) == 1:
            run_on_emulator(
                first, target, values
            )  # the default must run: else the board is to blame
            outcomes[next(iter(made))] = Outcome("crash", note=one_line(err))
            return [o for o in outcomes if o is not None]
        for i in made:  # one of them brings down all
            (outcomes[i],) = measure_on_board(kernel, target, default, [candidates[i]], depth)
        return [o for o in outcomes if o is not None]
    for n, i in enumerate(made, len(first)):
        outcomes[i] = _judged(counts[n], counts[0], results[n], results[len(first) - 1], depth)
    return [o for o in outcomes if o is not None]


def _judged(
    mine: int, base: int, got: Sequence[Array], want: Sequence[Array], depth: int
) -> Outcome:
    for k, (a, b) in enumerate(zip(want, got, strict=True)):
        reason = departure(a, b, depth)
        if reason:
            return Outcome("wrong", note=f"output {k}: {reason}")
    ratio = max(mine, 1) / max(base, 1)
    note = f"estimate: {mine} instructions on the emulated board"
    return Outcome(
        verdict_of(ratio, 0.0),
        mine * 1e-9,
        base * 1e-9,
        ratio,
        0.0,
        1,
        note,
        "instructions",
    )


def run_on_emulator(
    kernels: Sequence[Kernel], target: Target, values: dict[str, Array]
) -> tuple[tuple[int, ...], list[list[Array]]]:
    """Instructions of each kernel, and its outputs as the memory of their windows.

    `values`: memory of inputs, constants in their shape. Raises `TilewrightError` if it cannot be made or run."""
    program = _program(kernels, target, values)
    inputs = [values[p.buffer.name].reshape(-1) for p in kernels[0].params if p.role == "in"]
    run = run_on_board(program, inputs)
    per = len(run.outputs) // len(kernels)
    return run.steps, [run.outputs[i : i + per] for i in range(0, len(run.outputs), per)]


def _program(kernels: Sequence[Kernel], target: Target, values: dict[str, Array]) -> Program:
    """Each kernel as a step with outputs of its own, constants as its weights."""
    weights = bytearray()
    steps: list[Step] = []
    outputs: list[Tensor] = []
    named = [replace(k, name=f"candidate{i}") for i, k in enumerate(kernels)]
    data = [p.buffer for p in kernels[0].params if p.role == "in"]
    number = {b.name: i for i, b in enumerate(data)}
    for i, kernel in enumerate(named):
        packs = {p.buffer: p for p in kernel.packs}
        places: list[Place] = []
        for p in kernel.params:
            b = p.buffer
            if p.role == "in":
                places.append(Place("input", 0, number[b.name]))
            elif p.role == "out":
                places.append(Place("output", 0, len(outputs)))
                outputs.append(Tensor(f"y{len(outputs)}", TensorType(b.dtype, (span(b),))))
            else:
                array = values[b.name]
                array = pack_array(array, packs[b.name]) if b.name in packs else array
                weights.extend(b"\0" * (-len(weights) % target.align))
                places.append(Place("weights", len(weights)))
                weights.extend(np.ascontiguousarray(array).tobytes())
        label = f"candidate{i}"
        count = parallel_extent(kernel)
        steps.append(Step(label, kernel.name, "", (), 0, 0, (), tuple(places), count, False))
    graph = Graph("candidates", [], [])
    return Program(
        name="candidates", target=target,
        inputs=tuple(Tensor(b.name, TensorType(b.dtype, (span(b),))) for b in data),
        outputs=tuple(outputs), graph=graph, placement=assign_layouts(graph), kernels=tuple(named),
        traces={}, steps=tuple(steps), arena_bytes=0, arena_lower_bound=0, weights=bytes(weights), apart=True,
    )  # fmt: skip
