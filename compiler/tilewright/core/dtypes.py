"""Element types shared by every stage.

In: a short name (`f32`, `i8`, `bool`) or a NumPy dtype. Out: an interned `DType`.
Invariant: one `DType` object per name, so identity is equality. `bool` is stored as one byte.

Some types only store values: nothing computes in them. Their elements lie in memory as integers
(`storage`; types of fewer than eight bits take a byte each) and are computed with in a wider type
(`work`). f16 is one of them with a storage that every target can load. Kernels hold no other.
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
    def storage(self) -> DType:
        """The type of the elements in memory, as kernels see it."""
        return ALL[_STORED.get(self.name, (self.name, ""))[0]]

    @property
    def work(self) -> DType:
        """The type that arithmetic is done in: wider for types that only store values."""
        return ALL[_STORED.get(self.name, ("", self.name))[1]]

    @property
    def numpy(self) -> np.dtype[np.generic]:
        """The NumPy type; those that NumPy itself lacks come from `ml_dtypes`."""
        if self.name in _EXTENDED:
            import ml_dtypes

            extended: np.dtype[np.generic] = np.dtype(getattr(ml_dtypes, _EXTENDED[self.name]))
            return extended
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

#: Element types of which NumPy has none: the names that `ml_dtypes` gives them.
_EXTENDED: dict[str, str] = {
    "bf16": "bfloat16", "f8e4m3fn": "float8_e4m3fn", "f8e4m3fnuz": "float8_e4m3fnuz",
    "f8e5m2": "float8_e5m2", "f8e5m2fnuz": "float8_e5m2fnuz", "f8e8m0": "float8_e8m0fnu",
    "f4e2m1": "float4_e2m1fn", "i4": "int4", "u4": "uint4", "i2": "int2", "u2": "uint2",
}  # fmt: skip

#: Types that only store values -> (type in memory, type of arithmetic).
_STORED: dict[str, tuple[str, str]] = {
    "f16": ("f16", "f32"), "bf16": ("u16", "f32"),
    "f8e4m3fn": ("u8", "f32"), "f8e4m3fnuz": ("u8", "f32"), "f8e5m2": ("u8", "f32"),
    "f8e5m2fnuz": ("u8", "f32"), "f8e8m0": ("u8", "f32"), "f4e2m1": ("u8", "f32"),
    "i4": ("i8", "i8"), "u4": ("u8", "u8"), "i2": ("i8", "i8"), "u2": ("u8", "u8"),
}  # fmt: skip

F16, F32, F64 = (DType(f"f{n}", "float", n) for n in (16, 32, 64))
I8, I16, I32, I64 = (DType(f"i{n}", "int", n) for n in (8, 16, 32, 64))
U8, U16, U32, U64 = (DType(f"u{n}", "uint", n) for n in (8, 16, 32, 64))
BOOL = DType("bool", "bool", 8)
BF16 = DType("bf16", "float", 16)
F8E4M3FN, F8E4M3FNUZ, F8E5M2, F8E5M2FNUZ, F8E8M0, F4E2M1 = (
    DType(n, "float", 8)
    for n in ("f8e4m3fn", "f8e4m3fnuz", "f8e5m2", "f8e5m2fnuz", "f8e8m0", "f4e2m1")
)
I4, I2 = (DType(n, "int", 8) for n in ("i4", "i2"))
U4, U2 = (DType(n, "uint", 8) for n in ("u4", "u2"))

ALL: dict[str, DType] = {
    d.name: d
    for d in (
        F16, F32, F64, I8, I16, I32, I64, U8, U16, U32, U64, BOOL, BF16,
        F8E4M3FN, F8E4M3FNUZ, F8E5M2, F8E5M2FNUZ, F8E8M0, F4E2M1, I4, U4, I2, U2,
    )
}  # fmt: skip
_FROM_NUMPY: dict[str, DType] = {
    np_name: ALL[name] for name, np_name in (*_NUMPY.items(), *_EXTENDED.items())
}

#: ONNX TensorProto element types.
ONNX_TYPES: dict[int, DType] = {
    1: F32, 2: U8, 3: I8, 4: U16, 5: I16, 6: I32, 7: I64, 9: BOOL, 10: F16, 11: F64, 12: U32,
    13: U64, 16: BF16, 17: F8E4M3FN, 18: F8E4M3FNUZ, 19: F8E5M2, 20: F8E5M2FNUZ, 21: U4, 22: I4,
    23: F4E2M1, 24: F8E8M0, 25: U2, 26: I2,
}  # fmt: skip


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


def limits(number: DType) -> tuple[int, int]:
    """Least and largest value of an integer type."""
    bits = {"i4": 4, "u4": 4, "i2": 2, "u2": 2}.get(number.name, number.bits)
    return (
        (-(1 << (bits - 1)), (1 << (bits - 1)) - 1)
        if number.kind == "int"
        else (0, (1 << bits) - 1)
    )


def largest(number: DType) -> float:
    """The largest finite value of a float type."""
    return _LARGEST[number.name]


_LARGEST: dict[str, float] = {
    "f16": 65504.0, "f32": float(np.finfo(np.float32).max), "f64": float(np.finfo(np.float64).max),
    "bf16": float.fromhex("0x1.fep127"), "f8e4m3fn": 448.0, "f8e4m3fnuz": 240.0, "f8e5m2": 57344.0,
    "f8e5m2fnuz": 57344.0, "f8e8m0": 2.0**127, "f4e2m1": 6.0,
}  # fmt: skip
