"""What operators can do, found out by asking them; for tables.

In: the registry. Out: the element types that an operator takes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from tilewright.core.dtypes import ALL, BOOL, DType
from tilewright.errors import TilewrightError
from tilewright.graph.ir import Attrs, TensorType, type_of
from tilewright.registry import Operator

#: What a type rule may raise for types it has never seen.
_REFUSES = (TilewrightError, AssertionError, KeyError, ValueError, TypeError)


def _samples(op: Operator) -> tuple[tuple[tuple[TensorType | None, ...], Attrs], ...]:
    if op.samples is None:
        return ()
    return tuple(
        (tuple(None if a is None else type_of(np.asarray(a)) for a in s.inputs), s.attrs)
        for s in op.samples(np.random.default_rng(0))
    )


def element_types(op: Operator) -> list[DType]:
    """The types that the operator's data may have: all that its type rule takes in place of a sample's.

    Data are the inputs of the result's type, or else those of the first input's.
    """
    samples = _samples(op)
    return [t for t in ALL.values() if any(_takes(op, types, attrs, t) for types, attrs in samples)]


def _takes(op: Operator, types: Sequence[TensorType | None], attrs: Attrs, wanted: DType) -> bool:
    try:
        own = _data(op, types, attrs)
        changed = [
            TensorType(wanted, t.shape) if t is not None and t.dtype is own else t for t in types
        ]
        return bool(op.infer(changed, attrs))
    except _REFUSES:
        return False


def _data(op: Operator, types: Sequence[TensorType | None], attrs: Attrs) -> DType:
    result = op.infer(types, attrs)[0].dtype
    given = [t.dtype for t in types if t is not None]
    return result if result in given and result is not BOOL else given[0]


def shown(types: Sequence[DType]) -> str:
    """Types in few words: complete groups by their names."""
    names = {t.name for t in types}
    return ", ".join(_words(names)) or "-"


_GROUPS: Sequence[tuple[str, frozenset[str]]] = (
    ("all", frozenset(ALL)),
    ("numbers", frozenset(n for n in ALL if n != "bool")),
    ("f16-f64", frozenset({"f16", "f32", "f64"})),
    ("i8-i64", frozenset({"i8", "i16", "i32", "i64"})),
    ("u8-u64", frozenset({"u8", "u16", "u32", "u64"})),
    ("f8", frozenset(n for n in ALL if n.startswith("f8"))),
    ("i2-u4", frozenset({"i2", "i4", "u2", "u4"})),
)


def _words(names: set[str]) -> Iterator[str]:
    left = set(names)
    for word, group in _GROUPS:
        if group <= left:
            left -= group
            yield word
    yield from (n for n in ALL if n in left)
