"""Limits on what a foreign model file may ask for.

In: sizes and counts read from a file. Out: nothing, or a `ModelError`.
Invariant: no allocation is made for a number that did not pass through here.
"""

from __future__ import annotations

from collections.abc import Sequence

from tilewright.errors import ModelError

MAX_FILE_BYTES = 2 << 30  # the largest message protobuf can hold
MAX_TENSOR_ELEMENTS = 1 << 31
MAX_DIM = 1 << 31
MAX_RANK = 16
MAX_NODES = 200_000
MAX_DEPTH = 32
#: Constants larger than this are not folded into larger ones.
MAX_FOLDED_ELEMENTS = 1 << 28


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
