"""Tensor values from an ONNX file: raw bytes, typed fields, or external data.

In: a TensorProto and the model's folder. Out: a NumPy array of the declared shape.
Invariant: the data has exactly as many elements as the shape asks for.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import onnx

from tilewright.core.dtypes import BOOL, ONNX_TYPES, DType
from tilewright.errors import ModelError
from tilewright.frontend import limits
from tilewright.frontend.external_data import read_external
from tilewright.graph.ir import Array

#: Bits of an element where a file packs several into a byte.
_PACKED = {"u4": 4, "i4": 4, "f4e2m1": 4, "u2": 2, "i2": 2}


def element_type(code: int, what: str) -> DType:
    """Our element type of an ONNX type code; `ModelError` if it is not supported."""
    if code not in ONNX_TYPES:
        name = (
            onnx.TensorProto.DataType.Name(code)
            if code in onnx.TensorProto.DataType.values()
            else code
        )
        raise ModelError(
            f"{what} has the element type {name}, which is not supported: convert it to float32"
        )
    return ONNX_TYPES[code]


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
        want = _stored_bytes(count, dtype)
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
    want = _stored_bytes(math.prod(shape), dtype)
    if len(raw) != want:
        raise ModelError(
            f"{what} has {len(raw)} bytes of data, its shape {list(shape)} needs {want}"
        )
    if dtype is BOOL:  # any byte but 0 is true, and must become 1
        return np.frombuffer(raw, np.uint8).astype(np.bool_).reshape(shape)
    if dtype.name in _PACKED:
        return _unpacked(raw, dtype, math.prod(shape)).reshape(shape)
    bits = np.frombuffer(raw, dtype.storage.numpy.newbyteorder("<")).astype(dtype.storage.numpy)
    return bits.view(dtype.numpy).reshape(shape)


def _stored_bytes(count: int, dtype: DType) -> int:
    """Bytes of `count` elements in a file, where small ones share a byte."""
    return -(-count * _PACKED.get(dtype.name, dtype.bits) // 8)


def _unpacked(raw: bytes, dtype: DType, count: int) -> Array:
    """Elements of 2 or 4 bits, the first in the lowest bits of a byte, as one per byte."""
    bits = _PACKED[dtype.name]
    bytes_ = np.frombuffer(raw, np.uint8)
    parts = [(bytes_ >> shift) & ((1 << bits) - 1) for shift in range(0, 8, bits)]
    flat = np.stack(parts, axis=1).reshape(-1)[:count]
    if dtype.kind == "int":  # the sign is the highest of the bits
        flat = ((flat << (8 - bits)).view(np.int8) >> (8 - bits)).view(np.uint8)
    return np.ascontiguousarray(flat).view(dtype.numpy)
