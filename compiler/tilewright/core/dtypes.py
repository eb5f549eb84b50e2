"""Element types shared by every stage.

In: a short name (`f32`, `i8`, `bool`) or a NumPy dtype. Out: an interned `DType`.
Invariant: one `DType` object per name, so identity is equality. `bool` is stored as one byte.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

Kind = Literal["float", "int", "uint", "bool"]


@dataclass(frozen=True, slots=True)
class DType:
    """An element type: `name`, numeric `kind`, and storage size in `bits`."""

    name: str
    kind: Kind
    bits: int

    @property
    def bytes(self) -> int:
        return self.bits // 8

    @property
    def is_float(self) -> bool:
        return self.kind == "float"

    @property
    def is_integer(self) -> bool:
        return self.kind in ("int", "uint")

    @property
    def numpy(self) -> np.dtype[np.generic]:
        return np.dtype(_NUMPY[self.name])

    def __str__(self) -> str:
        return self.name

    def __reduce__(self) -> tuple[Callable[[str], DType], tuple[str]]:
        """Pickled by name, so that a copy from another process is the same object."""
        return dtype, (self.name,)


_NUMPY: dict[str, str] = {
    "f16": "float16", "f32": "float32", "f64": "float64", "bool": "bool",
    "i8": "int8", "i16": "int16", "i32": "int32", "i64": "int64",
    "u8": "uint8", "u16": "uint16", "u32": "uint32", "u64": "uint64",
}  # fmt: skip

F16, F32, F64 = (DType(f"f{n}", "float", n) for n in (16, 32, 64))
I8, I16, I32, I64 = (DType(f"i{n}", "int", n) for n in (8, 16, 32, 64))
U8, U16, U32, U64 = (DType(f"u{n}", "uint", n) for n in (8, 16, 32, 64))
BOOL = DType("bool", "bool", 8)

ALL: dict[str, DType] = {
    d.name: d for d in (F16, F32, F64, I8, I16, I32, I64, U8, U16, U32, U64, BOOL)
}
_FROM_NUMPY: dict[str, DType] = {np_name: ALL[name] for name, np_name in _NUMPY.items()}


def dtype(spec: str | DType | npt.DTypeLike) -> DType:
    """Return the `DType` for a short name, a `DType` or a NumPy dtype; `KeyError` if there is none."""
    if isinstance(spec, DType):
        return spec
    if isinstance(spec, str) and spec in ALL:
        return ALL[spec]
    return _FROM_NUMPY[np.dtype(spec).name]


def sum_of_products(x: DType, w: DType) -> DType | None:
    """The type in which products of `x` and weights `w` are summed; None if none fits.

    Their own, but i32 for bytes with bytes or with weights of 16 bits: bytes less a zero point need 9.
    """
    if x in (I8, U8) and w in (I8, U8, I16):
        return I32
    return x if x is w and x is not BOOL and x.bits >= 16 else None
