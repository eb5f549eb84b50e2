"""Sums of byte products in vectors, where one instruction adds four products to every lane.

In: an unscheduled integer contraction and a `Target`. Out: the loop of the sum whose runs of four
iterations become `Dot`s, if there is one.
Invariant: a loop is only named where code generation has an instruction for what comes out of it: the
pixel operand lies along the loop, the weights are constant and can be packed in fours.
"""

from __future__ import annotations

from collections.abc import Sequence

from tilewright.core.dtypes import DType
from tilewright.core.index import ix
from tilewright.loop.ir import Cast, Fma, Kernel, Load
from tilewright.loop.raised import shared_byte
from tilewright.loop.rewrite import expressions
from tilewright.schedule.target import Target
from tilewright.schedule.templates.draft import Draft, buffers, stride

#: Products that one instruction adds to a lane of 32 bits.
RUN = 4
#: Bytes of the pixel operand that are loaded at once where the loop is a multiple of it.
BLOCK = 16
#: (types of the operands, in any order) -> the names in `Target.dots` that stand for an instruction.
_INSTRUCTIONS = {
    frozenset({"i8"}): {"sdot", "vnni", "madd"},
    frozenset({"u8"}): {"sdot", "madd"},  # udot comes with sdot
    frozenset({"i8", "u8"}): {"usdot", "vnni", "madd"},
}


def has_dot(x: DType, w: DType, target: Target) -> bool:
    """Whether vectors of the target add up products of such bytes, four to a lane."""
    names = _INSTRUCTIONS.get(frozenset({x.name, w.name}), set[str]())
    return target.family == "simd" and not names.isdisjoint(target.dots)


def dot_loop(
    kernel: Kernel,
    target: Target,
    sums: Sequence[str],
    weights: tuple[str, int, Sequence[int]] | None,
) -> str:
    """The innermost loop of `sums` if its runs of four are dot products, else an empty string."""
    if weights is None or not sums or target.family != "simd":
        return ""
    var = sums[-1]
    found = _operands(kernel, weights[0])
    if found is None:
        return ""
    a, raised, b = found
    kind = "u8" if raised else a.dtype.name
    names = _INSTRUCTIONS.get(frozenset({kind, b.dtype.name}), set[str]())
    names = names - {"usdot"} if raised else names
    along = stride(buffers(kernel)[a.buffer], a.index, var)
    last = b.index[weights[2][-1]] if weights[2] else None
    some = not names.isdisjoint(target.dots)
    fits = some and along == 1 and Draft(kernel).extent(var) % RUN == 0
    return var if fits and last == ix(var) else ""


def dot_types(kernel: Kernel, weights: tuple[str, int, Sequence[int]]) -> tuple[str, str] | None:
    """Types of the bytes that a contraction multiplies: pixels as they lie in memory, weights."""
    found = _operands(kernel, weights[0])
    return None if found is None or found[1] else (found[0].dtype.name, found[2].dtype.name)


def _operands(kernel: Kernel, weights: str) -> tuple[Load, bool, Load] | None:
    """The pixel that is multiplied by a weight, whether it is raised, and the weight."""
    for e in expressions(kernel.body):
        match e:
            case Fma(left, Cast(Load() as b, _), _) if b.buffer == weights:
                pixel = shared_byte(left)
                if pixel is not None:
                    return *pixel, b
    return None
