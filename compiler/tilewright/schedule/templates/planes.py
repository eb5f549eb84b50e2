"""Convolutions to few channels whose maps are planes: vectors along a row of pixels.

In: an unscheduled convolution. Out: a trace in which a tile of channels (or of rows, where there is one channel)
times some vectors of neighbouring pixels stays in registers, or the space of such traces; another template's
where pixels of a row do not follow each other in memory.
Vectors of channels would be mostly empty there. Every vector of pixels is read once for each tap and serves all
channels; the weights, packed as they are read, are broadcast.
"""

from __future__ import annotations

from dataclasses import replace

from tilewright.loop.ir import Kernel
from tilewright.loop.rewrite import accesses, loops
from tilewright.schedule.space import Space
from tilewright.schedule.target import Target
from tilewright.schedule.templates import mcu
from tilewright.schedule.templates.contraction import (
    channels_last,
    channels_last_space,
    contraction,
    contraction_space,
)
from tilewright.schedule.templates.draft import Draft, buffers, stride, weights_of
from tilewright.schedule.trace import Trace

SUMS = ("ci", "kh", "kw")


def convolution(kernel: Kernel, target: Target) -> Trace:
    """Convolution with loops n, g, oh, ow, co and reductions kh, kw, ci."""
    if not _planes(kernel, target):
        return channels_last(kernel, target)
    draft, rows = _packed(kernel)
    made = contraction(draft.kernel, target, rows, "ow", _sums(kernel), None)
    return (*draft.trace, *made)


def convolution_space(kernel: Kernel, target: Target) -> Space | None:
    """The schedules of a convolution; None where another template than ours applies."""
    if not _planes(kernel, target):
        return channels_last_space(kernel, target)
    draft, rows = _packed(kernel)
    space = contraction_space(draft.kernel, target, rows, "ow", _sums(kernel), None)
    return replace(
        space, family="planes", build=lambda choice: (*draft.trace, *space.build(choice))
    )


def _planes(kernel: Kernel, target: Target) -> bool:
    """Whether neighbouring pixels of a row follow each other where they are read; they are written once."""
    found = loops(kernel.body)
    if target.family != "simd" or target.lanes(4) == 1 or mcu.applies(kernel, target):
        return False
    if "ow" not in found or not found["ow"].extent.is_const or "g" in found:
        return False
    if weights_of(kernel, "co", SUMS) is None and "co" in found:
        return False
    known = buffers(kernel)
    moves = [
        stride(known[name], index, "ow")
        for name, index, store in accesses(kernel.body)
        if known[name].space == "global" and not store
    ]
    return 1 in moves and all(m in (0, 1) for m in moves)


def _sums(kernel: Kernel) -> list[str]:
    """Loops of the sum, outermost first."""
    return [v for v in loops(kernel.body) if v in SUMS]


def _packed(kernel: Kernel) -> tuple[Draft, list[str]]:
    """Weights as they are read, all channels of a tap side by side; the loop whose iterations share a vector."""
    draft = Draft(kernel)
    if "co" not in loops(kernel.body):
        return draft, ["oh"]
    weights = weights_of(kernel, "co", _sums(kernel))
    if weights is not None:
        buffer, along, rest = weights
        draft.do("pack", buffer, [*[[r, 0, "whole"] for r in rest], [along, 0, "whole"]])
    return draft, ["co"]
