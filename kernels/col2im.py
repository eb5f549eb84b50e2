"""Overlapping blocks of an image added up where they belong: the adjoint of taking the blocks.

y[n, c, o..] = sum over block points k.. with o = l * stride + k * dilation - pad of x[n, (c, k..), (l..)]
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product
from math import prod
from typing import Any

import numpy as np

from tilewright.core.attributes import ints
from tilewright.core.dtypes import I64
from tilewright.core.index import Ix
from tilewright.errors import ModelError
from tilewright.graph.ir import Array, Attrs, TensorType
from tilewright.loop.builder import KernelBuilder, Reader, add, binary, const, from_index, select
from tilewright.loop.ir import Expr
from tilewright.registry import ImportNode, Operator, Sample

#: Points of a block, which are written out one by one.
_MOST_POINTS = 1024


def _steps(attrs: Attrs) -> list[int]:
    """How many blocks there are along each dim."""
    names = ("image", "block", "strides", "dilations", "pads")
    image, block, strides, dilations, pads = (ints(attrs, name) for name in names)
    rank = len(image)
    return [
        (image[d] + pads[d] + pads[d + rank] - dilations[d] * (block[d] - 1) - 1) // strides[d] + 1
        for d in range(rank)
    ]


def _infer(types: Sequence[TensorType | None], attrs: Attrs) -> list[TensorType]:
    x = types[0]
    assert x is not None
    points, steps = prod(ints(attrs, "block")), _steps(attrs)
    if not 1 <= points <= _MOST_POINTS:
        raise ModelError(
            f"`col2im` of blocks of {points} points: at most {_MOST_POINTS} are supported"
        )
    if x.rank != 3 or x.shape[1] % points or min(steps) < 1 or x.shape[2] != prod(steps):
        raise ModelError(f"`col2im` of {x}: {points} points and {steps} blocks do not fit")
    return [TensorType(x.dtype, (x.shape[0], x.shape[1] // points, *ints(attrs, "image")))]


def _reference(inputs: Sequence[Any], attrs: Attrs) -> list[Array]:
    x = np.asarray(inputs[0])
    image, block = ints(attrs, "image"), ints(attrs, "block")
    strides, dilations, pads = (ints(attrs, n) for n in ("strides", "dilations", "pads"))
    steps = _steps(attrs)
    n, c = x.shape[0], x.shape[1] // prod(block)
    blocks = x.reshape(n, c, *block, *steps)
    y = np.zeros((n, c, *image), np.float64 if x.dtype.kind == "f" else x.dtype)
    for point in product(*map(range, block)):
        for at in product(*map(range, steps)):
            o = [a * s + k * d - p for a, s, k, d, p in zip(at, strides, point, dilations, pads)]  # noqa: B905
            if all(0 <= i < size for i, size in zip(o, image, strict=True)):
                y[(slice(None), slice(None), *o)] += blocks[(slice(None), slice(None), *point, *at)]
    return [y.astype(x.dtype)]


def _compute(
    x: Sequence[Reader | None],
    index: tuple[Ix, ...],
    attrs: Attrs,
    out: TensorType,
    k: KernelBuilder,
) -> Expr:
    data = x[0]
    assert data is not None
    n, c, *place = index
    block, strides = ints(attrs, "block"), ints(attrs, "strides")
    dilations, pads, steps = ints(attrs, "dilations"), ints(attrs, "pads"), _steps(attrs)
    total: Expr = const(0, out.dtype)
    for number, point in enumerate(product(*map(range, block))):
        inside: Expr | None = None
        flat = Ix(0)
        for d, o in enumerate(place):
            lifted = o + (
                pads[d] - point[d] * dilations[d]
            )  # is l * stride, if there is such a block
            shift = strides[d] * block[d] * dilations[d]  # keeps the division's operand positive
            step = (lifted + shift) // strides[d] - shift // strides[d]
            fits = _all(
                None if strides[d] == 1 else _is(lifted - step * strides[d], 0),
                binary("ge", from_index(step, I64), const(0, I64)),
                binary("lt", from_index(step, I64), const(steps[d], I64)),
            )
            inside = fits if inside is None else binary("and", inside, fits)
            flat = flat * steps[d] + step
        assert inside is not None
        at = k.index(from_index(flat, I64), data.shape[2], wrap=False)
        value = data(n, c * prod(block) + number, at)
        total = add(total, select(inside, value, const(0, out.dtype)))
    return total


def _is(i: Ix, value: int) -> Expr:
    return binary("eq", from_index(i, I64), const(value, I64))


def _all(*conditions: Expr | None) -> Expr:
    found = [c for c in conditions if c is not None]
    out = found[0]
    for c in found[1:]:
        out = binary("and", out, c)
    return out


def _import(node: ImportNode) -> Sequence[str]:
    image = tuple(int(n) for n in node.need_const(1, "the image's shape").reshape(-1))
    block = tuple(int(n) for n in node.need_const(2, "the block's shape").reshape(-1))
    rank = len(image)
    attrs = {
        "image": image,
        "block": block,
        "strides": tuple(node.attr("strides", (1,) * rank)),
        "dilations": tuple(node.attr("dilations", (1,) * rank)),
        "pads": tuple(node.attr("pads", (0,) * (2 * rank))),
    }
    return node.add("col2im", [node.inputs[0]], attrs)


def _samples(rng: np.random.Generator) -> Iterator[Sample]:
    plain = {"strides": (1, 1), "dilations": (1, 1), "pads": (0, 0, 0, 0)}
    for image, block, changes in (
        ((5, 5), (1, 5), {}), ((5, 5), (2, 3), {"strides": (2, 1)}), ((6, 6), (2, 2), {"dilations": (1, 5)}),
        ((5, 5), (3, 2), {"pads": (1, 0, 2, 1), "strides": (2, 2)}),
    ):  # fmt: skip
        attrs: dict[str, Any] = {**plain, **changes, "image": image, "block": block}
        shape = (2, 3 * prod(block), prod(_steps(attrs)))
        yield Sample((rng.standard_normal(shape).astype(np.float32),), attrs)
    volume: dict[str, Any] = {
        "image": (3, 4, 5), "block": (1, 2, 3), "strides": (1,) * 3, "dilations": (1,) * 3, "pads": (0,) * 6,
    }  # fmt: skip
    yield Sample((rng.standard_normal((1, 12, 27)).astype(np.float32),), volume)


OPERATORS = [
    Operator(
        name="col2im",
        trait="injective",
        infer=_infer,
        reference=_reference,
        attrs={"image": tuple, "block": tuple, "strides": tuple, "dilations": tuple, "pads": tuple},
        compute=_compute,
        samples=_samples,
        depth=lambda types, attrs: prod(ints(attrs, "block")),
        onnx={"Col2Im": _import},
        doc="overlapping blocks of an image added up where they belong",
    )
]
