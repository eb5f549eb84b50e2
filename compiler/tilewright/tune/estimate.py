"""What a kernel would take on a device that is not at hand: an estimate, never a measurement.

In: a finished kernel and a target. Out: seconds (of a core at 1 GHz) and the model they come from:
    llvm-mca      the loops of the generated assembly, in cycles by LLVM's scheduling model for the core
    instructions  the same loops, counted instruction by instruction
    gpu-model     arithmetic, memory traffic and occupancy by the data sheet of a GPU
Loops of the assembly are weighted by the trip counts of the loops they were generated from. Only ratios
of two estimates by one model for one kernel mean anything.
"""

from __future__ import annotations

import math
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache

from tilewright.codegen.kernel import parallel_extent
from tilewright.codegen.llvm import to_assembly
from tilewright.codegen.module import CallSite, ModulePlan, Place, emit_module
from tilewright.core.index import bounds, variables
from tilewright.loop import mma
from tilewright.loop.ir import Alloc, Block, Expr, For, If, Kernel, Load, Mma, Store, span
from tilewright.loop.rewrite import Ranges, children, loads
from tilewright.schedule.target import Gpu, Target
from tilewright.schedule.templates.gpu_parts import OVERHEAD, SHARED_BANDWIDTH
from tilewright.tune.records import Source

#: Instructions that start per cycle outside the loops that llvm-mca looks at.
ISSUE = 2.0
_ITERATIONS = 64
_CLOCK = 1e9


def estimate(kernel: Kernel, target: Target) -> tuple[float, Source]:
    """Modelled seconds of one run and the name of the model."""
    if target.gpu is not None:
        return gpu_seconds(kernel, target.gpu), "gpu-model"
    trips = _trip_counts(kernel.body, {})
    roots = _asm_loops(_step_code(kernel, target))
    loops = list(_preorder(roots))
    if [len(t.inner) for t in _walk(trips)] != [len(t.inner) for t in loops]:
        # the compiler merged or dropped loops: weight by depth what cannot be told apart
        weights = _weights_by_depth(trips, roots)
    else:
        weights = _weights(trips, 1.0)
    innermost = [i for i, t in enumerate(loops) if not t.inner]
    cycles = _mca([loops[i].code for i in innermost], target)
    total = 0.0
    for i, t in enumerate(loops):
        own = len(t.code) / ISSUE
        if cycles is not None and not t.inner:
            own = cycles[innermost.index(i)]
        elif cycles is None:
            own = float(len(t.code))
        total += weights[i] * own
    return total / _CLOCK, "instructions" if cycles is None else "llvm-mca"


# ---------------------------------------------------------------- loops of the IR


@dataclass(slots=True)
class _Trip:
    times: float
    inner: list[_Trip] = field(default_factory=list["_Trip"])


def _trip_counts(block: Block, ranges: Ranges) -> list[_Trip]:
    """Loops that stay loops in code, in order, with their (mean) trip counts."""
    out: list[_Trip] = []
    for s in block:
        if isinstance(s, If):
            out += _trip_counts(s.then, ranges) + _trip_counts(s.orelse, ranges)
        elif isinstance(s, For):
            lo, hi = bounds(s.extent, ranges)
            times = ((lo or 0) + (hi or 1)) / 2
            inside = _trip_counts(s.body, {**ranges, s.var: (0, max(0, (hi or 1) - 1))})
            if s.kind == "unroll":
                out += inside * round(times)
            elif s.extent.is_const and s.extent.const == 1:
                out += inside  # LLVM leaves no loop behind
            elif s.kind != "vector":
                out.append(_Trip(max(times, 1.0), inside))
    return out


def _walk(trips: list[_Trip]) -> Iterator[_Trip]:
    for t in trips:
        yield t
        yield from _walk(t.inner)


def _weights(trips: list[_Trip], outer: float) -> list[float]:
    """Runs of each loop's body, outer before inner."""
    out: list[float] = []
    for t in trips:
        out.append(outer * t.times)
        out += _weights(t.inner, outer * t.times)
    return out


def _weights_by_depth(trips: list[_Trip], loops: list[_Loop]) -> list[float]:
    """Mean number of runs per nesting depth; deeper loops than the IR has count as its deepest."""
    by_depth: dict[int, list[float]] = {}

    def visit(level: list[_Trip], depth: int, outer: float) -> None:
        for t in level:
            by_depth.setdefault(depth, []).append(outer * t.times)
            visit(t.inner, depth + 1, outer * t.times)

    visit(trips, 0, 1.0)
    means = [max(v) for _, v in sorted(by_depth.items())] or [1.0]
    out: list[float] = []

    def assign(level: list[_Loop], depth: int) -> None:
        for t in level:
            out.append(means[min(depth, len(means) - 1)])
            assign(t.inner, depth + 1)

    assign(loops, 0)
    return out


# ---------------------------------------------------------------- loops of the assembly


@dataclass(slots=True)
class _Loop:
    """Lines [first, last] of the function; `code`: instructions that are in no inner loop."""

    first: int
    last: int
    code: list[str] = field(default_factory=list[str])
    inner: list[_Loop] = field(default_factory=list["_Loop"])


_LABEL = re.compile(r"^([.\w$]+):")


def _step_code(kernel: Kernel, target: Target) -> list[str]:
    """Assembly of the one step of a module that holds only this kernel."""
    places = tuple(
        Place("output" if p.role == "out" else "input", 0, i) for i, p in enumerate(kernel.params)
    )
    call = CallSite(kernel.name, places, parallel_extent(kernel), False)
    plan = ModulePlan("t", target, (kernel,), (call,), 0)
    lines = to_assembly(emit_module(plan, with_weights=False), target).splitlines()
    start = next(i for i, s in enumerate(lines) if s.startswith("t_step0:"))
    end = next(
        (i for i in range(start, len(lines)) if lines[i].startswith((".Lfunc_end", "\t.size"))),
        len(lines),
    )
    return lines[start:end]


def _asm_loops(lines: list[str]) -> list[_Loop]:
    """Loops by branches to an earlier label, nested by containment."""
    labels: dict[str, int] = {}
    found: dict[int, int] = {}
    for i, line in enumerate(lines):
        label = _LABEL.match(line)
        if label:
            labels[label.group(1)] = i
        elif _is_code(line):
            for word in re.findall(r"[.\w$]+", line)[1:]:
                if word in labels:
                    found[labels[word]] = i
    roots: list[_Loop] = []
    stack: list[_Loop] = []
    for first, last in sorted(found.items(), key=lambda f: (f[0], -f[1])):
        loop = _Loop(first, last)
        while stack and stack[-1].last < first:
            stack.pop()
        (stack[-1].inner if stack else roots).append(loop)
        stack.append(loop)
    for loop in _preorder(roots):
        covered = {j for t in loop.inner for j in range(t.first, t.last + 1)}
        own = (j for j in range(loop.first, loop.last + 1) if j not in covered)
        loop.code = [lines[j] for j in own if _is_code(lines[j])]
    return roots


def _is_code(line: str) -> bool:
    text = line.strip()
    return bool(text) and line[:1].isspace() and text[0] not in ".#/@;"


def _preorder(loops: list[_Loop]) -> Iterator[_Loop]:
    for t in loops:
        yield t
        yield from _preorder(t.inner)


@cache
def _mca_command() -> str | None:
    return shutil.which("llvm-mca")


def _mca(bodies: list[list[str]], target: Target) -> list[float] | None:
    """Cycles per iteration of each loop body, or None where llvm-mca is missing or gives up."""
    command = _mca_command()
    if command is None or not bodies:
        return None
    mark = "@" if target.triple.startswith(("arm", "thumb")) else "#"
    mark = "//" if target.triple.startswith("aarch64") else mark
    parts: list[str] = []
    for i, body in enumerate(bodies):
        straight = [s for s in body if not _branches(s)]
        parts += [
            f"{mark} LLVM-MCA-BEGIN r{i}",
            *(straight or ["\tnop"]),
            f"{mark} LLVM-MCA-END r{i}",
        ]
    arguments = [command, f"-mtriple={target.triple}", f"-mcpu={target.cpu}"]
    if target.features:
        arguments.append(f"-mattr={target.features}")
    arguments += [
        f"-iterations={_ITERATIONS}",
        "-instruction-info=false",
        "-resource-pressure=false",
    ]
    try:
        done = subprocess.run(
            arguments, input="\n".join(parts) + "\n", capture_output=True, text=True,
            timeout=30, check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return None
    totals = re.findall(r"Total Cycles:\s+(\d+)", done.stdout)
    if done.returncode or len(totals) != len(bodies):
        return None
    return [int(t) / _ITERATIONS for t in totals]


def _branches(line: str) -> bool:
    """Whether an instruction jumps: llvm-mca has no use for it."""
    return (
        re.match(r"\s*(j\w+|b|b\.\w+|b[a-z]{2}|cbn?z|tbn?z|le|bl|call\w*|ret\w*)\s", line + " ")
        is not None
    )


# ---------------------------------------------------------------- GPUs


def gpu_seconds(kernel: Kernel, gpu: Gpu) -> float:
    """The slower of arithmetic and memory traffic, both slowed by what keeps the device from being full.

    Blocks are the product of the `block` loops, threads that of the widest nest of `thread` loops. As many
    blocks share a multiprocessor as its threads, shared memory and registers allow. A global load or store
    moves 4 bytes per thread, one that no thread loop moves is shared by a warp.
    """
    count = _Traffic()
    _traffic(kernel.body, 1.0, (), count)
    threads = max(count.threads, 1.0)
    warps = math.ceil(threads / gpu.warp)
    registers = OVERHEAD + count.held + count.spread / threads
    resident = max(1.0, min(gpu.threads_sm // (warps * gpu.warp), gpu.blocks_sm))
    resident = max(1.0, min(resident, gpu.registers_sm // (registers * warps * gpu.warp)))
    if count.shared:
        resident = max(1.0, min(resident, gpu.shared_sm // count.shared))
    waves = math.ceil(max(count.blocks, 1.0) / (gpu.multiprocessors * resident))
    full = max(count.blocks, 1.0) / (waves * gpu.multiprocessors * resident)
    busy = min(1.0, resident * threads / (gpu.threads_sm / 4))
    share = max(full * busy * threads / (warps * gpu.warp), 1e-6)
    arithmetic = count.operations / gpu.flops_f32 + count.tensor_operations / gpu.flops_mma
    shared = count.shared_bytes / (gpu.multiprocessors * SHARED_BANDWIDTH)
    memory = count.bytes / gpu.bandwidth
    if registers > gpu.registers_thread:  # the rest goes through memory
        share /= registers / gpu.registers_thread
    return max(arithmetic / share, shared / share, memory / min(1.0, 4 * share)) + 2e-6


@dataclass(slots=True)
class _Traffic:
    operations: float = 0.0
    tensor_operations: float = 0.0
    bytes: float = 0.0
    shared_bytes: float = 0.0
    shared: float = 0.0
    held: float = 0.0  # values that a thread holds
    spread: float = 0.0  # values that the threads of a block hold together
    blocks: float = 1.0
    threads: float = 1.0
    spaces: dict[str, str] = field(default_factory=dict[str, str])


def _traffic(block: Block, times: float, nest: tuple[tuple[str, float], ...], c: _Traffic) -> None:
    """Add up one block that runs `times` times inside the thread loops `nest`."""
    for s in block:
        match s:
            case For(var, extent, body, kind):
                n = float(extent.const if extent.is_const else (bounds(extent, {})[1] or 1))
                if kind == "block":
                    c.blocks *= n
                inside = (*nest, (var, n)) if kind == "thread" else nest
                c.threads = max(c.threads, math.prod(n for _, n in inside))
                _traffic(body, times * n, inside, c)
            case Alloc(buffer):
                c.spaces[buffer.name] = buffer.space
                if buffer.space == "shared":
                    c.shared += span(buffer) * buffer.dtype.bytes
                elif nest:
                    c.held += math.prod(buffer.shape)
                else:
                    c.spread += math.prod(buffer.shape)
            case Store(buffer, _, value):
                _access(buffer, value.dtype.bytes * times, c)
                for x in loads(value):
                    _access(x.buffer, _bytes(x, nest) * times, c)
                c.operations += times * _operations(value)
            case Mma():
                c.tensor_operations += times * 2 * mma.ROWS * mma.COLS * s.extent / mma.LANES
                for x in (s.a, s.b):  # a thread loads a 32nd of what the warp needs
                    rows = mma.ROWS if x is s.a else mma.COLS
                    share = x.dtype.bytes * rows * s.extent / mma.LANES
                    _access(x.buffer, share * times, c)
            case If(_, then, orelse):
                _traffic(then, times, nest, c)
                _traffic(orelse, times / 8, nest, c)
            case _:
                pass


def _bytes(x: Load, nest: tuple[tuple[str, float], ...]) -> float:
    """Bytes a load moves per thread."""
    moving = {v for i in x.index for v in variables(i)}
    shared_by = math.prod(n for v, n in nest if v not in moving)
    return x.dtype.bytes / min(max(shared_by, 1.0), 32.0)


def _access(buffer: str, amount: float, c: _Traffic) -> None:
    space = c.spaces.get(buffer, "global")
    if space == "global":
        c.bytes += amount
    elif space == "shared":
        c.shared_bytes += amount


def _operations(e: Expr) -> float:
    own = {"Fma": 2.0, "Binary": 1.0, "Unary": 4.0, "Dot": 8.0}.get(type(e).__name__, 0.0)
    return own + sum(map(_operations, children(e)))
