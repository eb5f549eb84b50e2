"""What schedules for GPUs share: questions about kernels, what a block costs.

In: kernels, drafts. Out: facts, steps, modelled times. Invariant: nothing here chooses the numbers of a
schedule.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from tilewright.core.dtypes import F16, F32
from tilewright.loop.ir import Alloc, Cast, Fma, For, Kernel, Load, Store, span
from tilewright.loop.rewrite import expressions, loops, walk
from tilewright.schedule.legality import carried
from tilewright.schedule.target import Gpu
from tilewright.schedule.templates.draft import Draft


@dataclass(frozen=True, slots=True)
class Product:
    """A kernel that is one product of two of its parameters: its loops by what they do.

    `rows`: output pixels, outermost first; `cols`: output channels; `sums`: reductions, outermost first;
    `a`, `b`: the factors, of which `b` moves with `cols`.
    """

    rows: tuple[str, ...]
    cols: str
    sums: tuple[str, ...]
    a: Load
    b: Load


def product_of(kernel: Kernel) -> Product | None:
    """The product that a kernel is; None if it is anything else."""
    found = _operands(kernel)
    names = list(loops(kernel.body))
    cols = next((v for v in ("co", "n") if v in names), None)  # n: a batch there
    sums = tuple(v for v in ("kh", "kw", "ci", "k") if v in names)
    rows = tuple(v for v in ("oh", "ow", "m") if v in names)
    if found is None or cols is None or len(kernel.body) != 1 or not sums or not rows:
        return None
    if any(x.buffer not in {p.buffer.name for p in kernel.params} for x in found):
        return None
    return Product(rows, cols, sums, *found)


def _operands(kernel: Kernel) -> tuple[Load, Load] | None:
    """The two loads of the kernel's only product."""
    found: list[tuple[Load, Load]] = []
    for e in expressions(kernel.body):
        match e:
            case Fma(Cast(Load() as a, _), Cast(Load() as b, _), _) | Fma(
                Load() as a, Load() as b, _
            ):
                found.append((a, b))
    return found[0] if len(found) == 1 and found[0][0].buffer != found[0][1].buffer else None


def shared_bytes(kernel: Kernel) -> int:
    """Shared memory that a kernel allocates."""
    found = [s.buffer for s in walk(kernel.body) if isinstance(s, Alloc)]
    return sum(span(b) * b.dtype.bytes for b in found if b.space == "shared")


def independent(top: For) -> list[str]:
    """Perfectly nested loops from the outside in whose iterations do not depend on each other."""
    names: list[str] = []
    f = top
    while f.extent.is_const and carried(f) is None:
        names.append(f.var)
        if len(f.body) != 1 or not isinstance(f.body[0], For):
            break
        f = f.body[0]
    return names


def widen_sums(d: Draft) -> None:
    """Sums of f16 in f32, as tensor cores add them up: whatever computes them rounds once."""
    for s in list(walk(d.kernel.body)):
        if isinstance(s, Store) and isinstance(s.value, Fma) and s.value.dtype is F16:
            d.try_("widen", s.buffer, F32.name)


def cut(
    d: Draft, v: str, n: int, t: int, blocks: list[str], tiles: list[str], fragments: list[str]
) -> None:
    """Cut loop `v` into blocks of `t` tiles of `n` iterations; names go to the lists they belong to."""
    size, inside = d.extent(v), v
    if n * t == 1:
        blocks.append(v)
        return
    if n * t < size:
        inside = f"{v}i"
        d.do("overlap" if size % (n * t) else "split", v, n * t, f"{v}b", inside)
        blocks.append(f"{v}b")
    if n > 1 and t > 1:
        d.do("split", inside, n, f"{v}t", f"{v}f")
        tiles.append(f"{v}t")
        fragments.append(f"{v}f")
    else:
        (fragments if n > 1 else tiles).append(inside)


def divisor(n: int, most: int) -> int:
    """The largest divisor of n that is at most `most`."""
    return next(k for k in range(min(n, max(most, 1)), 0, -1) if n % k == 0)


def powers(most: int, least: int = 1) -> Sequence[int]:
    """Powers of two, the largest first."""
    return [1 << i for i in range(30, -1, -1) if least <= 1 << i <= most]


# ---------------------------------------------------------------- what a schedule costs

#: Registers of a thread besides the values it holds: addresses, counters.
OVERHEAD = 24


@dataclass(frozen=True, slots=True)
class Work:
    """What a launch takes: `blocks` of `threads`, each thread holding `held` values of 4 bytes, each block
    `shared` bytes of memory, doing `operations`, moving `bytes` of device and `shared_bytes` of shared memory."""

    blocks: int
    threads: int
    held: int
    shared: int
    operations: float
    bytes: float
    shared_bytes: float


def modelled(w: Work, gpu: Gpu, peak: float) -> float:
    """Seconds at `peak` operations a second of the whole device; infinite for what cannot be launched, or
    would spill.

    Blocks come in waves of as many as registers, threads and shared memory of a multiprocessor leave room for;
    a wave takes the slowest of arithmetic, shared and device memory. A quarter of the threads that there is
    room for hide the latency of arithmetic, a sixteenth that of device memory.
    """
    warps = -(-w.threads // gpu.warp)
    registers = w.held + OVERHEAD
    if w.threads > gpu.threads_block or registers > gpu.registers_thread:
        return math.inf
    if w.shared > gpu.shared_block:
        return math.inf
    room = min(
        gpu.blocks_sm,
        gpu.threads_sm // (warps * gpu.warp),
        gpu.registers_sm // (registers * warps * gpu.warp),
        gpu.shared_sm // max(w.shared + 1024, 1),
    )
    if room < 1:
        return math.inf
    at_once = min(room, -(-w.blocks // gpu.multiprocessors))
    waves = -(-w.blocks // (gpu.multiprocessors * at_once))
    busy = min(1.0, at_once * w.threads / (gpu.threads_sm / 4))
    each = max(
        w.operations * gpu.multiprocessors / peak / busy,
        w.shared_bytes / SHARED_BANDWIDTH / busy,
        w.bytes * gpu.multiprocessors / gpu.bandwidth / min(1.0, 4 * busy),
    )
    return waves * at_once * each


#: Bytes a second from the shared memory of one multiprocessor: 32 banks of 4 bytes at about 1.4 GHz.
SHARED_BANDWIDTH = 128 * 1.4e9
