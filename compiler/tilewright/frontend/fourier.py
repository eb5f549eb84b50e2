"""DFT and STFT as products with tables of cosines and sines.

In: nodes whose length is known at compile time. Out: `matmul` with constant matrices, movement, and for
lengths with factors `mul` by twiddle factors between two such steps.
Invariant: tables are computed in float64 from exact integer phases, so that a result is off by the rounding
of sums alone. A length n = a * b is done as b transforms of a elements and a of b (Cooley & Tukey, 1965)
where that takes less than half of the n * n products; a factor of a mixed radix is split the same way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tilewright.core.attributes import axis_of
from tilewright.graph.ir import Array
from tilewright.registry import ImportNode

#: Lengths up to this are one product with a table: the matrix unit is faster than anything smarter.
DIRECT = 128


@dataclass(frozen=True, slots=True)
class _Complex:
    """Real and imaginary part as two values of one shape; `imag` is empty for real numbers."""

    real: str
    imag: str


def _tables(rows: int, columns: int, n: int, sign: int, scale: float) -> tuple[Array, Array]:
    """scale * exp(sign * 2 pi i * j * k / n) for j < rows, k < columns: the phase is reduced exactly."""
    phase = np.outer(np.arange(rows, dtype=np.int64), np.arange(columns, dtype=np.int64)) % n
    angle = phase * (2 * np.pi / n)
    return scale * np.cos(angle), sign * scale * np.sin(angle)


class _Work:
    """Makes nodes of one float type."""

    def __init__(self, node: ImportNode, number: np.dtype[np.generic]) -> None:
        self.node, self.number = node, number

    def add(self, op: str, *inputs: str, **attrs: object) -> str:
        return self.node.add(op, list(inputs), attrs)[0]  # type: ignore[arg-type]

    def table(self, values: Array) -> str:
        return self.node.constant(values.astype(self.number), "table")

    def shape(self, value: str) -> tuple[int, ...]:
        return self.node.type_of(value).shape

    def reshaped(self, x: _Complex, shape: tuple[int, ...]) -> _Complex:
        return self.each(x, lambda v: self.add("reshape", v, shape=shape))

    def transposed(self, x: _Complex, perm: tuple[int, ...]) -> _Complex:
        return self.each(x, lambda v: self.add("transpose", v, perm=perm))

    def each(self, x: _Complex, f: object) -> _Complex:
        assert callable(f)
        return _Complex(f(x.real), f(x.imag) if x.imag else "")

    def times(self, op: str, x: _Complex, re: Array, im: Array) -> _Complex:
        """x combined with a constant complex operand by `mul` or `matmul`."""
        c, s = self.table(re), self.table(im)
        if not x.imag:
            return _Complex(self.add(op, x.real, c), self.add(op, x.real, s))
        real = self.add("sub", self.add(op, x.real, c), self.add(op, x.imag, s))
        imag = self.add("add", self.add(op, x.real, s), self.add(op, x.imag, c))
        return _Complex(real, imag)

    def transform(self, x: _Complex, keep: int, sign: int, scale: float) -> _Complex:
        """The first `keep` frequencies of the transform along the last axis."""
        *lead, n = self.shape(x.real)
        a = _factor(n)
        if a == 1:
            return self.times("matmul", x, *_tables(n, keep, n, sign, scale))
        # x[a * j + i]: transforms over j, twiddle factors, transforms over i
        b, rank = n // a, len(lead)
        x = self.reshaped(x, (*lead, b, a))
        x = self.transposed(x, (*range(rank), rank + 1, rank))
        x = self.transform(x, b, sign, 1.0)
        re, im = _tables(a, b, n, sign, scale)
        x = self.times("mul", x, re, im)
        x = self.transposed(x, (*range(rank), rank + 1, rank))
        x = self.transform(x, a, sign, 1.0)
        x = self.transposed(x, (*range(rank), rank + 1, rank))
        x = self.reshaped(x, (*lead, n))
        return self.each(x, lambda v: self.head(v, keep))

    def head(self, value: str, n: int) -> str:
        """The first n elements along the last axis; zeros follow where there are fewer."""
        shape = self.shape(value)
        zeros = (0,) * (len(shape) - 1)
        if n < shape[-1]:
            return self.add(
                "slice", value, starts=(*zeros, 0), ends=(*shape[:-1], n), steps=(1,) * len(shape)
            )
        if n > shape[-1]:
            after = (*zeros, n - shape[-1])
            return self.add(
                "pad", value, before=(*zeros, 0), after=after, mode="constant", value=0.0
            )
        return value

    def mirrored(self, value: str, n: int, change: str) -> str:
        """Frequencies 0 .. n / 2 and, `change`d, those of the other half backwards."""
        *lead, bins = self.shape(value)
        zeros, count = (0,) * len(lead), n - bins
        cut = self.add(
            "slice", value, starts=(*zeros, count), ends=(*lead, 0), steps=(*(1,) * len(lead), -1)
        )
        if change:  # the first one and the middle one are real numbers
            cut, edge = self.add(change, cut), np.ones(bins)
            edge[0] = 0.0
            if n % 2 == 0:
                edge[-1] = 0.0
            value = self.add("mul", value, self.table(edge))
        return self.add("concat", value, cut, axis=len(lead))

    def part(self, value: str, i: int) -> str:
        """Element i along the last axis, which vanishes."""
        *lead, _ = self.shape(value)
        zeros = (0,) * len(lead)
        cut = self.add(
            "slice", value, starts=(*zeros, i), ends=(*lead, i + 1), steps=(1,) * (len(lead) + 1)
        )
        return self.add("reshape", cut, shape=tuple(lead))

    def split(self, value: str) -> _Complex:
        """A tensor whose last dim holds a real number, or real and imaginary part."""
        return _Complex(
            self.part(value, 0), self.part(value, 1) if self.shape(value)[-1] == 2 else ""
        )

    def joined(self, x: _Complex) -> str:
        shape = (*self.shape(x.real), 1)
        parts = [self.add("reshape", v, shape=shape) for v in (x.real, x.imag)]
        return self.add("concat", *parts, axis=len(shape) - 1)


def _factor(n: int) -> int:
    """The factor to split off: the one nearest the root; 1 where a table is better."""
    if n <= DIRECT:
        return 1
    best = max((a for a in range(1, int(n**0.5) + 1) if n % a == 0), default=1)
    return best if 2 * (best + n // best) < n else 1


def _length(node: ImportNode, i: int, default: int) -> int:
    if not node.has(i):
        return default
    n = int(node.need_const(i, "the length of the transform").reshape(-1)[0])
    if n < 1:
        raise node.fail(f"a transform of {n} elements is not possible: repair the model")
    return n


def dft(node: ImportNode) -> Sequence[str]:
    """DFT: forward or inverse, of real or complex numbers; onesided gives or takes the first half."""
    x = node.type(0)
    if x.rank < 2 or x.shape[-1] not in (1, 2) or not x.dtype.is_float:
        raise node.fail(f"the transform of {x} is not possible: the last dim must be 1 or 2")
    given = node.attr("axis", 1) if node.opset < 20 else -2
    if node.opset >= 20 and node.has(2):
        given = node.need_const(2, "the axis").reshape(-1)[0]
    axis = axis_of(given, x.rank)
    if axis == x.rank - 1:
        raise node.fail("the axis of the transform is that of real and imaginary part: repair it")
    inverse, half = bool(node.attr("inverse", 0)), bool(node.attr("onesided", 0))
    work = _Work(node, x.dtype.numpy)
    value = work.split(node.inputs[0])
    rank = x.rank - 1
    perm = (*(d for d in range(rank) if d != axis), axis)
    value = work.transposed(value, perm)
    if inverse and half:
        bins = work.shape(value.real)[-1]
        n = _length(node, 1, 2 * (bins - 1))
        y = _real_inverse(work, value, n)
    else:
        n = _length(node, 1, x.shape[axis])
        value = work.each(value, lambda v: work.head(v, n))
        keep = n // 2 + 1 if half else n
        y = work.transform(value, keep, 1 if inverse else -1, 1 / n if inverse else 1.0)
    back = tuple(int(d) for d in np.argsort(perm))
    y = work.transposed(y, back)
    if not y.imag:
        return [work.add("reshape", y.real, shape=(*work.shape(y.real), 1))]
    return [work.joined(y)]


def _real_inverse(work: _Work, x: _Complex, n: int) -> _Complex:
    """n real numbers from the frequencies 0 .. n / 2 of their transform: the others mirror them."""
    bins = n // 2 + 1
    x = work.each(x, lambda v: work.head(v, bins))
    if _factor(n) > 1 and x.imag:  # a table would be large: the whole transform has factors
        both = _Complex(work.mirrored(x.real, n, ""), work.mirrored(x.imag, n, "neg"))
        return _Complex(work.transform(both, n, 1, 1 / n).real, "")
    weight = np.full(bins, 2.0)
    weight[0] = 1.0
    if n % 2 == 0:
        weight[-1] = 1.0
    re, im = _tables(bins, n, n, 1, 1 / n)
    y = work.add("matmul", x.real, work.table(weight[:, None] * re))
    if x.imag:
        y = work.add("sub", y, work.add("matmul", x.imag, work.table(weight[:, None] * im)))
    return _Complex(y, "")


def stft(node: ImportNode) -> Sequence[str]:
    """STFT: windows of a signal, `frame_step` apart, times the window, each transformed."""
    x = node.type(0)
    if x.rank not in (2, 3) or not x.dtype.is_float or (x.rank == 3 and x.shape[2] not in (1, 2)):
        raise node.fail(f"the signal {x} must have a batch, a length and a real or complex number")
    step = int(node.need_const(1, "the step between frames").reshape(-1)[0])
    n = _length(node, 3, node.type(2).shape[0] if node.has(2) else 0)
    if not 0 < n <= x.shape[1] or step < 1:
        raise node.fail(f"frames of {n} elements, {step} apart, do not fit {x}: repair the model")
    work = _Work(node, x.dtype.numpy)
    value = work.split(node.inputs[0]) if x.rank == 3 else _Complex(node.inputs[0], "")
    count = (x.shape[1] - n) // step + 1
    node.reserve(count, n)
    at = node.constant(np.arange(count)[:, None] * step + np.arange(n), "frames")
    frames = work.each(value, lambda v: work.add("gather", v, at, axis=1))
    if node.has(2):
        window = node.inputs[2]
        if node.type(2).shape != (n,):
            raise node.fail(
                f"the window {node.type(2)} does not fit frames of {n}: repair the model"
            )
        frames = work.each(frames, lambda v: work.add("mul", v, window))
    half = bool(node.attr("onesided", 1)) and not value.imag
    y = work.transform(frames, n // 2 + 1 if half else n, -1, 1.0)
    return [work.joined(y)]
