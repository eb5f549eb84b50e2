"""Sums of byte products that TensorFlow Lite rounds twice, by one fused multiply-add where that is the same.

requantize(contraction(x, w, b), multiplier, places)
  ->  rescale_stepwise(contraction(x, w, b), factor, offset, exceptions ...)

Both rise in steps as the sum rises, so they agree everywhere if they agree on both sides of every step: 510 sums per
channel at most, and fewer where constant weights bound the sum. For a given factor each of them bounds the offset:
the last sum before a step from above, the first one after it from below. Factors near the real one are tried until
some offset lies between; a few sums that ask for more than the others may become exceptions. The result is checked by
what both operators say at all steps, so this is exact; where some channel has no solution the node stays. It takes
half the instructions, since no product needs 64 bits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product

import numpy as np

from tilewright.core.attributes import integer
from tilewright.core.dtypes import I8, U8, dtype, limits
from tilewright.graph.ir import Array, Attrs, AttrValue, Graph, Node
from tilewright.registry import operator

#: Dims of the weights that a contraction sums over.
_SUMMED = {"conv2d": (1, 2, 3), "depthwise_conv2d": (1, 2, 3), "matmul": (0,)}
#: How many neighbours of a factor are tried on each side, and how many exceptions a channel may have.
_REACH, _EXCEPTIONS = 8, 3
#: Sums whose products with multipliers fit into 64 bits; results beyond have no exact steps of 1.
_LARGEST, _EXACT = 1 << 31, 1 << 22
#: Far more than what float64 loses, far less than the distance of two float32.
_MARGIN = 1e-10
_NEVER = np.iinfo(np.int32).min


def merge_requantize(graph: Graph) -> Graph:
    """Replace every requantisation that may be replaced."""
    g = graph.clone()
    made = g.producers()
    g.nodes = [_merged(g, made, node) or node for node in g.nodes]
    g.drop_unused()
    return g


def _merged(g: Graph, made: Mapping[str, Node], node: Node) -> Node | None:
    if (
        node.op != "requantize"
        or len(node.inputs) < 3
        or dtype(str(node.attrs["to"])) not in (I8, U8)
    ):
        return None
    numbers = [g.constants.get(i) for i in node.inputs[1:]]
    sums = _sums(g, made.get(node.inputs[0]))
    if sums is None or numbers[0] is None or numbers[1] is None:
        return None
    shape = numbers[0].shape
    multiplier, places = (n.reshape(-1).astype(np.int64) for n in numbers if n is not None)
    if multiplier.size == 1 < sums[0].size:
        sums = sums[0].min(keepdims=True), sums[1].max(keepdims=True)
    if multiplier.size != sums[0].size or min(multiplier) < 0:
        return None
    low, high = (np.where(multiplier > 0, s, 0) for s in sums)
    spare = np.where(sums[0] > _NEVER, _NEVER, np.iinfo(np.int32).max)
    if ((sums[0] <= spare) & (spare <= sums[1]) | (low <= _NEVER)).any():
        return None  # no number is left that is no sum
    if max(abs(low).max(), abs(high).max()) << integer(node.attrs, "shift") > _LARGEST:
        return None
    steps = _Steps.of(multiplier, places, node.attrs, low, high)
    found = steps and (steps.solved(False) or steps.solved(True))
    if not found:
        return None
    operands = {"factor": found.factor, "offset": found.offset}
    for i, e in enumerate(found.exceptions.T):  # converters give channels without weights any bias
        operands[f"exception_{i}"] = np.where(e == _NEVER, spare, e).astype(np.int32)
    names = [
        g.add_constant(f"{node.outputs[0]}.{k}", v.reshape(shape)) for k, v in operands.items()
    ]
    return node.with_(op="rescale_stepwise", inputs=(node.inputs[0], *names), attrs=found.attrs)


def _sums(g: Graph, node: Node | None) -> tuple[Array, Array] | None:
    """The least and the largest sum of every channel that any bytes can give."""
    if node is None or node.op not in _SUMMED or node.attrs.get("raised", False):
        return None
    x, w, bias = (*node.inputs, "")[:3]
    kind, weights = g.types[x].dtype, g.constants.get(w)
    if kind not in (I8, U8) or weights is None or weights.ndim != 1 + len(_SUMMED[node.op]):
        return None
    if bias and (bias not in g.constants or g.constants[bias].ndim != 1):
        return None
    least, most = limits(kind)
    w64 = weights.astype(np.int64)
    plus = g.constants[bias].astype(np.int64) if bias else 0
    up, down = (f(w64, 0).sum(_SUMMED[node.op]) for f in (np.maximum, np.minimum))
    return up * least + down * most + plus, up * most + down * least + plus


@dataclass(frozen=True, slots=True)
class _Found:
    factor: Array
    offset: Array
    exceptions: Array
    attrs: Attrs


@dataclass(frozen=True, slots=True)
class _Steps:
    """`first[c, k]`: the least sum of channel c whose result is at least `results[k]`, held just outside the sums
    that there are (`low` .. `high`)."""

    numbers: tuple[Array, Array]
    attrs: Attrs
    results: Array
    first: Array
    low: Array
    high: Array
    real: Array

    @classmethod
    def of(
        cls, multiplier: Array, places: Array, attrs: Attrs, low: Array, high: Array
    ) -> _Steps | None:
        real = multiplier * 2.0 ** (integer(attrs, "shift") - 33 - places)
        results = np.arange(integer(attrs, "low") + 1, integer(attrs, "high") + 1)
        numbers = multiplier[:, None], places[:, None]
        low, high = low[:, None], high[:, None]
        with np.errstate(all="ignore"):
            guess = (results - integer(attrs, "zero_point") - 0.5) / real[:, None]
        near: Array = np.clip(np.nan_to_num(guess), low - 8, high + 8).astype(np.int64)
        below, above = near - 4, near + 4
        reached = operator("requantize").reference
        for _ in range(3):
            middle = (below + above) >> 1
            there = reached((middle, *numbers), attrs)[0] >= results
            below, above = np.where(there, below, middle), np.where(there, middle, above)
        return cls(numbers, attrs, results, above, low, high, real)

    def solved(self, mirrored: bool) -> _Found | None:
        """Factors and offsets for all channels, if there are."""
        zero = integer(self.attrs, "zero_point")
        edge = _edges(self.results - zero)
        after, before = np.maximum(self.first, self.low), np.minimum(self.first - 1, self.high)
        counts = self.first <= self.high, self.first > self.low
        center = self.real.astype(np.float32)
        factor, offset = center.copy(), np.zeros_like(center)
        exceptions = np.full((len(center), _EXCEPTIONS), _NEVER, np.int32)
        number = np.where(center > 0, _EXCEPTIONS + 1, 0)
        for step in sorted(range(-_REACH, _REACH + 1), key=abs):
            open_ = np.flatnonzero(number)
            if open_.size == 0 or (step and number.min() > _EXCEPTIONS and number.size > 8):
                break  # done, or offsets of this kind do not fit
            near = (center[open_].view(np.int32) + step).view(np.float32)
            slope = near.astype(np.float64)[:, None]
            a, b = after[open_], before[open_]
            least = np.where(counts[0][open_], edge - slope * a.astype(np.float32), -np.inf)
            most = np.where(counts[1][open_], edge - slope * b.astype(np.float32), np.inf)
            count, middle, odd = _between(least, most, a, b, mirrored)
            fits = count < number[open_]
            at = open_[fits]
            number[at], factor[at] = count[fits], near[fits]
            offset[at], exceptions[at] = middle[fits], odd[fits]
        largest = np.maximum(abs(self.low), abs(self.high))[:, 0] * factor + abs(offset)
        if number.max() > _EXCEPTIONS or not largest.max() < _EXACT:
            return None
        used = (exceptions != _NEVER).any(0)
        attrs: dict[str, AttrValue] = {
            n: self.attrs[n] for n in ("zero_point", "low", "high", "to")
        }  # fmt: skip
        found = _Found(factor, offset, exceptions[:, used], {**attrs, "mirrored": mirrored})
        return found if self.same(found) else None

    def same(self, found: _Found) -> bool:
        """Whether both operators agree around every step, and at both ends."""
        ours = found.factor, found.offset, *found.exceptions.T
        for beside in (-1, 0, 1):
            x = np.clip(self.first + beside, self.low, self.high)
            want = operator("requantize").reference((x, *self.numbers), self.attrs)[0]
            got = operator("rescale_stepwise").reference(
                (x, *(v[:, None] for v in ours)), found.attrs
            )[0]
            if not np.array_equal(want, got):
                return False
        return True


def _edges(results: Array) -> Array:
    """The least numbers that round to `results` or more as float32: ties go to even results."""
    half = (results - 0.5).astype(np.float32)
    down, up = (np.nextafter(half, np.float32(end)).astype(np.float64) for end in (-np.inf, np.inf))
    return np.asarray((half + np.where(results % 2 == 0, down, up)) / 2)


def _between(
    least: Array, most: Array, after: Array, before: Array, mirrored: bool
) -> tuple[Array, Array, Array]:
    """Per channel: how few exceptions let an offset fit, that offset, and the exceptions.

    Where the sum is negative a mirrored offset counts the other way, so what bounds it from below bounds it from
    above. Exceptions are the first sums after the steps that ask for most.
    """
    if mirrored:
        turned, early = after < 0, before < 0
        floor, ceiling = np.where(turned, -np.inf, least), np.where(turned, -least, np.inf)
        held_above = np.where(early, np.inf, most).min(1)
        held_below = np.where(early, -most, -np.inf).max(1)
    else:
        floor, ceiling = least, np.full_like(least[:, : _EXCEPTIONS + 1], np.inf)
        held_above, held_below = most.min(1), np.full(len(least), -np.inf)
    floors, ceilings = _smallest(-floor), _smallest(ceiling)
    rows = np.arange(len(least))
    count, middle = np.full(len(least), _EXCEPTIONS + 1), np.zeros(len(least), np.float32)
    odd = np.full((len(least), _EXCEPTIONS), _NEVER, np.int32)
    for number, above in product(
        range(min(_EXCEPTIONS + 1, floors.shape[1])), range(_EXCEPTIONS + 1)
    ):
        below = number - above
        if below < 0 or (above and not mirrored):
            continue
        low = np.maximum(floor[rows, floors[:, below]], held_below)
        high = np.minimum(ceiling[rows, ceilings[:, above]], held_above)
        offset = _middle(low, high)
        good = (count > number) & (offset > low + _MARGIN) & (offset < high - _MARGIN)
        count[good], middle[good] = number, offset[good]
        for i in range(number):
            step = floors[:, i] if i < below else ceilings[:, i - below]
            odd[good, i] = after[rows, step][good]
    return count, middle, odd


def _smallest(x: Array) -> Array:
    """Where the least few of every row are, in order."""
    few = min(_EXCEPTIONS + 1, x.shape[1])
    at = np.argpartition(x, few - 1, 1)[:, :few] if few < x.shape[1] else np.argsort(x, 1)
    return np.take_along_axis(at, np.argsort(np.take_along_axis(x, at, 1), 1), 1)


def _middle(low: Array, high: Array) -> Array:
    """A float32 between two numbers, either of which may be missing."""
    one_sided = np.where(
        np.isfinite(low), low + 0.25, np.where(np.isfinite(high), high - 0.25, 0.0)
    )
    both = np.isfinite(low) & np.isfinite(high)
    with np.errstate(invalid="ignore"):
        return np.where(both, (low + high) / 2, one_sided).astype(np.float32)
