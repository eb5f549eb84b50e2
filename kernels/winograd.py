"""Winograd convolution: stride 1 in fewer multiplications, as three operators.

    V[p, t, c] = (B' d B)[p]      d: the a x b pixels that tile t of m x n outputs reads
    M[p]       = V[p] U[p]        a `matmul` for each of the p = a b points; U = G g G'
    y          = A' M A           m x n pixels of each tile

Along a dim with r taps m outputs read a = m + r - 1 pixels (`core.toom`); a dim with one tap has tiles of one
pixel. 3 x 3: F(2 x 2) needs 2.25 times fewer multiplications than the direct form, F(4 x 4) 4 times; 1 x 3: 1.5 and
2 times; 5 x 5 by F(2 x 2): 2.8 times. U is larger than the weights, 1.8 and 4 times for 3 x 3, and rounding errors
grow. So it is a variant of `conv2d`: chosen where a log says that it was faster, else where the cost model says that
it will be (`schedule.templates.ways`), and only where these weights stay accurate (`LIMIT`).
Each group has points of its own, [p g, t, c]. `--no-winograd` turns all of it off.
Lavin & Gray, "Fast Algorithms for Convolutional Neural Networks" (2015).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any

import numpy as np

from tilewright.core.attributes import integer, ints
from tilewright.core.dtypes import F32
from tilewright.core.index import Ix
from tilewright.core.toom import Matrix, short_convolution
from tilewright.core.window import window_of
from tilewright.errors import ModelError
from tilewright.graph.ir import Array, Attrs, AttrValue, Graph, Node, TensorType
from tilewright.loop.bilinear import forward_2d, inverse_2d
from tilewright.loop.builder import KernelBuilder, Reader, add
from tilewright.loop.ir import Kernel
from tilewright.registry import LayoutWish, Operator, Sample
from tilewright.schedule.target import Target
from tilewright.schedule.templates import injective, injective_space
from tilewright.schedule.templates.ways import Convolution, winograd_cycles
from tilewright.schedule.trace import Trace

#: Largest rounding error of a layer, of its largest result, with which Winograd may compute it. (One in 1e5 is usual,
#: the direct form has about one in 1e6.)
LIMIT = 1e-4
#: Points per dim at most: more need 1/2 and 8 as coefficients, and lose digits.
MOST_POINTS = 6


@dataclass(frozen=True, slots=True)
class _Geometry:
    """Per dim: outputs of a tile, pixels it reads, tiles; the size of the result; groups."""

    tile: tuple[int, ...]
    reads: tuple[int, ...]
    tiles: tuple[int, ...]
    size: tuple[int, ...]
    group: int

    @property
    def points(self) -> int:
        return self.reads[0] * self.reads[1]

    def matrices(self, what: str) -> tuple[Matrix, Matrix]:
        """`data`, `filter` or `output` of both dims."""
        taps = [a - m + 1 for a, m in zip(self.reads, self.tile, strict=True)]
        found = [short_convolution(m, r) for m, r in zip(self.tile, taps, strict=True)]
        return getattr(found[0], what), getattr(found[1], what)


def _geometry(attrs: Attrs) -> _Geometry:
    tile, taps, size = ints(attrs, "tile"), ints(attrs, "taps"), ints(attrs, "size")
    return _Geometry(
        tile,
        tuple(m + r - 1 for m, r in zip(tile, taps, strict=True)),
        tuple(-(-n // m) for n, m in zip(size, tile, strict=True)),
        size,
        integer(attrs, "group"),
    )


# ---------------------------------------------------------------- input transform


def _points_shape(geo: _Geometry, batch: int, channels: int) -> tuple[int, ...]:
    """Shape of V (or M), [p g, t, c]."""
    tiles = batch * geo.tiles[0] * geo.tiles[1]
    return geo.points * geo.group, tiles, channels // geo.group


def _input_infer(types: Sequence[TensorType | None], attrs: Attrs) -> list[TensorType]:
    x = types[0]
    assert x is not None
    geo = _geometry(attrs)
    if x.rank != 4 or x.dtype is not F32 or x.shape[1] % geo.group:
        raise ModelError(
            f"`winograd_input` of {x} in {geo.group} groups: an f32 tensor of rank 4 is wanted"
        )
    return [TensorType(F32, _points_shape(geo, x.shape[0], x.shape[1]))]


def _input_reference(inputs: Sequence[Any], attrs: Attrs) -> list[Array]:
    x = np.asarray(inputs[0], np.float64)
    geo = _geometry(attrs)
    before, after = _border(x.shape[2:], attrs)
    padded = np.pad(x, ((0, 0), (0, 0), (before[0], after[0]), (before[1], after[1])))
    windows = np.lib.stride_tricks.sliding_window_view(padded, geo.reads, (2, 3))
    windows = windows[:, :, :: geo.tile[0], :: geo.tile[1]][:, :, : geo.tiles[0], : geo.tiles[1]]
    down, across = map(np.asarray, geo.matrices("data"))
    v = np.einsum("ia,ncyxab,jb->ijnyxc", down, windows, across)
    v = v.reshape(geo.points, -1, geo.group, x.shape[1] // geo.group).swapaxes(1, 2)
    return [v.reshape(_points_shape(geo, x.shape[0], x.shape[1])).astype(np.float32)]


def _border(size: Sequence[int], attrs: Attrs) -> tuple[tuple[int, int], tuple[int, int]]:
    """Elements read before and after each spatial dim of an image of `size`."""
    geo = _geometry(attrs)
    before = ints(attrs, "pads")[:2]
    after = [(geo.tiles[i] - 1) * geo.tile[i] + geo.reads[i] - before[i] - size[i] for i in (0, 1)]
    return (before[0], before[1]), (max(after[0], 0), max(after[1], 0))


def _input_lower(k: KernelBuilder, attrs: Attrs) -> None:
    x = k.inputs[0]
    assert x is not None
    geo = _geometry(attrs)
    top, left = ints(attrs, "pads")[:2]
    (a, b), (th, tw) = geo.reads, geo.tiles
    share = x.shape[1] // geo.group
    with (
        k.loop("n", x.shape[0]) as n,
        k.loop("ty", th) as ty,
        k.loop("tx", tw) as tx,
        k.loop("g", geo.group) as g,
        k.loop("c", share) as c,
    ):
        y0, x0 = ty * geo.tile[0] - top, tx * geo.tile[1] - left
        d = [[k.let("d", x(n, g * share + c, y0 + i, x0 + j)) for j in range(b)] for i in range(a)]
        v = forward_2d(k, d, *geo.matrices("data"))
        t = (n * th + ty) * tw + tx
        for i, j in product(range(a), range(b)):
            k.emit((g + (i * b + j) * geo.group, t, c), v[i][j])


def _input_wishes(types: Sequence[TensorType | None], attrs: Attrs) -> LayoutWish:
    """Channels last, with a border for the padding and for the overhang of the last tiles."""
    x = types[0]
    assert x is not None
    before, after = _border(x.shape[2:], attrs)
    halo = ((0, 0), (0, 0), (before[0], after[0]), (before[1], after[1]))
    return LayoutWish(orders={0: (0, 2, 3, 1)}, halos={0: halo})


# ---------------------------------------------------------------- output transform


def _output_infer(types: Sequence[TensorType | None], attrs: Attrs) -> list[TensorType]:
    m, bias = (*types, None)[:2]
    assert m is not None
    geo = _geometry(attrs)
    each = geo.tiles[0] * geo.tiles[1]
    fits = m.rank == 3 and m.shape[0] == geo.points * geo.group and m.dtype is F32
    if not fits or m.shape[1] % each:
        raise ModelError(f"`winograd_output` of {m}: the shape does not fit {geo.size}")
    channels = m.shape[-1] * geo.group
    if bias is not None and bias != TensorType(F32, (channels,)):
        raise ModelError(f"`winograd_output`: bias {bias} is not f32[{channels}]")
    return [TensorType(F32, (m.shape[-2] // each, channels, *geo.size))]


def _output_reference(inputs: Sequence[Any], attrs: Attrs) -> list[Array]:
    m, bias = (*inputs, None)[:2]
    geo = _geometry(attrs)
    points = np.asarray(m, np.float64).reshape(*geo.reads, geo.group, -1, *geo.tiles, m.shape[-1])
    down, across = map(np.asarray, geo.matrices("output"))
    y = np.einsum("ia,abgnyxk,jb->ngkyixj", down, points, across)
    y = y.reshape(y.shape[0], -1, geo.tiles[0] * geo.tile[0], geo.tiles[1] * geo.tile[1])
    y = y[:, :, : geo.size[0], : geo.size[1]]
    return [(y if bias is None else y + bias.reshape(1, -1, 1, 1)).astype(np.float32)]


def _output_lower(k: KernelBuilder, attrs: Attrs) -> None:
    """One nest for the whole tiles, others for those cut by the lower and right edges."""
    m, bias = (*k.inputs, None)[:2]
    assert m is not None
    geo = _geometry(attrs)
    th, tw = geo.tiles
    for y0, rows, tall in _spans(geo.size[0], geo.tile[0]):
        for x0, cols, wide in _spans(geo.size[1], geo.tile[1]):
            with (
                k.loop("n", k.out_shape[0]) as n,
                k.loop("ty", rows) as ty,
                k.loop("tx", cols) as tx,
                k.loop("g", geo.group) as g,
                k.loop("c", m.shape[-1]) as c,
            ):
                t = (n * th + ty + y0) * tw + tx + x0
                at = (
                    n, g * m.shape[-1] + c, (ty + y0) * geo.tile[0], (tx + x0) * geo.tile[1],
                )  # fmt: skip
                _output_tile(k, m, bias, geo, (g, t, c), at, (tall, wide))


def _spans(size: int, m: int) -> list[tuple[int, int, int]]:
    """(first tile, tiles, outputs per tile) of the whole tiles and of the one that is cut."""
    whole, rest = divmod(size, m)
    return [s for s in ((0, whole, m), (whole, 1 if rest else 0, rest)) if s[1]]


def _output_tile(
    k: KernelBuilder,
    m: Reader,
    bias: Reader | None,
    geo: _Geometry,
    where: tuple[Ix, Ix, Ix],
    at: tuple[Ix, Ix, Ix, Ix],
    keep: tuple[int, int],
) -> None:
    (n, c, y, x), (g, t, inside) = at, where
    a, b = geo.reads
    points = [
        [k.let("m", m(g + (i * b + j) * geo.group, t, inside)) for j in range(b)] for i in range(a)
    ]
    out = inverse_2d(k, points, *geo.matrices("output"))
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
    """Sums of at most a b products with coefficients up to 8."""
    return 64 * max(ints(attrs, "tile"))


# ---------------------------------------------------------------- the variants of conv2d


def _variant_geometry(graph: Graph, node: Node, m: int) -> _Geometry | None:
    """Tiles of m outputs along each dim with several taps; None for a convolution that has no such form."""
    x, w = graph.types[node.inputs[0]], graph.types[node.inputs[1]]
    attrs = node.attrs
    taps = w.shape[2:]
    if node.inputs[1] not in graph.constants or x.dtype is not F32 or w.dtype is not F32:
        return None
    if ints(attrs, "strides") != (1, 1) or ints(attrs, "dilations") != (1, 1) or max(taps) == 1:
        return None
    tile = tuple(m if r > 1 else 1 for r in taps)
    reads = tuple(n + r - 1 for n, r in zip(tile, taps, strict=True))
    if max(reads) > MOST_POINTS:
        return None
    size = window_of(attrs, taps).output(x.shape[2:])
    tiles = tuple(-(-n // t) for n, t in zip(size, tile, strict=True))
    return _Geometry(tile, reads, tiles, tuple(size), integer(attrs, "group"))


def _rewrite(graph: Graph, node: Node, m: int) -> list[Node] | None:
    """The three nodes that replace a convolution of stride 1; None where it is another one, or where
    these weights would lose too many digits."""
    geo = _variant_geometry(graph, node, m)
    if geo is None:
        return None
    x, w = graph.types[node.inputs[0]], graph.types[node.inputs[1]]
    weights = graph.constants[node.inputs[1]]
    u = _points_of(weights, geo)
    if _rounding(weights, u, geo) > LIMIT:
        return None
    attrs: dict[str, AttrValue] = {
        "tile": geo.tile, "taps": w.shape[2:], "size": geo.size, "group": geo.group,
    }  # fmt: skip
    transform = {**attrs, "pads": ints(node.attrs, "pads")}
    points, sums = graph.fresh(f"{node.name}.points"), graph.fresh(f"{node.name}.product")
    filters = graph.add_constant(f"{node.inputs[1]}.winograd{m}", u)
    (graph.types[points],) = _input_infer([x], transform)
    graph.types[sums] = TensorType(F32, _points_shape(geo, x.shape[0], w.shape[0]))
    last = (sums, *node.inputs[2:3])
    return [
        Node(f"{node.name}/input", "winograd_input", node.inputs[:1], (points,), transform),
        Node(f"{node.name}/product", "matmul", (points, filters), (sums,)),
        Node(node.name, "winograd_output", last, node.outputs, attrs),
    ]


def _points_of(weights: Array, geo: _Geometry) -> Array:
    """U = G g G' as [p g, ci, co]."""
    both = np.kron(*map(np.asarray, geo.matrices("filter")))
    co, ci = weights.shape[:2]
    g = weights.reshape(geo.group, co // geo.group, ci, -1).transpose(3, 0, 2, 1)
    u = both @ g.astype(np.float64, order="C").reshape(g.shape[0], -1)
    return u.reshape(geo.points * geo.group, ci, co // geo.group).astype(np.float32)


def _rounding(weights: Array, u: Array, geo: _Geometry) -> float:
    """Error of f32 arithmetic in this form on normally distributed data, of the largest result."""
    few, outputs = 24, 32  # tiles and channels that are tried
    ci, co = u.shape[-2], min(u.shape[-1], outputs)
    rng = np.random.default_rng(0)
    d = rng.standard_normal((few, ci, *geo.reads))
    data = [np.asarray(m, np.float32) for m in geo.matrices("data")]
    back = [np.asarray(m, np.float32) for m in geo.matrices("output")]
    v = data[0] @ d.astype(np.float32) @ data[1].T
    first = u.reshape(geo.points, -1, ci, u.shape[-1])[:, 0, :, :co]  # one group stands for all
    sums = v.reshape(few, ci, geo.points).transpose(2, 0, 1) @ first
    got = back[0] @ sums.transpose(1, 2, 0).reshape(few, co, *geo.reads) @ back[1].T
    windows = np.lib.stride_tricks.sliding_window_view(d, weights.shape[2:], (2, 3))
    want = np.einsum("tcyxab,ocab->toyx", windows, weights[:co].astype(np.float64), optimize=True)
    largest = float(np.abs(want).max())
    return float(np.abs(got - want).max()) / largest if largest else 0.0


def _cost(graph: Graph, node: Node, target: Target, m: int) -> float:
    """Cycles that this is expected to take."""
    geo = _variant_geometry(graph, node, m)
    if geo is None or target.family != "simd":
        return math.inf
    x, w = graph.types[node.inputs[0]], graph.types[node.inputs[1]]
    conv = Convolution.of(x.shape, w.shape, geo.size, geo.group)
    return winograd_cycles(conv, geo.tile, target)


_TILES = {"winograd2": 2, "winograd4": 4}

#: Other ways to compute an operator, which the tuner may choose: operator -> name -> rewrite.
VARIANTS = {"conv2d": {name: partial(_rewrite, m=m) for name, m in _TILES.items()}}

#: What they cost where no log knows: operator -> name -> (graph, node, target) -> cycles.
COSTS = {"conv2d": {name: partial(_cost, m=m) for name, m in _TILES.items()}}


def _samples(rng: np.random.Generator) -> Iterator[Sample]:
    for tile, taps, h, w, c, pads, group in (
        ((2, 2), (3, 3), 8, 8, 16, (1, 1, 1, 1), 1),
        ((4, 4), (3, 3), 8, 8, 16, (1, 1, 1, 1), 1),
        ((2, 2), (3, 3), 7, 9, 5, (0, 1, 1, 0), 1),
        ((4, 4), (3, 3), 7, 9, 6, (0, 1, 1, 0), 2),
        ((2, 2), (5, 5), 7, 9, 5, (2, 2, 2, 2), 1),
        ((1, 4), (1, 3), 3, 9, 8, (0, 0, 0, 0), 1),
        ((4, 1), (3, 1), 4, 4, 1, (0, 0, 0, 0), 1),
    ):
        size = (h + pads[0] + pads[2] - taps[0] + 1, w + pads[1] + pads[3] - taps[1] + 1)
        x = rng.standard_normal((2, c, h, w)).astype(np.float32)
        attrs = {"tile": tile, "taps": taps, "size": size, "pads": pads, "group": group}
        yield Sample((x,), attrs)


def _output_samples(rng: np.random.Generator) -> Iterator[Sample]:
    for tile, taps, size, c, biased, group in (
        ((2, 2), (3, 3), (8, 8), 16, True, 1),
        ((4, 4), (3, 3), (8, 8), 16, True, 1),
        ((2, 2), (3, 3), (7, 9), 5, False, 1),
        ((4, 4), (3, 3), (7, 9), 5, False, 2),
        ((2, 2), (3, 3), (1, 3), 3, True, 2),
        ((2, 2), (5, 5), (4, 3), 3, True, 1),
        ((1, 4), (1, 3), (3, 9), 16, True, 1),
    ):
        attrs = {"tile": tile, "taps": taps, "size": size, "group": group}
        geo = _geometry(attrs)
        shape = _points_shape(geo, 2, c * group)
        bias = (rng.standard_normal(c * group).astype(np.float32),) if biased else ()
        yield Sample((rng.standard_normal(shape).astype(np.float32), *bias), attrs)


OPERATORS = [
    Operator(
        name="winograd_input",
        trait="opaque",
        infer=_input_infer,
        reference=_input_reference,
        attrs={"tile": tuple, "taps": tuple, "size": tuple, "pads": tuple, "group": int},
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
        attrs={"tile": tuple, "taps": tuple, "size": tuple, "group": int},
        lower=_output_lower,
        schedule=_schedule,
        space=injective_space,
        wishes=_output_wishes,
        samples=_output_samples,
        depth=_depth,
        doc="points back to pixels: A' M A (+ bias)",
    ),
]
