"""Element type conversion: float to integer truncates towards zero and saturates, NaN becomes 0;
integers wrap; anything to bool is `!= 0`. Floats round to nearest, ties to even; what is too large becomes
infinity, or NaN in a type without it. To f8e8m0 (powers of two) `round` may be up or down.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from tilewright.core.dtypes import ALL, F32, I32, ONNX_TYPES, DType, dtype, largest
from tilewright.core.index import Ix
from tilewright.errors import ModelError
from tilewright.graph.ir import Array, Attrs, TensorType
from tilewright.loop.builder import KernelBuilder, Reader, add, binary, cast, const
from tilewright.loop.ir import Bitcast, Expr
from tilewright.loop.storage import narrowed
from tilewright.registry import ImportNode, Operator, Sample

_REFUSED = {8: "string", 14: "complex64", 15: "complex128"}


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
        if "round" in attrs:
            bits = x.astype(np.float32).view(np.int32)
            bits = bits + (0x7FFFFF if attrs["round"] == "up" else 0) & -0x800000
            return [bits.view(np.float32).astype(to)]
        if dtype(to).work is not dtype(to) and x.dtype.kind == "f" and not dtype(to).is_float:
            whole = np.nan_to_num(np.trunc(x.astype(np.float64)), nan=0.0, posinf=127, neginf=-128)
            return [np.clip(whole, -(2**62), 2**62).astype(np.int64).astype(to)]
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
    value, to = x[0].broadcast(index), dtype(str(attrs["to"]))
    if "round" in attrs:
        bits = Bitcast(cast(value, F32), I32)
        raised = add(bits, const(0x7FFFFF, I32)) if attrs["round"] == "up" else bits
        return Bitcast(binary("and", raised, const(-0x800000, I32)), F32)
    if to.work is not to and not to.is_float:  # of an integer the low bits stay
        return cast(cast(value, I32), to.work)
    return narrowed(value, to)


def _import_cast(node: ImportNode) -> Sequence[str]:
    code = int(node.attr("to"))
    if code not in ONNX_TYPES:
        kind = _REFUSED.get(code, str(code))
        raise node.fail(
            f"Cast to ONNX element type {kind} is not supported: use one of {', '.join(ALL)}"
        )
    return _converted(node, ONNX_TYPES[code])


def _import_cast_like(node: ImportNode) -> Sequence[str]:
    return _converted(node, node.type(1).dtype)


def _converted(node: ImportNode, to: DType) -> Sequence[str]:
    """Floats of 8 bits saturate unless `saturate` is 0, f8e8m0 rounds up unless `round_mode` says otherwise."""
    source, attrs = node.inputs[0], {"to": to.name}
    x = node.type(0).dtype
    if to.name == "f8e8m0":
        mode = str(node.attr("round_mode", "up"))
        if mode not in ("up", "down", "nearest"):
            raise node.fail(f"round_mode {mode} is unknown: use up, down or nearest")
        if mode != "nearest":
            attrs["round"] = mode
    elif to.is_float and to.bits == 8 and int(node.attr("saturate", 1)):
        if not x.is_float or x.bits == 8:
            (source,) = node.add("cast", [source], {"to": "f32"})
        limit = largest(to)
        (source,) = node.add("clip", [source], {"min": -limit, "max": limit})
    return node.add("cast", [source], attrs)


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
    yield from _stored_samples(rng)


def _stored_samples(rng: np.random.Generator) -> Iterator[Sample]:
    """Types that only store values: every magnitude, halves between neighbours, every code."""
    x = rng.standard_normal(200) * 2.0 ** rng.integers(-20, 20, 200)
    odd = [0.0, -0.0, np.nan, np.inf, -np.inf, 1e-45, 1e38, -1e38, 448.0, 464.0, 465.0, 61440.0]
    floats = np.concatenate([x, odd]).astype(np.float32)
    ties = (np.arange(-130, 130) / 16).astype(np.float32)
    names = ("bf16", "f8e4m3fn", "f8e4m3fnuz", "f8e5m2", "f8e5m2fnuz", "f4e2m1")
    for name in names:
        yield Sample((floats,), {"to": name})
        yield Sample((ties,), {"to": name})
        codes = np.arange(16 if name == "f4e2m1" else 256, dtype=np.uint8)
        if name == "bf16":
            yield Sample((floats.astype(dtype(name).numpy),), {"to": "f32"})
        else:
            yield Sample((codes.view(dtype(name).numpy),), {"to": "f32"})
            yield Sample((codes.view(dtype(name).numpy),), {"to": "f16"})
    scales = np.abs(floats[:200]) + np.float32(1e-3)
    for mode in ("up", "down"):
        yield Sample((scales,), {"to": "f8e8m0", "round": mode})
    yield Sample((scales,), {"to": "f8e8m0"})
    yield Sample((np.arange(256, dtype=np.uint8).view(dtype("f8e8m0").numpy),), {"to": "f32"})
    for name in ("i4", "u4", "i2", "u2"):
        yield Sample((np.arange(-20, 20).astype(np.float32),), {"to": name})
        small = np.arange(-20, 20).astype(np.int32).astype(dtype(name).numpy)
        for to in ("f32", "i8", "u8", "i64", "bool"):
            yield Sample((small,), {"to": to})


OPERATORS = [
    Operator(
        name="cast",
        trait="elementwise",
        infer=_infer,
        reference=_reference,
        attrs={"to": str},
        optional_attrs={"round": str},
        compute=_compute,
        samples=_samples,
        onnx={"Cast": _import_cast, "CastLike": _import_cast_like},
        doc="y[i] = x[i] converted to the element type `to`",
    )
]
