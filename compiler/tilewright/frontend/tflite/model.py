"""A TFLite file as plain Python data: what `reading.py` makes of the FlatBuffer.

Invariant: every index is within bounds of what it points into, shapes passed the limits, and data has as
many elements as its shape asks for. Importers see nothing of the FlatBuffer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tilewright.core.dtypes import DType
from tilewright.graph.ir import Array

#: Types that have no elements we could compute with: a handle of a variable, text, and the like.
OPAQUE = frozenset({"RESOURCE", "STRING", "VARIANT", "COMPLEX64", "COMPLEX128"})


@dataclass(frozen=True, slots=True)
class Quantization:
    """How integers stand for reals: (x - zero) * scale, one of each, or one per element of dim `axis`."""

    scale: Array
    zero: Array
    axis: int

    @property
    def per_tensor(self) -> bool:
        return self.scale.size == 1


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor of a subgraph. `dtype` is None for opaque kinds; `dynamic` marks dims that the file leaves
    open (1 in `shape`); `data` is the value of a constant."""

    index: int
    name: str
    kind: str
    dtype: DType | None
    shape: tuple[int, ...]
    dynamic: tuple[int, ...] = ()
    quantization: Quantization | None = None
    unreadable: str = ""
    """Why the quantisation cannot be used, empty if it can."""
    data: Array | None = None
    variable: bool = False


@dataclass(frozen=True, slots=True)
class Op:
    """One operator: `code` is the builtin's name (`CONV_2D`), or `CUSTOM` with `custom` its own name.
    Absent inputs are -1."""

    index: int
    code: str
    version: int
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    custom: str = ""
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])
    intermediates: tuple[int, ...] = ()
    custom_data: bytes = b""

    @property
    def shown(self) -> str:
        return f"custom operator {self.custom}" if self.code == "CUSTOM" else self.code


@dataclass(frozen=True, slots=True)
class Subgraph:
    """A function of tensors; subgraph 0 is the model."""

    name: str
    tensors: Sequence[Tensor]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    ops: Sequence[Op]


@dataclass(frozen=True, slots=True)
class TfliteModel:
    """A whole file; `signature_inputs` and `signature_outputs` name tensors of subgraph 0 as users know them."""

    version: int
    subgraphs: Sequence[Subgraph]
    signature_inputs: Mapping[int, str] = field(default_factory=dict[int, str])
    signature_outputs: Mapping[int, str] = field(default_factory=dict[int, str])
