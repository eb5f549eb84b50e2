"""Winograd convolution: 3 x 3 with stride 1 in fewer multiplications, as three operators.

    V[p, t, c] = (B' d B)[p]      d: the (m + 2)^2 pixels that tile t of m^2 outputs reads
    M[p]       = V[p] U[p]        a `matmul` for each of the p = (m + 2)^2 points; U = G g G'
    y          = A' M A           m^2 pixels of each tile

F(2 x 2) needs 2.25 times fewer multiplications than the direct form, F(4 x 4) 4 times, and more memory:
U is 1.8 and 4 times as large as the weights. Rounding errors grow a few times over, which `verify`
measures. Whether it pays depends on the device, so it is a variant that the tuner picks by measuring.
Lavin & Gray, "Fast Algorithms for Convolutional Neural Networks" (2015).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from tilewright.core.attributes import integer, ints
from tilewright.core.dtypes import F32
from tilewright.core.index import Ix
from tilewright.core.window import window_of
from tilewright.errors import ModelError
from tilewright.graph.ir import Array, Attrs, AttrValue, Graph, Node, TensorType
from tilewright.loop.builder import KernelBuilder, Reader, add, const, fma, mul, sub
from tilewright.loop.ir import Expr, Kernel
from tilewright.registry import LayoutWish, Operator, Sample
from tilewright.schedule.target import Target
from tilewright.schedule.templates import injective, injective_space
from tilewright.schedule.trace import Trace

Matrix = tuple[tuple[float, ...], ...]

#: Output tile -> B', G and A' for the points 0, 1, -1, (2, -2,) infinity.
_INPUT: dict[int, Matrix] = {
    2: ((1, 0, -1, 0), (0, 1, 1, 0), (0, -1, 1, 0), (0, 1, 0, -1)),
    4: (
        (4, 0, -5, 0, 1, 0), (0, -4, -4, 1, 1, 0), (0, 4, -4, -1, 1, 0),
        (0, -2, -1, 2, 1, 0), (0, 2, -1, -2, 1, 0), (0, 4, 0, -5, 0, 1),
    ),
}  # fmt: skip
_FILTER: dict[int, Matrix] = {
    2: ((1, 0, 0), (1 / 2, 1 / 2, 1 / 2), (1 / 2, -1 / 2, 1 / 2), (0, 0, 1)),
    4: (
        (1 / 4, 0, 0), (-1 / 6, -1 / 6, -1 / 6), (-1 / 6, 1 / 6, -1 / 6),
        (1 / 24, 1 / 12, 1 / 6), (1 / 24, -1 / 12, 1 / 6), (0, 0, 1),
    ),
}  # fmt: skip
_OUTPUT: dict[int, Matrix] = {
    2: ((1, 1, 1, 0), (0, 1, -1, -1)),
    4: ((1, 1, 1, 1, 1, 0), (0, 1, -1, 2, -2, 0), (0, 1, 1, 4, 4, 0), (0, 1, -1, 8, -8, 1)),
}


# ---------------------------------------------------------------- arithmetic on expressions


def _combine(k: KernelBuilder, row: Sequence[float], values: Sequence[Expr]) -> Expr:
    """The sum of row[i] * values[i] with the fewest operations; coefficients 1 and -1 are free."""
    total: Expr | None = None
    terms = sorted(
        ((c, v) for c, v in zip(row, values, strict=True) if c),
        key=lambda t: (abs(t[0]) != 1, t[0] < 0),
    )
    for c, v in terms:
        if total is None:
            total = v if c == 1 else mul(const(c, F32), v)
        elif c == 1:
            total = add(total, v)
        elif c == -1:
            total = sub(total, v)
        else:
            total = fma(const(c, F32), v, total)
    assert total is not None
    return k.let("w", total) if len(terms) > 1 else total


def _transform(k: KernelBuilder, matrix: Matrix, values: Sequence[Expr]) -> list[Expr]:
    """matrix @ values. Rows for the points p and -p are the sum and difference of two shared parts."""
    out: list[Expr] = []
    i = 0
    while i < len(matrix):
        if i + 1 < len(matrix):
            even = [(a + b) / 2 for a, b in zip(matrix[i], matrix[i + 1], strict=True)]
            odd = [(a - b) / 2 for a, b in zip(matrix[i], matrix[i + 1], strict=True)]
            disjoint = not any(e and o for e, o in zip(even, odd, strict=True))
            if disjoint and any(even) and any(odd):
                e, o = _combine(k, even, values), _combine(k, odd, values)
                out += [k.let("w", add(e, o)), k.let("w", sub(e, o))]
                i += 2
                continue
        out.append(_combine(k, matrix[i], values))
        i += 1
    return out


def _inverse(k: KernelBuilder, matrix: Matrix, values: Sequence[Expr]) -> list[Expr]:
    """matrix @ values for A': columns of the points p and -p act on the sum and the difference."""
    columns = list(zip(*matrix, strict=True))
    parts: list[Expr] = [values[0]]
    weights: list[tuple[float, ...]] = [columns[0]]
    for i in range(1, len(columns) - 1, 2):
        plus, minus = columns[i], columns[i + 1]
        parts += [
            k.let("w", add(values[i], values[i + 1])),
            k.let("w", sub(values[i], values[i + 1])),
        ]
        weights.append(tuple((a + b) / 2 for a, b in zip(plus, minus, strict=True)))
        weights.append(tuple((a - b) / 2 for a, b in zip(plus, minus, strict=True)))
    parts.append(values[-1])
    weights.append(columns[-1])
    return [_combine(k, row, parts) for row in zip(*weights, strict=True)]


def _both_dims(
    k: KernelBuilder, rows: Sequence[Sequence[Expr]], matrix: Matrix, inverse: bool
) -> list[list[Expr]]:
    """matrix @ rows @ matrix'."""
    act = _inverse if inverse else _transform
    columns = [act(k, matrix, column) for column in zip(*rows, strict=True)]
    return [act(k, matrix, row) for row in zip(*columns, strict=True)]


# ---------------------------------------------------------------- input transform


def _geometry(attrs: Attrs) -> tuple[int, int, tuple[int, ...], tuple[int, ...]]:
    """(m, m + 2, tiles per dim, output size)."""
    m, size = integer(attrs, "tile"), ints(attrs, "size")
    return m, m + 2, tuple(-(-n // m) for n in size), size


def _input_infer(types: Sequence[TensorType | None], attrs: Attrs) -> list[TensorType]:
    x = types[0]
    assert x is not None
    if x.rank != 4 or x.dtype is not F32:
        raise ModelError(f"`winograd_input` of {x}: an f32 tensor of rank 4 is wanted")
    _, a, (th, tw), _ = _geometry(attrs)
    return [TensorType(F32, (a * a, x.shape[0] * th * tw, x.shape[1]))]


def _input_reference(inputs: Sequence[Any], attrs: Attrs) -> list[Array]:
    x = np.asarray(inputs[0], np.float64)
    m, a, (th, tw), _ = _geometry(attrs)
    before, after = _border(x.shape[2:], attrs)
    padded = np.pad(x, ((0, 0), (0, 0), (before[0], after[0]), (before[1], after[1])))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (a, a), (2, 3))[:, :, ::m, ::m]
    windows = windows[:, :, :th, :tw]
    b = np.asarray(_INPUT[m])
    v = np.einsum("ia,ncyxab,jb->ijnyxc", b, windows, b)
    return [v.reshape(a * a, -1, x.shape[1]).astype(np.float32)]


def _border(size: Sequence[int], attrs: Attrs) -> tuple[tuple[int, int], tuple[int, int]]:
    """Elements read before and after each spatial dim of an image of `size`."""
    m, _, tiles, _ = _geometry(attrs)
    before = ints(attrs, "pads")[:2]
    after = [tiles[i] * m + 2 - before[i] - size[i] for i in (0, 1)]
    return (before[0], before[1]), (max(after[0], 0), max(after[1], 0))


def _input_lower(k: KernelBuilder, attrs: Attrs) -> None:
    x = k.inputs[0]
    assert x is not None
    m, a, (th, tw), _ = _geometry(attrs)
    top, left = ints(attrs, "pads")[:2]
    with (
        k.loop("n", x.shape[0]) as n,
        k.loop("ty", th) as ty,
        k.loop("tx", tw) as tx,
        k.loop("c", x.shape[1]) as c,
    ):
        d = [
            [k.let("d", x(n, c, ty * m + (i - top), tx * m + (j - left))) for j in range(a)]
            for i in range(a)
        ]
        v = _both_dims(k, d, _INPUT[m], inverse=False)
        t = (n * th + ty) * tw + tx
        for i in range(a):
            for j in range(a):
                k.emit((Ix(i * a + j), t, c), v[i][j])


def _input_wishes(types: Sequence[TensorType | None], attrs: Attrs) -> LayoutWish:
    """Channels last, with a border for the padding and for the overhang of the last tiles."""
    x = types[0]
    assert x is not None
    before, after = _border(x.shape[2:], attrs)
    halo = ((0, 0), (0, 0), (before[0], after[0]), (before[1], after[1]))
    return LayoutWish(orders={0: (0, 2, 3, 1)}, halos={0: halo})


# ---------------------------------------------------------------- output transform


def _output_infer(types: Sequence[TensorType | None], attrs: Attrs) -> list[TensorType]:
    product, bias = (*types, None)[:2]
    assert product is not None
    _, a, (th, tw), size = _geometry(attrs)
    fits = product.rank == 3 and product.shape[0] == a * a and product.dtype is F32
    if not fits or product.shape[1] % (th * tw):
        raise ModelError(f"`winograd_output` of {product}: the shape does not fit {size}")
    if bias is not None and bias != TensorType(F32, (product.shape[2],)):
        raise ModelError(f"`winograd_output`: bias {bias} is not f32[{product.shape[2]}]")
    return [TensorType(F32, (product.shape[1] // (th * tw), product.shape[2], *size))]


def _output_reference(inputs: Sequence[Any], attrs: Attrs) -> list[Array]:
    product, bias = (*inputs, None)[:2]
    m, a, (th, tw), size = _geometry(attrs)
    points = np.asarray(product, np.float64).reshape(a, a, -1, th, tw, product.shape[2])
    inverse = np.asarray(_OUTPUT[m])
    y = np.einsum("ia,abnyxk,jb->nkyixj", inverse, points, inverse)
    y = y.reshape(*y.shape[:2], th * m, tw * m)[:, :, : size[0], : size[1]]
    return [(y if bias is None else y + bias.reshape(1, -1, 1, 1)).astype(np.float32)]


def _output_lower(k: KernelBuilder, attrs: Attrs) -> None:
    """One nest for the whole tiles, others for those cut by the lower and right edges."""
    product, bias = (*k.inputs, None)[:2]
    assert product is not None
    m, _, (th, tw), (height, width) = _geometry(attrs)
    for y0, rows, tall in _spans(height, m):
        for x0, cols, wide in _spans(width, m):
            with (
                k.loop("n", k.out_shape[0]) as n,
                k.loop("ty", rows) as ty,
                k.loop("tx", cols) as tx,
                k.loop("c", k.out_shape[1]) as c,
            ):
                t = (n * th + ty + y0) * tw + tx + x0
                at = (n, c, (ty + y0) * m, (tx + x0) * m)
                _output_tile(k, product, bias, m, t, at, (tall, wide))


def _spans(size: int, m: int) -> list[tuple[int, int, int]]:
    """(first tile, tiles, outputs per tile) of the whole tiles and of the one that is cut."""
    whole, rest = divmod(size, m)
    return [s for s in ((0, whole, m), (whole, 1 if rest else 0, rest)) if s[1]]


def _output_tile(
    k: KernelBuilder,
    product: Reader,
    bias: Reader | None,
    m: int,
    t: Ix,
    at: tuple[Ix, Ix, Ix, Ix],
    keep: tuple[int, int],
) -> None:
    n, c, y, x = at
    a = m + 2
    points = [[k.let("m", product(i * a + j, t, c)) for j in range(a)] for i in range(a)]
    out = _both_dims(k, points, _OUTPUT[m], inverse=True)
    shift = None if bias is None else k.let("b", bias(c))
    for i in range(keep[0]):
        for j in range(keep[1]):
            value = out[i][j] if shift is None else add(out[i][j], shift)
            k.emit((n, c, y + i, x + j), value)


def _output_wishes(types: Sequence[TensorType | None], attrs: Attrs) -> LayoutWish:
    return LayoutWish(out_order=(0, 2, 3, 1))


def _schedule(kernel: Kernel, target: Target) -> Trace:
    return injective(kernel, target)


def _depth(types: Sequence[TensorType | None], attrs: Attrs) -> int:
    """Sums of at most (m + 2)^2 products with coefficients up to 8."""
    return 64 * integer(attrs, "tile")


# ---------------------------------------------------------------- the variants of conv2d


def _rewrite(graph: Graph, node: Node, m: int) -> list[Node] | None:
    """The three nodes that replace a 3 x 3 convolution of stride 1; None where it is another one."""
    x, w = graph.types[node.inputs[0]], graph.types[node.inputs[1]]
    weights = graph.constants.get(node.inputs[1])
    attrs = node.attrs
    if weights is None or x.dtype is not F32 or w.shape[2:] != (3, 3) or attrs["group"] != 1:
        return None
    if ints(attrs, "strides") != (1, 1) or ints(attrs, "dilations") != (1, 1):
        return None
    size = window_of(attrs, (3, 3)).output(x.shape[2:])
    g = np.asarray(_FILTER[m])
    u = np.einsum("ia,ocab,jb->ijco", g, weights.astype(np.float64), g)
    u = u.reshape((m + 2) ** 2, w.shape[1], w.shape[0]).astype(np.float32)
    geometry: dict[str, AttrValue] = {"tile": m, "size": size}
    transform = {**geometry, "pads": ints(attrs, "pads")}
    points, product = graph.fresh(f"{node.name}.points"), graph.fresh(f"{node.name}.product")
    filters = graph.add_constant(f"{node.inputs[1]}.winograd{m}", u)
    (graph.types[points],) = _input_infer([x], transform)
    tiles = graph.types[points].shape[1]
    graph.types[product] = TensorType(F32, (u.shape[0], tiles, u.shape[2]))
    last = (product, *node.inputs[2:3])
    return [
        Node(f"{node.name}/input", "winograd_input", node.inputs[:1], (points,), transform),
        Node(f"{node.name}/product", "matmul", (points, filters), (product,)),
        Node(node.name, "winograd_output", last, node.outputs, geometry),
    ]


def _samples(rng: np.random.Generator) -> Iterator[Sample]:
    for m in (2, 4):
        for h, w, c, pads in (
            (8, 8, 16, (1, 1, 1, 1)),
            (7, 9, 5, (0, 1, 1, 0)),
            (4, 4, 1, (0, 0, 0, 0)),
        ):
            size = (h + pads[0] + pads[2] - 2, w + pads[1] + pads[3] - 2)
            x = rng.standard_normal((2, c, h, w)).astype(np.float32)
            yield Sample((x,), {"tile": m, "size": size, "pads": pads})


def _output_samples(rng: np.random.Generator) -> Iterator[Sample]:
    for m in (2, 4):
        for size, c, biased in (((8, 8), 16, True), ((7, 9), 5, False), ((1, 3), 3, True)):
            tiles = 2 * -(-size[0] // m) * -(-size[1] // m)
            product = rng.standard_normal(((m + 2) ** 2, tiles, c)).astype(np.float32)
            bias = (rng.standard_normal(c).astype(np.float32),) if biased else ()
            yield Sample((product, *bias), {"tile": m, "size": size})


OPERATORS = [
    Operator(
        name="winograd_input",
        trait="opaque",
        infer=_input_infer,
        reference=_input_reference,
        attrs={"tile": int, "size": tuple, "pads": tuple},
        lower=_input_lower,
        schedule=_schedule,
        space=injective_space,
        wishes=_input_wishes,
        samples=_samples,
        depth=_depth,
        doc="tiles of x as points: B' d B",
    ),
    Operator(
        name="winograd_output",
        trait="opaque",
        infer=_output_infer,
        reference=_output_reference,
        attrs={"tile": int, "size": tuple},
        lower=_output_lower,
        schedule=_schedule,
        space=injective_space,
        wishes=_output_wishes,
        samples=_output_samples,
        depth=_depth,
        doc="points back to pixels: A' M A (+ bias)",
    ),
]

#: Other ways to compute an operator, which the tuner may choose: operator -> name -> rewrite.
VARIANTS = {
    "conv2d": {
        "winograd2": lambda graph, node: _rewrite(graph, node, 2),
        "winograd4": lambda graph, node: _rewrite(graph, node, 4),
    }
}
