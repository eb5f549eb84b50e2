"""Small TFLite models for tests, and what LiteRT's reference kernels make of them.

In: tensors and operators by name. Out: bytes of a .tflite file, written with the object API of the schema
that comes with LiteRT: another reader of the format than ours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter, OpResolverType

_TYPES = {
    "float32": "FLOAT32", "float16": "FLOAT16", "int32": "INT32", "uint8": "UINT8", "int64": "INT64",
    "bool": "BOOL", "int16": "INT16", "int8": "INT8", "float64": "FLOAT64", "uint32": "UINT32",
}  # fmt: skip
#: Builtins whose first version LiteRT never had.
_VERSIONS = {"BROADCAST_TO": 2}


@dataclass
class T:
    """A tensor: a type with a shape, or a constant; `scale` and `zero` where it is quantised."""

    dtype: str = "float32"
    shape: Sequence[int] = ()
    data: Any = None
    scale: Any = None
    zero: Any = 0
    axis: int = 0
    kind: str = ""
    variable: bool = False
    sparsity: Any = None


@dataclass
class Op:
    """An operator: builtin name, input names ("" for none), output names, options (type name, fields)."""

    code: str
    inputs: Sequence[str]
    outputs: Sequence[str]
    options: str = ""
    fields: Mapping[str, Any] = field(default_factory=dict)
    custom: str = ""


def const(data: Any, dtype: str | None = None, **more: Any) -> T:
    array = np.asarray(data, dtype)
    return T(str(array.dtype), array.shape, array, **more)


class _Writer:
    def __init__(self) -> None:
        self.model = schema.ModelT()
        self.model.version = 3
        self.model.buffers = [schema.BufferT()]
        self.model.operatorCodes, self.model.subgraphs = [], []
        self.codes: dict[tuple[str, str], int] = {}

    def tensor(self, name: str, t: T) -> Any:
        out = schema.TensorT()
        out.name, out.shape = name, list(t.shape)
        out.type = getattr(schema.TensorType, t.kind or _TYPES[t.dtype])
        out.isVariable = t.variable
        out.sparsity = t.sparsity
        if t.data is not None:
            buffer = schema.BufferT()
            buffer.data = np.frombuffer(np.ascontiguousarray(t.data).tobytes(), np.uint8)
            self.model.buffers.append(buffer)
            out.buffer = len(self.model.buffers) - 1
        if t.scale is not None:
            q = schema.QuantizationParametersT()
            q.scale = np.atleast_1d(np.asarray(t.scale, np.float32))
            q.zeroPoint = np.broadcast_to(np.asarray(t.zero, np.int64), q.scale.shape)
            q.quantizedDimension = t.axis
            out.quantization = q
        return out

    def op(self, op: Op, index: Mapping[str, int]) -> Any:
        key = (op.code, op.custom)
        if key not in self.codes:
            code = schema.OperatorCodeT()
            number = getattr(schema.BuiltinOperator, op.code)
            code.builtinCode, code.deprecatedBuiltinCode = number, min(number, 127)
            code.version, code.customCode = _VERSIONS.get(op.code, 1), op.custom or None
            self.model.operatorCodes.append(code)
            self.codes[key] = len(self.codes)
        out = schema.OperatorT()
        out.opcodeIndex = self.codes[key]
        out.inputs = [index[i] if i else -1 for i in op.inputs]
        out.outputs = [index[i] for i in op.outputs]
        if op.options:
            out.builtinOptionsType = getattr(schema.BuiltinOptions, op.options)
            out.builtinOptions = getattr(schema, f"{op.options}T")()
            for name, value in op.fields.items():
                setattr(out.builtinOptions, name, value)
        return out

    def subgraph(
        self,
        tensors: Mapping[str, T],
        ops: Sequence[Op],
        inputs: Sequence[str],
        outputs: Sequence[str],
    ) -> None:
        g = schema.SubGraphT()
        index = {n: i for i, n in enumerate(tensors)}
        g.tensors = [self.tensor(n, t) for n, t in tensors.items()]
        g.operators = [self.op(o, index) for o in ops]
        g.inputs, g.outputs = [index[i] for i in inputs], [index[o] for o in outputs]
        self.model.subgraphs.append(g)


Graph = tuple[Mapping[str, T], Sequence[Op], Sequence[str], Sequence[str]]


def build(*subgraphs: Graph) -> bytes:
    """A file of subgraphs (tensors, operators, inputs, outputs); the first one is the model."""
    writer = _Writer()
    for g in subgraphs:
        writer.subgraph(*g)
    builder = flatbuffers.Builder(1024)
    builder.Finish(writer.model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def single(
    code: str, inputs: Sequence[T], outputs: Sequence[T], options: str = "", **fields: Any
) -> bytes:
    """A model of one operator; what has no data is an input of the model."""
    tensors = {f"in{i}": t for i, t in enumerate(inputs)} | {
        f"out{i}": t for i, t in enumerate(outputs)
    }
    names = [f"in{i}" for i in range(len(inputs))]
    results = [f"out{i}" for i in range(len(outputs))]
    free = [n for n, t in zip(names, inputs, strict=True) if t.data is None and not t.variable]
    return build((tensors, [Op(code, names, results, options, fields)], free, results))


def samples(model: bytes, seed: int = 0) -> list[np.ndarray]:
    """Random inputs of a model, over the whole range of integers of 8 and 16 bits."""
    rng = np.random.default_rng(seed)
    found: list[np.ndarray] = []
    for d in Interpreter(model_content=model).get_input_details():
        kind, shape = np.dtype(d["dtype"]), tuple(d["shape"])
        if kind.kind == "f":
            found.append(rng.standard_normal(shape).astype(kind))
        elif kind.kind == "b":
            found.append(rng.integers(0, 2, shape).astype(kind))
        elif kind.itemsize > 2:
            found.append(rng.integers(-9, 10, shape).astype(kind))
        else:
            info = np.iinfo(kind)
            found.append(rng.integers(info.min, info.max, shape, endpoint=True).astype(kind))
    return found


class Reference:
    """LiteRT's reference kernels, or what it has instead; variables keep their values from run to run."""

    def __init__(self, model: bytes) -> None:
        kinds = (OpResolverType.BUILTIN_REF, OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES)
        for kind in kinds:
            try:
                self.interpreter = Interpreter(
                    model_content=model, experimental_op_resolver_type=kind
                )
                break
            except ValueError:
                if kind is kinds[-1]:
                    raise
        self.interpreter.allocate_tensors()

    def __call__(self, *inputs: np.ndarray) -> list[np.ndarray]:
        it = self.interpreter
        for d, a in zip(it.get_input_details(), inputs, strict=True):
            it.set_tensor(d["index"], a)
        it.invoke()
        return [np.asarray(it.get_tensor(d["index"])) for d in it.get_output_details()]
