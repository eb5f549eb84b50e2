"""Readers of attributes that several operator files share.

In: attributes of a node, or numbers that a model file gives. Out: plain tuples and checked axes.
Invariant: what comes back is valid; anything else raises `ValueError` with the reason.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any


def ints(attrs: Mapping[str, Any], name: str) -> tuple[int, ...]:
    """Attribute `name` as a tuple of integers."""
    value = attrs[name]
    if not isinstance(value, tuple):
        raise ValueError(f"attribute `{name}` must be a list of integers, got {value!r}")
    return tuple(int(v) for v in value)


def integer(attrs: Mapping[str, Any], name: str) -> int:
    """Attribute `name` as an integer."""
    value = attrs[name]
    if not isinstance(value, int):
        raise ValueError(f"attribute `{name}` must be an integer, got {value!r}")
    return int(value)


def axis_of(value: Any, rank: int) -> int:
    """An axis in 0 .. rank - 1; a negative one counts from the end."""
    axis = int(value)
    if not -rank <= axis < rank:
        raise ValueError(f"axis {axis} is out of range for rank {rank}")
    return axis + rank if axis < 0 else axis


def axes_of(values: Iterable[Any], rank: int) -> list[int]:
    """Distinct axes in the order given, each as in `axis_of`."""
    axes = [axis_of(v, rank) for v in values]
    if len(set(axes)) != len(axes):
        raise ValueError(f"axes {axes} name a dim twice")
    return axes
