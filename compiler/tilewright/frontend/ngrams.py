"""TfIdfVectorizer over numbers, and MaxUnpool: importers that compose what there is.

In: an `ImportNode`. Out: value names.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from math import prod

import numpy as np

from tilewright.graph.ir import Attrs
from tilewright.registry import ImportNode

#: Comparisons that counting n-grams may take.
_MOST_COMPARISONS = 1 << 22


def tf_idf(node: ImportNode) -> Sequence[str]:
    """How often each n-gram of a list occurs in each row: windows are compared with the list, and summed."""
    if node.attr("pool_strings") is not None:
        raise node.fail("n-grams of strings are not supported: give tokens as numbers")
    t = node.type(0)
    rows, tokens = (1, t.size) if t.rank < 2 else (t.shape[0], t.shape[1])
    (x,) = node.add("reshape", [node.inputs[0]], {"shape": (rows, tokens)})
    indexes = [int(i) for i in node.attr("ngram_indexes")]
    counts: list[str] = []
    columns: list[int] = []
    for length, first, grams in _grams(node):
        own = [indexes[first + i] for i in range(len(grams))]
        for skip in range(1 if length == 1 else int(node.attr("max_skip_count")) + 1):
            found = _count(node, x, grams, skip + 1)
            if found is not None:
                counts.append(found)
                columns += own
    width = max(indexes) + 1
    (y,) = _placed(node, counts, columns, (rows, width))
    y = _weighted(node, y, width)
    return [y] if t.rank >= 2 else node.add("reshape", [y], {"shape": (width,)})


def _grams(node: ImportNode) -> Iterator[tuple[int, int, list[list[int]]]]:
    """(length, number of the first one, the n-grams) of each length that is asked for."""
    pool = [int(v) for v in node.attr("pool_int64s")]
    starts = [*map(int, node.attr("ngram_counts")), len(pool)]
    if starts != sorted(starts) or starts[0] < 0:
        raise node.fail(
            f"ngram_counts do not rise from 0 to the {len(pool)} numbers of the pool: repair the model"
        )
    low, high = int(node.attr("min_gram_length")), int(node.attr("max_gram_length"))
    first = 0
    for length, (a, b) in enumerate(pairwise(starts), start=1):
        grams = [pool[i : i + length] for i in range(a, b - length + 1, length)]
        if grams and low <= length <= high:
            yield length, first, grams
        first += len(grams)


def _count(node: ImportNode, x: str, grams: list[list[int]], distance: int) -> str | None:
    """f32[rows, grams]: occurrences whose tokens are `distance` apart; None where none fits into a row."""
    t = node.type_of(x)
    rows, tokens = t.shape
    length = len(grams[0])
    windows = tokens - distance * (length - 1)
    if windows < 1:
        return None
    if rows * windows * len(grams) * length > _MOST_COMPARISONS:
        raise node.fail(
            f"{len(grams)} n-grams of {t} are too many: compute this step outside the model"
        )
    hit = ""
    for i in range(length):
        at = distance * i
        part = {"starts": (0, at), "ends": (rows, at + windows), "steps": (1, 1)}
        (token,) = node.add("slice", [x], part)
        (token,) = node.add("reshape", [token], {"shape": (rows, windows, 1)})
        wanted = np.asarray([g[i] for g in grams]).astype(t.dtype.numpy)
        (same,) = node.add("eq", [token, node.constant(wanted, "grams")])
        (hit,) = node.add("and", [hit, same]) if hit else (same,)
    (number,) = node.add("cast", [hit], {"to": "f32"})
    return node.add("reduce_sum", [number], {"axes": (1,), "keepdims": False})[0]


def _placed(
    node: ImportNode, counts: list[str], columns: list[int], shape: tuple[int, int]
) -> Sequence[str]:
    """The counts added up in their columns."""
    if not counts:
        return node.add("expand", [node.constant(np.zeros((), np.float32))], {"shape": shape})
    (parts,) = node.add("concat", counts, {"axis": 1}) if len(counts) > 1 else (counts[0],)
    node.reserve(len(columns), shape[1])
    to = np.zeros((len(columns), shape[1]), np.float32)
    to[np.arange(len(columns)), columns] = 1
    return node.add("matmul", [parts, node.constant(to, "columns")])


def _weighted(node: ImportNode, y: str, width: int) -> str:
    node.reserve(width)
    mode, given = str(node.attr("mode")), node.attr("weights")
    weights = node.constant(np.asarray(given or [1.0] * width, np.float32), "weights")
    if mode == "IDF":
        (some,) = node.add("gt", [y, node.constant(np.zeros((), np.float32), "zero")])
        (y,) = node.add("cast", [some], {"to": "f32"})
    return y if mode == "TF" else node.add("mul", [y, weights])[0]


def max_unpool(node: ImportNode) -> Sequence[str]:
    """Values back at the places that MaxPool found them at, 0 elsewhere."""
    t, kernel = node.type(0), tuple(node.attr("kernel_shape"))
    dims = len(kernel)
    strides = tuple(node.attr("strides", (1,) * dims))
    pads = tuple(node.attr("pads", (0,) * (2 * dims)))
    if t.rank != dims + 2:
        raise node.fail(f"a window of {dims} dims does not fit {t}: repair the model")
    spatial = [
        (t.shape[d + 2] - 1) * strides[d] - pads[d] - pads[d + dims] + kernel[d]
        for d in range(dims)
    ]
    shape = (*t.shape[:2], *spatial)
    zero = node.constant(np.zeros((), t.dtype.numpy), "zero")
    (empty,) = node.add("expand", [zero], {"shape": (prod(shape),)})
    flat = {"shape": (t.size,)}
    (values,), (at,) = (node.add("reshape", [node.inputs[i]], flat) for i in (0, 1))
    attrs: Attrs = {"axis": 0, "reduction": "none"}
    (y,) = node.add("scatter_elements", [empty, at, values], attrs)
    (y,) = node.add("reshape", [y], {"shape": shape})
    if not node.has(2):
        return [y]
    wanted = [int(n) for n in node.need_const(2, "the shape of the result").reshape(-1)]
    after = tuple(w - n for w, n in zip(wanted, shape, strict=True))
    if min(after) < 0:
        raise node.fail(f"the result {list(shape)} does not fit into {wanted}: repair the model")
    pad: Attrs = {"before": (0,) * len(after), "after": after, "mode": "constant", "value": 0.0}
    return node.add("pad", [y], pad)
