"""What schedules for GPUs share: questions about kernels.

In: kernels, drafts. Out: facts, steps. Invariant: nothing here chooses the numbers of a schedule.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tilewright.core.dtypes import F16, F32
from tilewright.loop.ir import Alloc, Cast, Fma, For, Kernel, Load, Store, span
from tilewright.loop.rewrite import expressions, loops, walk
from tilewright.schedule.legality import carried
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
    while f.extent.is_const and carried(f.body, f.var) is None:
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
