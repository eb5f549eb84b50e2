"""Operators that move elements and compute nothing: they serve floats, integers and quantised bytes alike."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from tilewright.frontend import limits
from tilewright.frontend.tflite.node import Importers, TfliteNode, one

# ---------------------------------------------------------------- views


def _reshape(node: TfliteNode) -> str:
    """The wanted shape is input 1 or an option; at most one dim of it is -1."""
    wanted = [int(n) for n in node.option("NewShape", ())]
    if node.has(1):
        wanted = node.need_ints(1, "the wanted shape")
    elif "NewShape" not in node.op.options:
        wanted = list(node.result().shape)
    return node.reshape(node.value(0), _complete(node, wanted, node.type(0).size))


def _complete(node: TfliteNode, wanted: Sequence[int], size: int) -> tuple[int, ...]:
    known = math.prod(n for n in wanted if n >= 0)
    open_dims = [d for d, n in enumerate(wanted) if n < 0]
    dims = list(wanted)
    if len(open_dims) == 1 and known:
        dims[open_dims[0]] = size // known
    if len(open_dims) > 1 or math.prod(dims) != size:
        raise node.fail(f"{node.type(0)} cannot be reshaped to {list(wanted)}: repair the model")
    return tuple(dims)


def _squeeze(node: TfliteNode) -> str:
    t = node.type(0)
    given = [node.axis(int(d), t.rank) for d in node.option("SqueezeDims", ())]
    drop = given or [d for d, n in enumerate(t.shape) if n == 1]
    if any(t.shape[d] != 1 for d in drop):
        raise node.fail(f"dims {drop} of {t} cannot be dropped: repair the model")
    return node.reshape(node.value(0), [n for d, n in enumerate(t.shape) if d not in drop])


def _expand_dims(node: TfliteNode) -> str:
    t = node.type(0)
    axis = node.axis(node.need_ints(1, "the axis")[0], t.rank + 1)
    return node.reshape(node.value(0), (*t.shape[:axis], 1, *t.shape[axis:]))


def _transpose(node: TfliteNode) -> str:
    rank = node.type(0).rank
    perm = tuple(node.axis(p, rank) for p in node.need_ints(1, "the permutation"))
    return node.add("transpose", node.value(0), perm=perm)


def sliced(
    node: TfliteNode, x: str, starts: Sequence[int], ends: Sequence[int], steps: Sequence[int]
) -> str:
    return node.add("slice", x, starts=tuple(starts), ends=tuple(ends), steps=tuple(steps))


def part(node: TfliteNode, x: str, axis: int, start: int, end: int) -> str:
    """Elements `start` .. `end` - 1 of one dim."""
    shape = node.type_of(x).shape
    starts, ends = [0] * len(shape), list(shape)
    starts[axis], ends[axis] = start, end
    return sliced(node, x, starts, ends, [1] * len(shape))


def _slice(node: TfliteNode) -> str:
    shape = node.type(0).shape
    begins, sizes = node.need_ints(1, "where it begins"), node.need_ints(2, "its size")
    if not len(begins) == len(sizes) == len(shape):
        raise node.fail(f"begins {begins} and sizes {sizes} do not fit {node.type(0)}: repair it")
    ends = [n if size < 0 else b + size for b, size, n in zip(begins, sizes, shape, strict=True)]
    return sliced(node, node.value(0), begins, ends, [1] * len(shape))


def _strided_slice(node: TfliteNode) -> str:
    """As in NumPy; masks say per entry: begin or end missing, ellipsis, new dim, dim to drop."""
    t = node.type(0)
    begins, ends, steps = (node.need_ints(i, "a bound of the slice") for i in (1, 2, 3))
    if not len(begins) == len(ends) == len(steps):
        raise node.fail("its bounds differ in number: repair the model")
    mask = {
        k: int(node.option(f"{k}Mask", 0))
        for k in ("Begin", "End", "Ellipsis", "NewAxis", "ShrinkAxis")
    }

    def said(name: str, i: int) -> bool:
        return bool(mask[name] >> i & 1)

    picks = [i for i in range(len(begins)) if not said("NewAxis", i) and not said("Ellipsis", i)]
    skipped = t.rank - len(picks)
    if skipped < 0 or bin(mask["Ellipsis"]).count("1") > 1:
        raise node.fail(f"{len(begins)} bounds do not fit {t}: repair the model")
    shape: list[int] = []
    bounds: list[tuple[int, int, int]] = []

    def keep(count: int) -> None:
        for n in t.shape[len(bounds) : len(bounds) + count]:
            bounds.append((0, n, 1))
            shape.append(n)

    for i in range(len(begins)):
        if said("Ellipsis", i):
            keep(skipped)
            skipped = 0
        elif said("NewAxis", i):
            shape.append(1)
        elif said("ShrinkAxis", i):
            n = t.shape[len(bounds)]
            at = begins[i] + n if begins[i] < 0 else begins[i]
            if not 0 <= at < n:
                raise node.fail(f"index {begins[i]} of dim {len(bounds)} of {t} is out of range")
            bounds.append((at, at + 1, 1))
        else:
            if steps[i] == 0:
                raise node.fail("a slice has a step of 0: repair the model")
            low = None if said("Begin", i) else begins[i]
            high = None if said("End", i) else ends[i]
            taken = range(*slice(low, high, steps[i]).indices(t.shape[len(bounds)]))
            bounds.append((taken.start, taken.stop, steps[i]))
            shape.append(len(taken))
    keep(t.rank - len(bounds))
    starts, stops, strides = zip(*bounds, strict=True) if bounds else ((), (), ())
    return node.reshape(sliced(node, node.value(0), starts, stops, strides), shape)


def _split(node: TfliteNode) -> Sequence[str]:
    """(axis, x) in equal parts."""
    t = node.type(1)
    axis, count = node.axis(node.need_ints(0, "the axis")[0], t.rank), len(node.op.outputs)
    if t.shape[axis] % count:
        raise node.fail(f"dim {axis} of {t} does not split into {count} parts: repair the model")
    size = t.shape[axis] // count
    return [part(node, node.value(1), axis, k * size, (k + 1) * size) for k in range(count)]


def _split_v(node: TfliteNode) -> Sequence[str]:
    """(x, sizes, axis); one size may be -1."""
    t = node.type(0)
    sizes = node.need_ints(1, "the sizes")
    axis = node.axis(node.need_ints(2, "the axis")[0], t.rank)
    rest = t.shape[axis] - sum(n for n in sizes if n >= 0)
    sizes = [rest if n < 0 else n for n in sizes]
    if sum(sizes) != t.shape[axis] or min(sizes, default=0) < 0:
        raise node.fail(f"sizes {sizes} do not make up dim {axis} of {t}: repair the model")
    bounds = [sum(sizes[:k]) for k in range(len(sizes) + 1)]
    return [part(node, node.value(0), axis, a, b) for a, b in pairwise(bounds)]


def _unpack(node: TfliteNode) -> Sequence[str]:
    t = node.type(0)
    axis = node.axis(int(node.option("Axis", 0)), t.rank)
    if t.shape[axis] != len(node.op.outputs):
        raise node.fail(f"dim {axis} of {t} is not {len(node.op.outputs)}: repair the model")
    shape = (*t.shape[:axis], *t.shape[axis + 1 :])
    rows = [part(node, node.value(0), axis, k, k + 1) for k in range(t.shape[axis])]
    return [node.reshape(r, shape) for r in rows]


def _reverse(node: TfliteNode) -> str:
    t = node.type(0)
    axes = {node.axis(a, t.rank) for a in node.need_ints(1, "the axes")}
    starts = [n - 1 if d in axes else 0 for d, n in enumerate(t.shape)]
    ends = [-1 if d in axes else n for d, n in enumerate(t.shape)]
    steps = [-1 if d in axes else 1 for d in range(t.rank)]
    return sliced(node, node.value(0), starts, ends, steps) if t.size else node.value(0)


# ---------------------------------------------------------------- joining and repeating


def joined(node: TfliteNode, parts: Sequence[str], axis: int) -> str:
    return node.add("concat", *parts, axis=axis) if len(parts) > 1 else parts[0]


def _concatenation(node: TfliteNode) -> str:
    axis = node.axis(int(node.option("Axis", 0)), node.type(0).rank)
    return node.activated(joined(node, [node.value(i) for i in range(len(node.inputs))], axis))


def _pack(node: TfliteNode) -> str:
    shape = node.type(0).shape
    axis = node.axis(int(node.option("Axis", 0)), len(shape) + 1)
    wide = (*shape[:axis], 1, *shape[axis:])
    parts = [node.reshape(node.value(i), wide) for i in range(len(node.inputs))]
    return joined(node, parts, axis)


def _tile(node: TfliteNode) -> str:
    repeats = tuple(node.need_ints(1, "the repeats"))
    return node.add("tile", node.value(0), repeats=repeats)


def _broadcast_to(node: TfliteNode) -> str:
    shape = limits.check_shape(node.need_ints(1, "the wanted shape"), f"node `{node.name}`")
    return node.add("expand", node.value(0), shape=shape)


def _broadcast_args(node: TfliteNode) -> str:
    a, b = node.need_ints(0, "a shape"), node.need_ints(1, "a shape")
    shape = np.broadcast_shapes(tuple(a), tuple(b))
    return node.constant(np.asarray(shape), "shape", node.result().dtype)


# ---------------------------------------------------------------- borders


def paddings(node: TfliteNode) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Input 1, [rank, 2]: elements before and after each dim."""
    amounts = node.need_ints(1, "the paddings")
    if len(amounts) != 2 * node.type(0).rank or min(amounts, default=0) < 0:
        raise node.fail(f"paddings {amounts} do not fit {node.type(0)}: repair the model")
    return tuple(amounts[::2]), tuple(amounts[1::2])


def padded(node: TfliteNode, value: float) -> str:
    before, after = paddings(node)
    attrs = {"before": before, "after": after, "mode": "constant", "value": value}
    return node.add("pad", node.value(0), **attrs)


def _pad(node: TfliteNode) -> str:
    """With 0, or what stands for 0 in a quantised tensor."""
    q = node.tensor(0).quantization
    integers = not node.type(0).dtype.is_float and q is not None
    return padded(node, int(q.zero[0]) if integers and q is not None else 0.0)


def _pad_with(node: TfliteNode) -> str:
    value = node.need_const(2, "the value of the border").reshape(-1)[0]
    return padded(node, value.item())


def _mirror_pad(node: TfliteNode) -> str:
    """REFLECT leaves the edge out, SYMMETRIC repeats it."""
    before, after = paddings(node)
    if int(node.option("Mode", 0)) == 0:
        attrs = {"before": before, "after": after, "mode": "reflect", "value": 0.0}
        return node.add("pad", node.value(0), **attrs)
    x = node.value(0)
    for d, (a, b) in enumerate(zip(before, after, strict=True)):
        n = node.type(0).shape[d]
        limits.check_constant([n + a + b], f"node `{node.name}`")
        if max(a, b) > n:
            raise node.fail(f"paddings {a}, {b} are wider than dim {d} of {node.type(0)}")
        order = [*reversed(range(a)), *range(n), *reversed(range(n - b, n))]
        if a or b:
            x = node.add("gather", x, node.constant(np.asarray(order, np.int32)), axis=d)
    return x


def _space_to_batch(node: TfliteNode) -> str:
    """(x, blocks, paddings): pixels of a block become batches."""
    t, blocks = node.type(0), node.need_ints(1, "the block")
    m = len(blocks)
    amounts = node.need_ints(2, "the paddings")
    if len(amounts) != 2 * m or t.rank <= m or min(blocks, default=0) < 1:
        raise node.fail(f"blocks {blocks} and paddings {amounts} do not fit {t}: repair the model")
    zero = node.tensor(0).quantization
    value = int(zero.zero[0]) if zero is not None and not t.dtype.is_float else 0.0
    rest = (0,) * (t.rank - m - 1)
    attrs = {
        "before": (0, *amounts[::2], *rest), "after": (0, *amounts[1::2], *rest),
        "mode": "constant", "value": value,
    }  # fmt: skip
    x = node.add("pad", node.value(0), **attrs)
    n, *size = node.type_of(x).shape
    if any(s % b for s, b in zip(size, blocks, strict=False)):
        raise node.fail(f"blocks {blocks} do not divide {size[:m]}: repair the model")
    cut = [v for s, b in zip(size[:m], blocks, strict=True) for v in (s // b, b)]
    x = node.reshape(x, (n, *cut, *size[m:]))
    inner, outer = [2 + 2 * i for i in range(m)], [1 + 2 * i for i in range(m)]
    tail = range(1 + 2 * m, 1 + 2 * m + len(size) - m)
    x = node.add("transpose", x, perm=(*inner, 0, *outer, *tail))
    grid = [s // b for s, b in zip(size[:m], blocks, strict=True)]
    return node.reshape(x, (n * math.prod(blocks), *grid, *size[m:]))


def _batch_to_space(node: TfliteNode) -> str:
    """(x, blocks, crops): the other way round."""
    t, blocks = node.type(0), node.need_ints(1, "the block")
    m, crops = len(blocks), node.need_ints(2, "the crops")
    count = math.prod(blocks)
    if len(crops) != 2 * m or t.rank <= m or count < 1 or t.shape[0] % count:
        raise node.fail(f"blocks {blocks} and crops {crops} do not fit {t}: repair the model")
    n, size = t.shape[0] // count, t.shape[1:]
    x = node.reshape(node.value(0), (*blocks, n, *size))
    order = [v for i in range(m) for v in (m + 1 + i, i)]
    x = node.add("transpose", x, perm=(m, *order, *range(2 * m + 1, m + 1 + len(size))))
    grid = [s * b for s, b in zip(size[:m], blocks, strict=True)]
    x = node.reshape(x, (n, *grid, *size[m:]))
    shape = node.type_of(x).shape
    starts = [0, *crops[::2], *[0] * (len(shape) - m - 1)]
    ends = [n, *(g - c for g, c in zip(grid, crops[1::2], strict=True)), *size[m:]]
    return sliced(node, x, starts, ends, [1] * len(shape))


BYTES: Importers = {
    "RESHAPE": one(_reshape),
    "SQUEEZE": one(_squeeze),
    "EXPAND_DIMS": one(_expand_dims),
    "TRANSPOSE": one(_transpose),
    "SLICE": one(_slice),
    "STRIDED_SLICE": one(_strided_slice),
    "SPLIT": _split,
    "SPLIT_V": _split_v,
    "UNPACK": _unpack,
    "REVERSE_V2": one(_reverse),
    "PACK": one(_pack),
    "TILE": one(_tile),
    "BROADCAST_TO": one(_broadcast_to),
    "BROADCAST_ARGS": one(_broadcast_args),
    "PAD": one(_pad),
    "PADV2": one(_pad_with),
    "MIRROR_PAD": one(_mirror_pad),
    "SPACE_TO_BATCH_ND": one(_space_to_batch),
    "BATCH_TO_SPACE_ND": one(_batch_to_space),
    "DENSIFY": one(lambda n: n.value(0)),
}

FLOAT: Importers = {"CONCATENATION": one(_concatenation)}
