"""What it costs to compute a convolution in one way or another, before anything is measured.

In: sizes of a convolution and a `Target`. Out: cycles on one core, good for comparing ways of the same node.
The products are charged as `tiles` charges them; what Winograd adds is memory: points written and read again,
and weights that grow. Rates of the memory are the target's; the other constants
are from Zen 4 and hold within 20 % there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from tilewright.schedule.target import Target
from tilewright.schedule.templates.tiles import map_tile, register_tile

#: Cycles for each vector of points that is made or taken back, besides its bytes.
TRANSFORM = 4.0
#: Cycles to move an element to another order of dims.
MOVE = 3.0
#: Cycles to start a step.
STEP = 500.0
#: Another way must promise this much: it costs memory, and the model is not exact.
WORTH = 0.9


@dataclass(frozen=True, slots=True)
class Convolution:
    """A dense convolution of stride 1: images, channels in and out per group, taps, output size, groups."""

    batch: int
    inputs: int
    outputs: int
    taps: tuple[int, ...]
    size: tuple[int, ...]
    group: int = 1

    @staticmethod
    def of(
        image: Sequence[int], weights: Sequence[int], size: Sequence[int], group: int
    ) -> Convolution:
        """By the shapes of what it reads."""
        outputs, inputs, *taps = weights
        return Convolution(image[0], inputs, outputs // group, tuple(taps), tuple(size), group)


def direct_cycles(c: Convolution, target: Target) -> float:
    """The direct form: a register tile over pixels."""
    depth = c.inputs * math.prod(c.taps)
    tile = register_tile(math.prod(c.size), c.outputs, depth, target)
    if min(c.size) > 1:
        tile = map_tile(list(c.size), c.outputs, depth, target, tile)
    weights = 4.0 * depth * c.outputs
    return (
        c.batch
        * c.group
        * max(tile.cost, weights / stream_rate(weights * c.group, target) / c.batch)
    )


def planar_cycles(c: Convolution, target: Target) -> float:
    """Maps as planes: a register tile over channels and the pixels of a row, and the pixels laid out anew."""
    depth = c.inputs * math.prod(c.taps)
    high, wide = c.size
    if c.outputs == 1:  # rows of pixels take the place of channels
        once = register_tile(high, wide, depth, target).cost
    else:
        once = high * register_tile(c.outputs, wide, depth, target).cost
    return c.batch * (once + MOVE * c.inputs * high * wide) / WORTH


def winograd_cycles(c: Convolution, tile: tuple[int, ...], target: Target) -> float:
    """Winograd with tiles of `tile` outputs, `WORTH` included."""
    points = math.prod(m + r - 1 for m, r in zip(tile, c.taps, strict=True))
    tiles = c.batch * math.prod(-(-n // m) for n, m in zip(c.size, tile, strict=True))
    weights = 4.0 * points * c.inputs * c.outputs
    once = register_tile(tiles, c.outputs, c.inputs, target).cost * points
    stream = weights / stream_rate(weights * c.group, target)
    products = c.group * max(once + 0.15 * stream, 1.2 * stream)
    width = target.lanes(4)
    vectors = tiles * points * (-(-c.inputs // width) + -(-c.outputs // width)) * c.group
    traffic = 4.0 * tiles * points * (c.inputs + c.outputs) * c.group
    moves = vectors * TRANSFORM + traffic / stream_rate(traffic, target)
    return (products + moves + 2 * STEP) / WORTH


def stream_rate(size: float, target: Target) -> float:
    """Bytes per cycle for data of `size` bytes that is used once per run."""
    if size <= target.l2_bytes / 2:
        return target.l2_rate
    return target.l3_rate if size <= target.l3_bytes / 8 else target.memory_rate
