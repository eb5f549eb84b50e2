"""One TFLite operator as importers see it, and what most of them need: reading options, making nodes,
going from channels last to the canonical order and back.

In: an `Op` of a subgraph, the names that its inputs have in our graph. Out: nodes and constants.
Invariant: values of quantised tensors are the integers themselves; what they stand for is said by the
tensors (`TfliteNode.scale`), as in the file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tilewright.core.dtypes import DType
from tilewright.errors import UnsupportedError
from tilewright.frontend import limits
from tilewright.frontend.node import Builder
from tilewright.frontend.tflite.model import Op, Quantization, Subgraph, Tensor
from tilewright.graph.ir import Array, Attrs, TensorType

#: Channels last -> channels first, and back.
TO_NCHW, TO_NHWC = (0, 3, 1, 2), (0, 2, 3, 1)

#: `FusedActivationFunction`
ACTIVATIONS = {0: "", 1: "RELU", 2: "RELU_N1_TO_1", 3: "RELU6", 4: "TANH", 5: "SIGN_BIT"}


@dataclass(slots=True)
class TfliteNode:
    """An operator with its inputs; importers return one value per output."""

    builder: Builder
    subgraph: Subgraph
    op: Op
    name: str
    inputs: Sequence[str]
    """Value names in our graph; the empty string for an absent optional input."""
    kept: dict[int, str] = field(default_factory=dict[int, str])
    """What variable tensors, by index, hold after the operator."""

    @property
    def op_type(self) -> str:
        return self.op.shown

    # ---- what the file says

    def option(self, name: str, default: Any = 0) -> Any:
        """A field of the operator's options; `default` where it has no options at all."""
        return self.op.options.get(name, default)

    def tensor(self, i: int) -> Tensor:
        """Input `i` as the file describes it."""
        at = self.op.inputs[i] if i < len(self.op.inputs) else -1
        if at < 0:
            raise self.fail(f"input {i} is missing: repair the model")
        return self.subgraph.tensors[at]

    def tensors(self) -> list[Tensor]:
        """All inputs and outputs as the file describes them."""
        every = (*self.op.inputs, *self.op.outputs)
        return [self.subgraph.tensors[i] for i in every if i >= 0]

    def result(self, i: int = 0) -> Tensor:
        """Output `i` as the file describes it."""
        if i >= len(self.op.outputs):
            raise self.fail(f"output {i} is missing: repair the model")
        return self.subgraph.tensors[self.op.outputs[i]]

    def quantization(self, t: Tensor) -> Quantization:
        """How the integers of `t` stand for reals; refused where the file does not say."""
        if t.quantization is None:
            why = t.unreadable or "it has no scale"
            raise self.fail(f"tensor `{t.name}` is {t.kind}, but {why}: convert the model again")
        return t.quantization

    def scale(self, t: Tensor) -> tuple[float, int]:
        """The one scale and zero point of `t`; the scale has the value of the file's float32."""
        q = self.quantization(t)
        if not q.per_tensor:
            raise self.fail(
                f"tensor `{t.name}` has {q.scale.size} scales, one is wanted: convert the model again"
            )
        return float(q.scale[0]), int(q.zero[0])

    @property
    def activation(self) -> str:
        """The fused activation function, empty for none."""
        code = int(self.option("FusedActivationFunction", 0))
        if code not in ACTIVATIONS or ACTIVATIONS[code] == "SIGN_BIT":
            known = ACTIVATIONS.get(code, code)
            raise self.fail(f"the fused activation {known} is not supported: make it an operator")
        return ACTIVATIONS[code]

    # ---- operands

    def has(self, i: int) -> bool:
        return i < len(self.inputs) and self.inputs[i] != ""

    def value(self, i: int) -> str:
        """Name of input `i`."""
        if not self.has(i):
            raise self.fail(f"input {i} is missing: repair the model")
        return self.inputs[i]

    def type(self, i: int) -> TensorType:
        return self.builder.graph.types[self.value(i)]

    def type_of(self, value: str) -> TensorType:
        return self.builder.graph.types[value]

    def const(self, i: int) -> Array | None:
        """Value of input `i` if it is known at compile time."""
        return self.builder.graph.constants.get(self.inputs[i]) if self.has(i) else None

    def need_const(self, i: int, what: str) -> Array:
        value = self.const(i)
        if value is None:
            raise self.fail(
                f"{what} must be known at compile time, but is computed from the model's inputs: make "
                "it a constant in the model"
            )
        return value

    def need_ints(self, i: int, what: str) -> list[int]:
        """A constant list of integers."""
        value = self.need_const(i, what)
        if value.dtype.kind not in "iu":
            raise self.fail(f"{what} is {value.dtype}, integers are wanted: repair the model")
        return [int(v) for v in value.reshape(-1)]

    def axis(self, value: int, rank: int) -> int:
        if not -rank <= value < rank:
            raise self.fail(f"axis {value} is out of range for rank {rank}: repair the model")
        return value % rank

    def keep(self, i: int, value: str) -> None:
        """Let input `i`, a variable tensor, hold `value` from now on."""
        if not self.tensor(i).variable:
            raise self.fail(f"input {i} is not a variable tensor: repair the model")
        self.kept[self.op.inputs[i]] = value

    # ---- making nodes

    def constant(self, array: Any, hint: str = "const", dtype: DType | None = None) -> str:
        """Add a constant, of NumPy's type or of `dtype`."""
        kind = None if dtype is None else dtype.numpy
        return self.builder.constant(np.asarray(array, kind), f"%{hint}")

    def like(self, value: str, number: float, hint: str = "const") -> str:
        """A scalar constant of the type of `value`."""
        return self.constant(number, hint, self.type_of(value).dtype)

    def add(self, op: str, *inputs: str, **attrs: Any) -> str:
        """Add a node of canonical operator `op` with one result."""
        (y,) = self.builder.add(self.name, op, inputs, attrs, 1)
        return y

    def many(self, op: str, inputs: Sequence[str], attrs: Attrs, outputs: int) -> list[str]:
        """Add a node with several results."""
        return self.builder.add(self.name, op, inputs, attrs, outputs)

    def reshape(self, x: str, shape: Sequence[int]) -> str:
        t = self.type_of(x)
        dims = limits.check_shape(shape, f"the result of node `{self.name}`")
        return x if t.shape == dims else self.add("reshape", x, shape=dims)

    def cast(self, x: str, to: DType) -> str:
        return x if self.type_of(x).dtype is to else self.add("cast", x, to=to.name)

    def nchw(self, x: str) -> str:
        """An image [N, H, W, C] as [N, C, H, W]."""
        if self.type_of(x).rank != 4:
            raise self.fail(f"{self.type_of(x)} is not an image [N, H, W, C]: repair the model")
        return self.add("transpose", x, perm=TO_NCHW)

    def nhwc(self, x: str) -> str:
        return self.add("transpose", x, perm=TO_NHWC)

    def activated(self, y: str, kind: str | None = None) -> str:
        """Floats (or plain integers) with the fused activation function."""
        match self.activation if kind is None else kind:
            case "RELU":
                return self.add("relu", y)
            case "RELU6":
                return self.add("clip", y, min=0.0, max=6.0)
            case "RELU_N1_TO_1":
                return self.add("clip", y, min=-1.0, max=1.0)
            case "RELU_0_TO_1":
                return self.add("clip", y, min=0.0, max=1.0)
            case "TANH":
                return self.add("tanh", y)
            case _:
                return y

    def fail(self, reason: str) -> UnsupportedError:
        return UnsupportedError([f"node `{self.name}` ({self.op_type}): {reason}"])


Importer = Callable[[TfliteNode], Sequence[str]]
Importers = Mapping[str, Importer]


def one(make: Callable[[TfliteNode], str]) -> Importer:
    """An importer of an operator with one output."""
    return lambda node: [make(node)]
