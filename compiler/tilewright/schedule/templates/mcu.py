"""Microcontrollers: small blocks of outputs in the few general registers, dot products of bytes.

In: an unscheduled integer product, convolution or depthwise convolution. Out: a trace.
Sums whose operands lie side by side become `Dot`s of the widest run that an instruction of the target
takes; weights are packed so that one pointer walks through a block's weights. A block of 2 x 2 outputs
halves the loads and is what 14 registers hold (Lai et al., "CMSIS-NN", 2018, uses the same block).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from tilewright.core.index import variables
from tilewright.loop.ir import Buffer, Cast, Fma, For, Kernel, Load
from tilewright.loop.rewrite import expressions, loops
from tilewright.schedule.space import Choice, Space, Value
from tilewright.schedule.target import Target
from tilewright.schedule.templates.draft import Draft, buffers, stride
from tilewright.schedule.trace import Trace

#: Steps of the sum that are spelled out, as dot products or one by one: more cost flash and save little.
MAX_DOTS, MAX_STEPS = 16, 16
#: General registers that an inner loop can use.
GENERAL = 14
#: Outputs of a block that share an operand: pixels of a depthwise convolution, channels of a phase.
PIXELS = 4


@dataclass(frozen=True, slots=True)
class Block:
    """Outputs that are computed together, and how much of the sum is spelled out.

    pixels, channels   of a block
    width              elements that one dot product takes; 1: none is used
    steps              dot products or products that are spelled out, at most
    """

    pixels: int
    channels: int
    width: int
    steps: int


def dot_product(
    kernel: Kernel, target: Target, rows: Sequence[str], cols: str, sums: Sequence[str]
) -> Trace:
    """Products and convolutions: blocks of pixels x channels, the sum as dot products where it can be.

    rows   loops of output pixels, outermost first; the last one is blocked
    cols   loop of output channels
    sums   loops of the reduction, outermost first
    """
    return _blocked(kernel, target, rows, cols, sums, _default(kernel, target, rows, cols, sums))


def dot_space(
    kernel: Kernel, target: Target, rows: Sequence[str], cols: str, sums: Sequence[str]
) -> Space:
    """The same as a space: blocks whose sums and operands the registers can hold."""
    own = _default(kernel, target, rows, cols, sums)
    d = Draft(kernel)
    row = next((v for v in reversed(rows) if d.has(v)), None)
    pixels = d.extent(row) if row is not None else 1
    widths, _ = _dot_runs(kernel, target, [v for v in sums if d.has(v)])
    registers = target.registers if _is_float(kernel) else GENERAL
    params: dict[str, tuple[Value, ...]] = {
        "pixels": _upto(pixels, own.pixels),
        "channels": _upto(d.extent(cols), own.channels),
        "width": tuple(sorted({1, own.width, *widths})),
        "steps": tuple(sorted({own.steps, 2, 4, 8, 16, 32})),
    }

    def cost(c: Choice) -> float:
        held = int(c["pixels"]) * int(c["channels"]) + int(c["pixels"]) + int(c["channels"])
        if held > 2 * registers:
            return math.inf
        loads = 1 / int(c["pixels"]) + 1 / int(c["channels"])
        spilt = 1 + 0.5 * max(0, held - registers) / registers
        return (1 + loads) * spilt / min(int(c["width"]), 4) * (1 + 0.5 / int(c["steps"]))

    def build(c: Choice) -> Trace:
        block = Block(int(c["pixels"]), int(c["channels"]), int(c["width"]), int(c["steps"]))
        return _blocked(kernel, target, rows, cols, sums, block)

    default = {
        "pixels": own.pixels, "channels": own.channels, "width": own.width, "steps": own.steps,
    }  # fmt: skip
    return Space("mcu-dot", params, default, build, cost)


def _upto(n: int, own: int) -> tuple[Value, ...]:
    """Small numbers of outputs, at most `n`."""
    return tuple(sorted({own, *(v for v in (1, 2, 3, 4, 6, 8) if v <= n)}))


def _default(
    kernel: Kernel, target: Target, rows: Sequence[str], cols: str, sums: Sequence[str]
) -> Block:
    d = Draft(kernel)
    widths, _ = _dot_runs(kernel, target, [v for v in sums if d.has(v)])
    row = next((v for v in reversed(rows) if d.has(v)), None)
    pixels, channels = _block(d, row, cols, _is_float(kernel))
    width = widths[0] if widths else 1
    return Block(pixels, channels, width, MAX_DOTS if width > 1 else MAX_STEPS)


def _blocked(
    kernel: Kernel,
    target: Target,
    rows: Sequence[str],
    cols: str,
    sums: Sequence[str],
    block: Block,
) -> Trace:
    d = Draft(kernel)
    present = [v for v in sums if d.has(v)]
    _, along = _dot_runs(kernel, target, present)
    width, pixels, channels = block.width, block.pixels, block.channels
    if width == 1:
        along = None
    flat = _contiguous_pair(d, present, along)
    row = next((v for v in reversed(rows) if d.has(v)), None)
    outer = [v for v in loops(kernel.body) if v not in {*present, cols, *rows}]
    _pack(d, kernel, cols, channels, present, along if width > 1 else None, width)
    order: list[str] = []
    inner: list[str] = []
    if d.has(cols):
        if channels > 1 and d.extent(cols) > channels:
            d.do("split", cols, channels, f"{cols}o", f"{cols}i")
            order.append(f"{cols}o")
            inner.append(f"{cols}i")
        else:
            (inner if channels > 1 else order).append(cols)
    order += [v for v in rows if d.has(v) and v != row]
    if row is not None:
        if pixels > 1 and d.extent(row) > pixels:
            d.do("split", row, pixels, f"{row}o", f"{row}i")
            order.append(f"{row}o")
            inner.insert(0, f"{row}i")
        elif pixels > 1:
            inner.insert(0, row)
        else:
            order.append(row)
    d.do("reorder", [*outer, *order, *inner])
    steps = list(present)
    if width > 1 and along is not None:
        if d.extent(along) > width:
            d.do("split", along, width, f"{along}o", f"{along}i")
            steps = [*[v for v in present if v != along], f"{along}o", f"{along}i"]
        else:
            steps = [*[v for v in present if v != along], along]
    if inner:
        d.do("stage", inner)
    last = steps[-1:] if width > 1 else []
    head = [v for v in steps if v not in last]
    if steps and inner:
        d.do("reorder", [*head, *inner, *last])
    if last:
        d.do("tensorize", last[0])
    joined = "_".join(head[-2:])
    if flat is not None and head[-2:-1] == [flat] and d.try_("fuse", *head[-2:], joined):
        head[-2:] = [joined]
    for v in inner:
        d.do("unroll", v)
    _unroll(d, head, block.steps)
    return d.trace


def depthwise(kernel: Kernel, target: Target) -> Trace:
    """One channel at a time, a few pixels of a row at once so that they share the weights."""
    return _depthwise(kernel, _row_of_pixels(kernel), MAX_STEPS)


def depthwise_space(kernel: Kernel, target: Target) -> Space:
    """The same as a space."""
    own = _row_of_pixels(kernel)
    n = Draft(kernel).extent("ow")
    params: dict[str, tuple[Value, ...]] = {
        "pixels": tuple(sorted({own, *(v for v in range(1, 9) if v <= n)})),
        "steps": (1, 3, 5, 9, MAX_STEPS, 25),
    }

    def cost(c: Choice) -> float:
        pixels = int(c["pixels"])
        if 2 * pixels > 2 * GENERAL:
            return math.inf
        return (1 + 1 / pixels) * (1 + 0.5 / int(c["steps"])) * -(-n // pixels) * pixels / n

    return Space(
        "mcu-depthwise", params, {"pixels": own, "steps": MAX_STEPS},
        lambda c: _depthwise(kernel, int(c["pixels"]), int(c["steps"])), cost,
    )  # fmt: skip


def _row_of_pixels(kernel: Kernel) -> int:
    return _even_divisor(Draft(kernel).extent("ow"), PIXELS + 2)


def _depthwise(kernel: Kernel, size: int, steps: int) -> Trace:
    d = Draft(kernel)
    taps = [v for v in ("kh", "kw") if d.has(v)]
    order = [v for v in ("n", "oh") if d.has(v)]
    rest = [v for v in loops(kernel.body) if v not in {*order, *taps, "ow", "c"}]
    inner: list[str] = []
    if d.has("ow"):
        if 1 < size < d.extent("ow"):
            d.do("split", "ow", size, "owo", "owi")
            order.append("owo")
            inner = ["owi"]
        elif size > 1:
            inner = ["ow"]
        else:
            order.append("ow")
    order += [v for v in ("c",) if d.has(v)]
    d.do("reorder", [*rest, *order, *inner])
    if inner:
        d.do("stage", inner)
        d.do("reorder", [*taps, *inner])
        d.do("unroll", inner[0])
    _unroll(d, taps, steps)
    return d.trace


def phases(kernel: Kernel) -> Trace:
    """Several nests in a row, each a small convolution: four channels of a pixel share its value."""
    d = Draft(kernel)
    for top in [s for s in kernel.body if isinstance(s, For)]:
        names = [top.var]
        f = top
        while len(f.body) == 1 and isinstance(f.body[0], For):
            f = f.body[0]
            names.append(f.var)
        sums = list(loops(f.body))
        cols = next((v for v in names if v.split("_")[0] == "co"), None)
        if cols is None or not sums:
            continue
        outer, inner = [v for v in names if v != cols], cols
        if d.extent(cols) > PIXELS:
            d.do("split", cols, PIXELS, f"{cols}o", f"{cols}i")
            outer, inner = [*outer, f"{cols}o"], f"{cols}i"
        elif d.extent(cols) == 1:
            continue
        d.do("reorder", [*outer, inner])
        d.do("stage", [inner])
        for v in sums:
            d.do("reorder", [v, inner])
        d.do("unroll", inner)
    return d.trace


def _block(d: Draft, row: str | None, cols: str, floats: bool) -> tuple[int, int]:
    """(pixels, channels) of a block: two of each, or four of one where there is no second of the other.

    Floats have 32 registers of their own: four of each."""
    pixels = d.extent(row) if row is not None else 1
    channels = d.extent(cols)
    most = 4 if floats or pixels == 1 or channels == 1 else 2
    return min(pixels, most), min(channels, most)


def _is_float(kernel: Kernel) -> bool:
    """Whether the kernel sums products of floats."""
    return any(isinstance(e, Fma) and e.dtype.is_float for e in expressions(kernel.body))


def applies(kernel: Kernel, target: Target) -> bool:
    """Whether these schedules are the right ones: on a microcontroller, unless it has vectors of floats."""
    if target.family != "mcu":
        return False
    return target.lanes(4) == 1 or not _is_float(kernel)


def _even_divisor(n: int, most: int) -> int:
    """The largest block <= most that divides n if it is at least half of `most`, else `most`."""
    if n <= most:
        return n
    exact = next((b for b in range(most, most // 2, -1) if n % b == 0), None)
    return exact or most


def _operands(kernel: Kernel) -> tuple[Load, Load] | None:
    """The two loads of the kernel's product."""
    for e in expressions(kernel.body):
        match e:
            case Fma(Cast(Load() as a, _), Cast(Load() as b, _), _) | Fma(
                Load() as a, Load() as b, _
            ):
                return a, b
    return None


def _dot_runs(
    kernel: Kernel, target: Target, sums: Sequence[str]
) -> tuple[tuple[int, ...], str | None]:
    """(width, loop) of the dot products: the innermost sum over bytes that lie side by side."""
    found = _operands(kernel)
    if found is None or any(x.dtype.bytes != 1 for x in found):
        return (), None
    known = buffers(kernel)
    data = found[0]
    widths = (16, 8, 4) if "mve" in target.dot else (4,) if target.dot else ()
    for v in reversed(sums):
        if stride(known[data.buffer], data.index, v) != 1:
            continue
        n = Draft(kernel).extent(v)
        fitting = tuple(w for w in widths if n % w == 0)
        if fitting:
            return fitting, v
    return (), None


def _contiguous_pair(d: Draft, sums: Sequence[str], along: str | None) -> str | None:
    """The sum loop around `along` with which it walks through memory without a gap."""
    found = _operands(d.kernel)
    if found is None or along is None or sums[-1:] != [along] or len(sums) < 2:
        return None
    data: Buffer = buffers(d.kernel)[found[0].buffer]
    same = stride(data, found[0].index, sums[-2]) == d.extent(along)
    return sums[-2] if same else None


def _pack(
    d: Draft,
    kernel: Kernel,
    cols: str,
    channels: int,
    sums: Sequence[str],
    along: str | None,
    width: int,
) -> None:
    """Weights in the order in which a block reads them: block, sum, channel of the block, run."""
    found = _operands(kernel)
    constants = {p.buffer.name for p in kernel.params if p.role == "const"}
    if found is None or found[1].buffer not in constants:
        return
    index = found[1].index
    col = [i for i, form in enumerate(index) if cols in variables(form)]
    run = [i for i, form in enumerate(index) if along is not None and along in variables(form)]
    if len(col) != 1 or len(run) > 1 or (run and run == col):
        return

    def depth(i: int) -> int:
        return max((sums.index(v) + 1 for v in variables(index[i]) if v in sums), default=0)

    rest = sorted(
        (i for i in range(len(index)) if i not in {*col, *run}), key=lambda i: (depth(i), i)
    )
    split = channels > 1 and d.extent(cols) > channels
    dims: list[list[object]] = [[col[0], channels, "outer"]] if split else []
    dims += [[i, 0, "whole"] for i in rest]
    dims += [[i, width, "outer"] for i in run]
    dims.append([col[0], channels, "inner"] if split else [col[0], 0, "whole"])
    dims += [[i, width, "inner"] for i in run]
    d.try_("pack", found[1].buffer, dims)


def _unroll(d: Draft, sums: Sequence[str], budget: int) -> None:
    """Spell out the innermost sums, at most `budget` steps in all."""
    for v in reversed(sums):
        n = d.extent(v)
        if n <= budget:
            d.do("unroll", v)
            budget //= n
            continue
        size = next((b for b in range(budget, 1, -1) if n % b == 0), 1)
        if size > 1:
            d.do("split", v, size, f"{v}u", f"{v}s")
            d.do("unroll", f"{v}s")
        return
