"""Make inner values of an ONNX model visible, for comparison with another runtime.

In: a model file and value names. Out: the same model, serialised, with those values as outputs.
Invariant: nothing is computed differently; names the model does not define are left out.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import onnx

from tilewright.errors import ModelError


@dataclass(frozen=True, slots=True)
class Exposed:
    """A serialised model whose outputs are `outputs` (its own) followed by `inner`."""

    data: bytes
    outputs: tuple[str, ...]
    inner: tuple[str, ...]


def read_proto(source: Path | bytes) -> onnx.ModelProto:
    """The model as other tools take it, external data included."""
    return onnx.load_from_string(source) if isinstance(source, bytes) else onnx.load(str(source))


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
