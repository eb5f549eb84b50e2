"""Limits on what a foreign model file may ask for.

In: sizes and counts read from a file. Out: nothing, or a `ModelError`.
Invariant: no allocation is made for a number that did not pass through here. Products are Python
integers, so they cannot overflow.
"""

from __future__ import annotations

from collections.abc import Sequence

from tilewright.errors import ModelError
from tilewright.graph.ir import MAX_RANK

MAX_FILE_BYTES = 2 << 30  # the largest message protobuf can hold
MAX_TENSOR_ELEMENTS = 1 << 31
MAX_DIM = 1 << 31
#: Nodes after inlining of functions and branches (small files can describe huge graphs).
MAX_NODES = 200_000
MAX_DEPTH = 32
#: Of all loops together: every one becomes nodes.
MAX_ITERATIONS = 4096
#: Members of a sequence: every one becomes nodes.
MAX_MEMBERS = 4096
#: A constant that no operator computes (a range, a filled tensor) has at most so many elements.
MAX_FOLDED_ELEMENTS = 1 << 24
#: All constants that one import computes (not reads) together: so many bytes, and so many for each byte
#: that the model stores.
MAX_FOLDED_BYTES = 256 << 20
MAX_FOLDED_RATIO = 8
#: Opsets count up by one or two a year.
MAX_OPSET = 1000


def check_shape(shape: Sequence[int], what: str) -> tuple[int, ...]:
    """The shape as a tuple, if every dim and the number of elements is sensible."""
    if len(shape) > MAX_RANK:
        raise ModelError(f"{what} has rank {len(shape)}: at most {MAX_RANK} is supported")
    total = 1
    for n in shape:
        if n < 0:
            raise ModelError(f"{what} has the negative dimension {n}: the file is damaged")
        if n > MAX_DIM:
            raise ModelError(f"{what} has the dimension {n}: at most {MAX_DIM} is supported")
        total *= n
    if total > MAX_TENSOR_ELEMENTS:
        raise ModelError(
            f"{what} has {total} elements: at most {MAX_TENSOR_ELEMENTS} are supported"
        )
    return tuple(int(n) for n in shape)


def check_constant(shape: Sequence[int], what: str) -> tuple[int, ...]:
    """Like `check_shape`, for a constant that is computed rather than read from the file."""
    dims = check_shape(shape, what)
    total = 1
    for n in dims:
        total *= n
    if total > MAX_FOLDED_ELEMENTS:
        raise ModelError(
            f"{what} makes a constant of {total} elements: at most {MAX_FOLDED_ELEMENTS} are supported"
        )
    return dims


def check_depth(depth: int) -> None:
    """Whether graphs and functions nest sensibly."""
    if depth > MAX_DEPTH:
        raise ModelError(
            f"graphs or functions nest deeper than {MAX_DEPTH} levels, or a function calls itself: "
            "the file is damaged"
        )


def check_nodes(count: int) -> None:
    """Whether the number of nodes is sensible."""
    if count > MAX_NODES:
        raise ModelError(
            f"the model has {count} nodes or more: at most {MAX_NODES} are supported, split the model"
        )


def check_opset(version: int) -> int:
    """The version of an operator set, if there can be such a one."""
    if not 0 <= version <= MAX_OPSET:
        raise ModelError(f"the model uses opset {version}, which cannot be: the file is damaged")
    return version


def check_iterations(count: int) -> None:
    """Whether loops run sensibly often."""
    if count > MAX_ITERATIONS:
        raise ModelError(
            f"the model's loops run more than {MAX_ITERATIONS} times in all: as each iteration becomes "
            "nodes of its own, that is not supported"
        )
