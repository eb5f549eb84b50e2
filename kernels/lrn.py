"""Local response normalisation across channels (Krizhevsky et al., 2012):

y[n, c, h, w] = x[n, c, h, w] / (bias + alpha / size * sum of x[n, c', h, w]^2) ^ beta
    over c' from c - (size-1)//2 to c + size//2. Channels that do not exist read zeros from the
    border that the layout pass provides.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import prod
from typing import Any

import numpy as np

from tilewright.core.index import Ix
from tilewright.errors import ModelError
from tilewright.graph.ir import Array, Attrs, TensorType
from tilewright.loop.builder import KernelBuilder, Reader, add, binary, const, div, fma, mul, unary
from tilewright.loop.ir import Expr
from tilewright.registry import ImportNode, LayoutWish, Operator, Sample

#: The window is written out tap by tap, so it must be small (5 is what networks use).
_MOST_CHANNELS = 64


def _number(attrs: Attrs, name: str) -> float:
    value = attrs[name]
    assert isinstance(value, int | float)
    return float(value)


def _infer(types: Sequence[TensorType | None], attrs: Attrs) -> list[TensorType]:
    x = types[0]
    assert x is not None
    if x.rank != 4 or not x.dtype.is_float or not 1 <= _number(attrs, "size") <= _MOST_CHANNELS:
        raise ModelError(
            f"`lrn` of {x} over {attrs['size']} channels: a float tensor of rank 4 and 1 to "
            f"{_MOST_CHANNELS} channels are wanted"
        )
    return [x]


def _reach(attrs: Attrs) -> tuple[int, int]:
    """Channels before and after the centre of the window."""
    size = int(_number(attrs, "size"))
    return (size - 1) // 2, size - 1 - (size - 1) // 2


def _reference(inputs: Sequence[Any], attrs: Attrs) -> list[Array]:
    x = np.asarray(inputs[0], np.float64)
    before, after = _reach(attrs)
    squares = np.pad(x * x, ((0, 0), (before, after), (0, 0), (0, 0)))
    total = sum(squares[:, i : i + x.shape[1]] for i in range(before + after + 1))
    base = _number(attrs, "bias") + _number(attrs, "alpha") / _number(attrs, "size") * total
    return [(x / base ** _number(attrs, "beta")).astype(np.asarray(inputs[0]).dtype)]


def _compute(
    x: Sequence[Reader | None],
    index: tuple[Ix, ...],
    attrs: Attrs,
    out: TensorType,
    k: KernelBuilder,
) -> Expr:
    """The border of x along channels holds zeros, so the window needs no test for its ends."""
    data = x[0]
    assert data is not None
    n, c, h, w = index
    before, after = _reach(attrs)
    total: Expr = const(0.0, out.dtype)
    for shift in range(-before, after + 1):
        v = data(n, c + shift, h, w)
        total = fma(v, v, total)
    scale = _number(attrs, "alpha") / _number(attrs, "size")
    base = k.let(
        "base", add(mul(total, const(scale, out.dtype)), const(_number(attrs, "bias"), out.dtype))
    )
    return div(data(n, c, h, w), _power(base, _number(attrs, "beta")))


def _power(base: Expr, beta: float) -> Expr:
    """base ** beta; quarters need only square roots."""
    if beta == 0.75:
        root = unary("sqrt", base)
        return mul(root, unary("sqrt", root))
    if beta == 0.5:
        return unary("sqrt", base)
    if beta == 1.0:
        return base
    return binary("pow", base, const(beta, base.dtype))


def _wishes(types: Sequence[TensorType | None], attrs: Attrs) -> LayoutWish:
    halo = ((0, 0), _reach(attrs), (0, 0), (0, 0))
    return LayoutWish(orders={0: (0, 2, 3, 1)}, halos={0: halo}, out_order=(0, 2, 3, 1))


def _flops(types: Sequence[TensorType | None], attrs: Attrs) -> int:
    assert types[0] is not None
    return types[0].size * (2 * int(_number(attrs, "size")) + 6)


def _depth(types: Sequence[TensorType | None], attrs: Attrs) -> int:
    return int(_number(attrs, "size"))


def _import(node: ImportNode) -> Sequence[str]:
    """LRN of any rank from 2 on: what follows the channels becomes two dims."""
    x, value = node.type(0), node.inputs[0]
    if x.rank < 2 or node.attr("size") is None:
        raise node.fail(f"LRN of {x}: a size and a dim of channels are wanted")
    attrs = {
        "size": int(node.attr("size")),
        "alpha": float(node.attr("alpha", 1e-4)),
        "beta": float(node.attr("beta", 0.75)),
        "bias": float(node.attr("bias", 1.0)),
    }
    if x.rank == 4:
        return node.add("lrn", [value], attrs)
    flat = (*x.shape[:2], prod(x.shape[2:-1]), prod(x.shape[max(2, x.rank - 1) :]))
    (value,) = node.add("reshape", [value], {"shape": flat})
    (y,) = node.add("lrn", [value], attrs)
    return node.add("reshape", [y], {"shape": x.shape})


def _samples(rng: np.random.Generator) -> Iterator[Sample]:
    for size, beta in ((5, 0.75), (4, 0.6)):
        attrs = {"size": size, "alpha": 0.1, "beta": beta, "bias": 2.0}
        yield Sample((rng.standard_normal((1, 17, 3, 4)).astype(np.float32),), attrs)


OPERATORS = [
    Operator(
        name="lrn",
        trait="injective",
        infer=_infer,
        reference=_reference,
        attrs={"size": int, "alpha": (int, float), "beta": (int, float), "bias": (int, float)},
        compute=_compute,
        wishes=_wishes,
        samples=_samples,
        flops=_flops,
        depth=_depth,
        onnx={"LRN": _import},
        doc="normalisation by the squares of neighbouring channels",
    )
]
