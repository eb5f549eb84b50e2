"""Tensor values from an ONNX file: raw bytes, typed fields, or external data.

In: a TensorProto and the model's folder. Out: a NumPy array of the declared shape.
Invariant: the data has exactly as many elements as the shape asks for.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import onnx

from tilewright.core.dtypes import ALL, BOOL, DType
from tilewright.errors import ModelError
from tilewright.frontend import limits
from tilewright.frontend.external_data import read_external
from tilewright.graph.ir import Array

_DTYPES: dict[int, str] = {
    1: "f32", 2: "u8", 3: "i8", 4: "u16", 5: "i16", 6: "i32", 7: "i64", 9: "bool", 10: "f16",
    11: "f64", 12: "u32", 13: "u64",
}  # fmt: skip


def element_type(code: int, what: str) -> DType:
    """Our element type of an ONNX type code; `ModelError` if it is not supported."""
    if code not in _DTYPES:
        name = (
            onnx.TensorProto.DataType.Name(code)
            if code in onnx.TensorProto.DataType.values()
            else code
        )
        raise ModelError(
            f"{what} has the element type {name}, which is not supported: convert it to float32"
        )
    return ALL[_DTYPES[code]]


def read_tensor(t: onnx.TensorProto, folder: Path | None, what: str) -> Array:
    """A tensor's value; raw, typed or external data."""
    shape = limits.check_shape(list(t.dims), what)
    dtype = element_type(t.data_type, what)
    count = math.prod(shape)
    if t.data_location == onnx.TensorProto.EXTERNAL:
        info = {e.key: e.value for e in t.external_data}
        try:
            offset = int(info.get("offset", 0))
            length = int(info["length"]) if "length" in info else None
        except ValueError:
            raise ModelError(
                f"{what}: the external data's offset or length is not a number: the file is damaged"
            ) from None
        want = count * dtype.bytes
        raw = read_external(folder, info.get("location", ""), offset, length, want, what)
        return _from_bytes(raw, dtype, shape, what)
    if t.HasField("raw_data"):
        return _from_bytes(t.raw_data, dtype, shape, what)
    try:
        array = onnx.numpy_helper.to_array(t)
    except (ValueError, TypeError) as err:
        raise ModelError(f"{what} cannot be read: {err}") from None
    if array.size != count:
        raise ModelError(f"{what} has {array.size} values for the shape {list(shape)}")
    return np.ascontiguousarray(array).reshape(shape)


def _from_bytes(raw: bytes, dtype: DType, shape: tuple[int, ...], what: str) -> Array:
    want = math.prod(shape) * dtype.bytes
    if len(raw) != want:
        raise ModelError(
            f"{what} has {len(raw)} bytes of data, its shape {list(shape)} needs {want}"
        )
    if dtype is BOOL:  # any byte but 0 is true, and must become 1
        return np.frombuffer(raw, np.uint8).astype(np.bool_).reshape(shape)
    return np.frombuffer(raw, dtype.numpy.newbyteorder("<")).astype(dtype.numpy).reshape(shape)
