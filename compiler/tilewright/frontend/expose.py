"""Make inner values of an ONNX model visible, for comparison with another runtime.

In: a model file and value names. Out: the same model, serialised, with those values as outputs.
Invariant: nothing is computed differently; names the model does not define are left out; the file is
read as it is for compiling, so other runtimes are only given what passed our own reader.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
from google.protobuf.message import Message

from tilewright.errors import ModelError
from tilewright.frontend.reading import folder_of, read_model
from tilewright.frontend.tensors import read_tensor


@dataclass(frozen=True, slots=True)
class Exposed:
    """A serialised model whose outputs are `outputs` (its own) followed by `inner`."""

    data: bytes
    outputs: tuple[str, ...]
    inner: tuple[str, ...]


def read_proto(source: Path | bytes) -> onnx.ModelProto:
    """The model as other tools take it, external data included; `ModelError` if it is broken, or wants
    data from outside its folder."""
    model = read_model(source)
    folder = folder_of(source)
    for t in _tensors([model]):
        if t.data_location == onnx.TensorProto.EXTERNAL:
            array = read_tensor(t, folder, f"tensor `{t.name}`")
            del t.external_data[:]
            t.data_location = onnx.TensorProto.DEFAULT
            t.raw_data = array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()
    return model


def _tensors(todo: list[Any]) -> Iterator[onnx.TensorProto]:
    """All tensors in messages, whatever they are nested in."""
    while todo:
        m = todo.pop()
        if isinstance(m, onnx.TensorProto):
            yield m
            continue
        for field, value in m.ListFields():
            if field.type == field.TYPE_MESSAGE:
                todo += [value] if isinstance(value, Message) else value


def expose(source: Path | bytes, names: Collection[str]) -> Exposed:
    """The model with the inner values `names` as additional outputs.

    Values inside sub-graphs and functions stay hidden. Raises `ModelError` if the model cannot be
    serialised in one piece (2 GB).
    """
    model = read_proto(source)
    outputs = tuple(o.name for o in model.graph.output)
    defined = dict.fromkeys(v for node in model.graph.node for v in node.output if v)
    inner = tuple(v for v in defined if v in names and v not in outputs)
    model.graph.output.extend(onnx.ValueInfoProto(name=v) for v in inner)
    try:
        return Exposed(model.SerializeToString(), outputs, inner)
    except ValueError as err:
        raise ModelError(
            f"the model cannot be serialised with its inner values as outputs: {err}"
        ) from None
