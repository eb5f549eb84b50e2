"""Element type conversion: float to integer truncates towards zero and saturates, NaN becomes 0;
integers wrap; anything to bool is `!= 0`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from tilewright.core.dtypes import ALL, dtype
from tilewright.core.index import Ix
from tilewright.errors import ModelError
from tilewright.graph.ir import Array, Attrs, TensorType
from tilewright.loop.builder import KernelBuilder, Reader, cast
from tilewright.loop.ir import Expr
from tilewright.registry import ImportNode, Operator, Sample

#: ONNX TensorProto element types that we store.
_ONNX_TYPES = {
    1: "f32", 2: "u8", 3: "i8", 4: "u16", 5: "i16", 6: "i32", 7: "i64", 9: "bool", 10: "f16",
    11: "f64", 12: "u32", 13: "u64",
}  # fmt: skip

_REFUSED = {8: "string", 14: "complex64", 15: "complex128", 16: "bfloat16"}


def _infer(types: Sequence[TensorType | None], attrs: Attrs) -> list[TensorType]:
    x = types[0]
    assert x is not None
    to = str(attrs["to"])
    if to not in ALL:
        raise ModelError(f"`cast` to the unknown element type {to}: use one of {', '.join(ALL)}")
    return [TensorType(ALL[to], x.shape)]


def _reference(inputs: Sequence[Any], attrs: Attrs) -> list[Array]:
    x = np.asarray(inputs[0])
    to = dtype(str(attrs["to"])).numpy
    if to == np.bool_:
        return [np.asarray(x != 0)]
    with np.errstate(all="ignore"):
        if x.dtype.kind == "f" and to.kind in "iu":
            info = np.iinfo(to)  # type: ignore[type-var]
            wide = np.trunc(
                np.nan_to_num(x.astype(np.float64), nan=0.0, posinf=np.inf, neginf=-np.inf)
            )
            low, high = wide <= info.min, wide >= info.max
            inside = np.where(low | high, 0, wide).astype(to)
            return [np.where(low, info.min, np.where(high, info.max, inside)).astype(to)]
        return [x.astype(to)]


def _compute(
    x: Sequence[Reader | None],
    index: tuple[Ix, ...],
    attrs: Attrs,
    out: TensorType,
    k: KernelBuilder,
) -> Expr:
    assert x[0] is not None
    return cast(x[0].broadcast(index), out.dtype)


def _import_cast(node: ImportNode) -> Sequence[str]:
    code = int(node.attr("to"))
    if code not in _ONNX_TYPES:
        kind = _REFUSED.get(code, str(code))
        raise node.fail(
            f"Cast to ONNX element type {kind} is not supported: use one of {', '.join(ALL)}"
        )
    return node.add("cast", [node.inputs[0]], {"to": _ONNX_TYPES[code]})


def _import_cast_like(node: ImportNode) -> Sequence[str]:
    return node.add("cast", [node.inputs[0]], {"to": node.type(1).dtype.name})


def _samples(rng: np.random.Generator) -> Iterator[Sample]:
    for a, b in (("f32", "i32"), ("i32", "f32"), ("i64", "i32"), ("f32", "bool"), ("bool", "f32"),
                 ("u8", "f32"), ("i8", "i64"), ("f32", "f64"), ("f32", "u8"), ("f64", "f32"),
                 ("bool", "i64"), ("i64", "bool"), ("u8", "i32"), ("f16", "f32"),
                 ("f32", "f16"), ("f32", "f32")):  # fmt: skip
        x = rng.integers(0, 2 if a == "bool" else 100, (3, 19)).astype(dtype(a).numpy)
        yield Sample((x,), {"to": b})
    for shape in ((), (1,), (2, 1, 5, 1, 3)):
        yield Sample((np.asarray(rng.standard_normal(shape) * 9, np.float32),), {"to": "i64"})
    wraps = np.array([300, -300, 127, 128, -129, 2**31 - 1], np.int32)
    for to in ("i8", "u8", "i16", "u64"):
        yield Sample((wraps,), {"to": to})
    odd = np.array([0.0, -0.0, 0.3, np.nan, np.inf, -np.inf], np.float32)
    for to in ("bool", "f64", "f16"):
        yield Sample((odd,), {"to": to})
    yield Sample((np.array([0.9, -0.9, 1e20, -1e20, np.nan], np.float32),), {"to": "i32"})
    yield Sample((np.array([300.5, -1.0, np.inf, -np.inf], np.float32),), {"to": "u8"})


OPERATORS = [
    Operator(
        name="cast",
        trait="elementwise",
        infer=_infer,
        reference=_reference,
        attrs={"to": str},
        compute=_compute,
        samples=_samples,
        onnx={"Cast": _import_cast, "CastLike": _import_cast_like},
        doc="y[i] = x[i] converted to the element type `to`",
    )
]
