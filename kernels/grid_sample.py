"""An image at positions that a second tensor gives (Jaderberg et al., 2015).

y[n, c, o..] = x[n, c, ..] at the position grid[n, o.., :], whose last coordinate comes first. -1 and 1 are
the outermost points of the image (`corners`) or half a point outside of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from tilewright.core.index import Ix
from tilewright.core.sampling import sample
from tilewright.errors import ModelError
from tilewright.graph.ir import Array, Attrs, TensorType
from tilewright.loop.builder import KernelBuilder, Reader, add, cast, const, fma, mul, select
from tilewright.loop.ir import Expr
from tilewright.loop.sampling import taps
from tilewright.registry import ImportNode, Operator, Sample

_MODES = {"linear": "linear", "bilinear": "linear", "cubic": "cubic", "bicubic": "cubic"}
_PADDING = ("zeros", "border", "reflection")
#: Points that one value may be made of: 4 per dim for cubic.
_MOST_DIMS = 3


def _infer(types: Sequence[TensorType | None], attrs: Attrs) -> list[TensorType]:
    x, grid = types
    assert x is not None and grid is not None
    dims = x.rank - 2
    fits = 1 <= dims <= _MOST_DIMS and grid.rank == x.rank and grid.shape[-1] == dims
    if not fits or grid.shape[0] != x.shape[0] or not grid.dtype.is_float:
        raise ModelError(f"`grid_sample` of {x} at {grid}: a position per output point is wanted")
    if 0 in x.shape[2:] or attrs["padding"] not in _PADDING or not x.dtype.is_float:
        raise ModelError(f"`grid_sample` of {x} with padding {attrs['padding']} is not defined")
    return [TensorType(x.dtype, (*x.shape[:2], *grid.shape[1:-1]))]


def _scale(n: int, corners: bool) -> tuple[float, float]:
    """The position of coordinate g is g * factor + offset."""
    return ((n - 1) / 2, (n - 1) / 2) if corners else (n / 2, (n - 1) / 2)


def _reference(inputs: Sequence[Any], attrs: Attrs) -> list[Array]:
    x, grid = np.asarray(inputs[0]), np.asarray(inputs[1], np.float64)
    corners = bool(attrs["corners"])
    scales = np.array([_scale(n, corners) for n in x.shape[2:]])
    at = grid[..., ::-1] * scales[:, 0] + scales[:, 1]
    mode, padding = str(attrs["mode"]), str(attrs["padding"])
    y = [sample(x[n], at[n], mode, padding, corners) for n in range(x.shape[0])]
    return [np.asarray(y).astype(x.dtype)]


def _compute(
    x: Sequence[Reader | None],
    index: tuple[Ix, ...],
    attrs: Attrs,
    out: TensorType,
    k: KernelBuilder,
) -> Expr:
    data, grid = x
    assert data is not None and grid is not None
    n, c, *place = index
    extents = data.shape[2:]
    corners = bool(attrs["corners"])
    at: list[Expr] = []
    for d, extent in enumerate(extents):
        g = cast(grid(n, *place, len(extents) - 1 - d), out.dtype)
        factor, offset = _scale(extent, corners)
        at.append(fma(g, const(factor, out.dtype), const(offset, out.dtype)))
    total: Expr | None = None
    zero = const(0.0, out.dtype)
    for tap in taps(k, at, extents, str(attrs["mode"]), str(attrs["padding"]), corners):
        value = data(n, c, *tap.index)
        value = value if tap.inside is None else select(tap.inside, value, zero)
        value = value if tap.weight is None else mul(value, tap.weight)
        total = value if total is None else add(total, value)
    assert total is not None
    return total


def _import(node: ImportNode) -> Sequence[str]:
    given = str(node.attr("mode", "bilinear" if node.opset < 20 else "linear"))
    attrs = {
        "mode": _MODES.get(given, "nearest"),
        "padding": str(node.attr("padding_mode", "zeros")),
        "corners": bool(node.attr("align_corners", 0)),
    }
    return node.add("grid_sample", [node.inputs[0], node.inputs[1]], attrs)


def _samples(rng: np.random.Generator) -> Iterator[Sample]:
    x = rng.standard_normal((2, 3, 4, 5)).astype(np.float32)
    grid = rng.uniform(-1.4, 1.4, (2, 3, 6, 2)).astype(np.float32)
    for mode in ("nearest", "linear", "cubic"):
        for padding in _PADDING:
            for corners in (False, True):
                yield Sample((x, grid), {"mode": mode, "padding": padding, "corners": corners})
    volume = rng.standard_normal((1, 2, 3, 4, 2)).astype(np.float32)
    places = rng.uniform(-1.2, 1.2, (1, 2, 2, 3, 3)).astype(np.float32)
    for mode in ("nearest", "linear"):
        yield Sample((volume, places), {"mode": mode, "padding": "zeros", "corners": False})
    yield Sample((x[:, :, :1], grid), {"mode": "linear", "padding": "reflection", "corners": True})


OPERATORS = [
    Operator(
        name="grid_sample",
        trait="injective",
        infer=_infer,
        reference=_reference,
        attrs={"mode": str, "padding": str, "corners": bool},
        compute=_compute,
        samples=_samples,
        depth=lambda types, attrs: 64,
        onnx={"GridSample": _import},
        doc="values of an image between its points, at positions that are computed",
    )
]
