"""Compute a node whose operands are constants, if that is worth it.

In: an operator, its operands. Out: the values of its reference function.
Invariant: what small operands ask for at the most is bounded: results that are much larger than the
operands and long computations are left to run time, where they take the memory the user sees planned.
"""

from __future__ import annotations

import numpy as np

from tilewright.graph.ir import Array, Attrs, TensorType
from tilewright.registry import Operator

#: Elements of results that anything may make of small operands while a file is read, where values decide
#: what the next node is.
MAX_ELEMENTS = 1 << 23
#: The same in a pass over the finished graph: enough for the weights of a large layer that a model describes
#: instead of storing them. All that such a pass adds takes so many bytes together.
MAX_WEIGHTS = 1 << 26
MAX_BYTES = 256 << 20
#: Larger results must not have more than so many elements per element of the operands.
MAX_GROWTH = 2
MAX_FLOPS = 1 << 31


def is_worth_computing(
    op: Operator,
    operands: list[TensorType | None],
    attrs: Attrs,
    results: list[TensorType],
    most: int = MAX_ELEMENTS,
) -> bool:
    """Whether a node of constants should be computed now."""
    size = sum(t.size for t in results)
    if size > max(most, MAX_GROWTH * sum(t.size for t in operands if t is not None)):
        return False
    return op.flops is None or op.flops(operands, attrs) <= MAX_FLOPS + size


def evaluate(op: Operator, operands: list[Array | None], attrs: Attrs) -> list[Array]:
    """The results of `op` on constants."""
    with np.errstate(all="ignore"):
        return [np.asarray(v) for v in op.reference(operands, attrs)]
