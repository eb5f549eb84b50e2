"""Plausible inputs for a model of which nothing is known but its graph.

In: input types, the graph, a seed. Out: one array per input.
Invariant: the same seed gives the same arrays; whole numbers are within what the model does with them.

Uniform noise is a poor test: a text detector that sees none answers 0.00002 everywhere, and then the
comparison measures how a reference rounds tiny numbers. So images get shapes, edges and strokes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tilewright.graph.ir import Array, Graph
from tilewright.runtime.model import TensorSpec

#: Operators that pass whole numbers on unchanged, so that their consumers tell the range too.
_CARRIERS = frozenset(
    {"cast", "copy", "reshape", "transpose", "expand", "slice", "concat", "gather", "pad", "tile"}
)


def make_inputs(
    specs: Sequence[TensorSpec],
    graph: Graph | None,
    seed: int,
    given: Mapping[str, Array] | None = None,
) -> list[Array]:
    """One array per input, `given` ones by name as they are; a number that is given fills its input.

    Floats: a picture in [0, 1] where the shape is that of one (four dims, one of them 1 to 4 channels),
    else normally distributed; bytes the same over their whole range. Masks are ones. Other whole numbers: rows of the table they pick from,
    classes of the one-hot code they become; without a graph (an artifact) 0 or 1, which every table has.
    """
    rng = np.random.default_rng(seed)
    out: list[Array] = []
    for t in specs:
        dtype = np.dtype(t.dtype)
        if given and t.name in given:
            out.append(_as_wanted(given[t.name], t, dtype))
        elif dtype.kind == "f":
            out.append(np.ascontiguousarray(_floats(rng, t.shape), dtype))
        elif "mask" in t.name.lower() or dtype.kind == "b":
            out.append(np.ones(t.shape, dtype))
        else:
            bound = _value_bound(graph, t.name) if graph is not None else None
            if bound is None and dtype.itemsize == 1:
                out.append(_bytes(rng, t.shape, dtype))
                continue
            usual = 128 if graph is not None else 2
            out.append(rng.integers(0, bound or usual, t.shape).astype(dtype))
    return out


def _as_wanted(value: Array, spec: TensorSpec, dtype: np.dtype[Any]) -> Array:
    """A given array as it is; a number in the type and shape that the input has."""
    return value if value.shape else np.full(spec.shape, value, dtype)


# ---------------------------------------------------------------- floats


def _bytes(rng: np.random.Generator, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    """What stands for floats in quantised models: pictures from the least to the largest byte, else
    most within a quarter of the range around its middle."""
    info, values = np.iinfo(dtype), _floats(rng, shape)
    picture = len(shape) == 4 and min(shape[1], shape[3]) <= 4
    steps = info.min + values * 255 if picture else (info.min + info.max + 1) / 2 + values * 32
    return np.ascontiguousarray(np.clip(np.rint(steps), info.min, info.max), dtype)


def _floats(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    if len(shape) == 4:
        n, a, b, c = shape
        if a <= 4:
            pictures = [_picture(rng, b, c, a).transpose(2, 0, 1) for _ in range(n)]
            return np.stack(pictures) if n else np.zeros(shape)
        if c <= 4:
            return np.stack([_picture(rng, a, b, c) for _ in range(n)]) if n else np.zeros(shape)
    return rng.standard_normal(shape)


def _picture(rng: np.random.Generator, height: int, width: int, channels: int) -> Array:
    """f64[height, width, channels] in [0, 1]: a gradient, rectangles, lines of strokes, sensor noise."""
    y = np.linspace(0, 1, height)[:, None, None]
    x = np.linspace(0, 1, width)[None, :, None]
    level, right, down = rng.random((3, channels))
    image = (level + right * x + down * y) / 2

    def number(low: int, high: int) -> int:
        """From `low` to `high`, at least `low`."""
        return int(rng.integers(low, max(low, high) + 1))

    for _ in range(24):
        h, w = number(1, height // 3), number(1, width // 3)
        top, left = number(0, height - h), number(0, width - w)
        image[top : top + h, left : left + w] = rng.random(channels)
    for _ in range(6):
        h = number(max(1, height // 32), height // 12)
        top = number(0, height - h)
        cells = rng.random((h // 4 + 1, width // 3 + 1)) < 0.5
        ink = np.repeat(np.repeat(cells, 4, axis=0), 3, axis=1)[:h, :width]
        ink[:, : number(0, width // 3)] = False
        image[top : top + h][ink] = rng.random(channels)
    picture: Array = np.clip(image + rng.normal(0, 0.02, image.shape), 0, 1)
    return picture


# ---------------------------------------------------------------- whole numbers


def whole_numbers(graph: Graph, t: TensorSpec) -> tuple[int, int]:
    """The least value and the number of values of an input that holds whole numbers, as `make_inputs`
    would choose them."""
    dtype = np.dtype(t.dtype)
    if "mask" in t.name.lower() or dtype.kind == "b":
        return 1, 1
    bound = _value_bound(graph, t.name) if dtype.kind in "iu" else None
    if bound is None and dtype.kind in "iu" and dtype.itemsize == 1:
        return int(np.iinfo(dtype).min), 256
    return 0, bound or 128


def _value_bound(graph: Graph, name: str) -> int | None:
    """One more than the largest sensible value of an integer input; None where nothing tells.

    A value that picks rows of a table must be below its number of rows; one that is compared with a
    constant is a class number of that constant's range.
    """
    consumers = graph.consumers()
    bounds: list[int] = []
    todo, seen = [name], set[str]()
    while todo:
        v = todo.pop()
        seen.add(v)
        for node in consumers.get(v, []):
            if node.op == "gather" and len(node.inputs) > 1 and node.inputs[1] == v:
                axis = node.attrs["axis"]
                assert isinstance(axis, int)
                bounds.append(graph.types[node.inputs[0]].shape[axis])
            elif node.op == "eq":
                constants = [graph.constants[i] for i in node.inputs if i in graph.constants]
                bounds += [int(c.max()) + 1 for c in constants if c.size > 1]
            elif node.op in _CARRIERS or (node.op == "where" and v in node.inputs[1:]):
                todo += [o for o in node.outputs if o not in seen]
    return max(1, min(bounds)) if bounds else None
