"""Breaks valid ONNX files: changes that keep the file readable, and changes of plain bytes.

In: a serialised model, a random generator, other models to take parts from. Out: other bytes.
Invariant: the same generator state and files give the same bytes; nothing is known about single
operators, the walk goes through protobuf's own description of the format.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError, Message

from tilewright.registry import onnx_importers

Rng = np.random.Generator

INTEGERS = (
    -(1 << 63), -(1 << 31) - 1, -17, -2, -1, 0, 1, 2, 3, 4, 5, 7, 8, 11, 16, 17, 64, 99, 1000, 1 << 15,
    1 << 20, (1 << 31) - 1, 1 << 31, 1 << 32, 1 << 40, (1 << 62) + 1, (1 << 63) - 1,
)  # fmt: skip
FLOATS = (float("nan"), float("inf"), -float("inf"), 0.0, -0.0, -1.0, 0.5, 1.0, 2.5, 1e-45, 3e38)
STRINGS = (
    "", "x", "nowhere", "..", "../x", "/etc/passwd", "a\0b", "é✓", "NOTSET", "SAME_UPPER", "VALID", "linear",
    "cubic", "nearest", "reflect", "edge", "wrap", "constant", "half_pixel", "asymmetric", "mean",
    "ij,jk->ik", "...", "location", "offset", "length", "ai.onnx", "com.microsoft", "x" * 5000,
)  # fmt: skip
_KIND = onnx.TensorProto
#: (message, field, how many of the field there are; -1 for a single one)
Spot = tuple[Message, Any, int]


def mutate(data: bytes, rng: Rng, others: Sequence[bytes] = ()) -> bytes:
    """The file with one to four changes: mostly of its structure, sometimes of its bytes."""
    if rng.random() < 0.15:
        return change_bytes(data, rng, others)
    model = onnx.ModelProto()
    model.ParseFromString(data)
    other = onnx.ModelProto()
    other.ParseFromString(data if not others else others[int(rng.integers(len(others)))])
    for _ in range(int(rng.choice(np.array([1, 1, 1, 2, 2, 3, 4])))):
        change = _CHANGES[int(rng.choice(len(_CHANGES), p=_WEIGHTS))]
        change(model, rng, other)
    broken = _bytes(model)
    return change_bytes(broken, rng, others) if rng.random() < 0.05 else broken


def change_bytes(data: bytes, rng: Rng, others: Sequence[bytes] = ()) -> bytes:
    """One to six changes of bytes: bits flipped, pieces lost, repeated, or taken from another file."""
    raw = bytearray(data)
    for _ in range(int(rng.integers(1, 7))):
        at = int(rng.integers(0, len(raw) + 1))
        piece = int(rng.integers(1, 9))
        match int(rng.integers(0, 7)):
            case 0 if at < len(raw):
                raw[at] = int(rng.integers(0, 256))
            case 1 if at < len(raw):
                raw[at] ^= 1 << int(rng.integers(0, 8))
            case 2:
                del raw[at : at + piece]
            case 3:
                raw[at:at] = raw[at : at + piece]
            case 4:
                raw[at:at] = rng.bytes(piece)
            case 5 if others:
                other = others[int(rng.integers(len(others)))]
                start = int(rng.integers(0, len(other) + 1))
                raw[at : at + 8 * piece] = other[start : start + 8 * piece]
            case _ if rng.random() < 0.2:
                del raw[at:]
            case _:
                pass
    return bytes(raw)


def _bytes(model: onnx.ModelProto) -> bytes:
    try:
        return bytes(model.SerializeToString())
    except ValueError:  # a copy of a copy grew past protobuf's 2 GB
        return b""


# ---------------------------------------------------------------- any field of any message


def _spots(model: Message) -> list[Spot]:
    """Every field that is set anywhere in the file."""
    out: list[Spot] = []
    todo: list[Any] = [model]
    while todo:
        m = todo.pop()
        for field, value in m.ListFields():
            many = len(value) if field.is_repeated else -1
            out.append((m, field, many))
            if field.type == field.TYPE_MESSAGE:
                todo += value if many >= 0 else [value]
    return out


def _messages(model: Message, like: Any) -> list[Any]:
    """Every message of the type `like` in the file."""
    out: list[Any] = []
    todo: list[Any] = [model]
    while todo:
        m = todo.pop()
        if m.DESCRIPTOR.full_name == like.full_name:
            out.append(m)
        for field, value in m.ListFields():
            if field.type == field.TYPE_MESSAGE:
                todo += value if field.is_repeated else [value]
    return out


def _any_field(model: onnx.ModelProto, rng: Rng, other: onnx.ModelProto) -> None:
    """Change, clear, lose, repeat or exchange one field, whichever it is."""
    spots = _spots(model)
    # kinds of fields in equal shares, or tensors' numbers and nodes' names would drown the rest
    names = sorted({f.full_name for _, f, _ in spots})
    name = names[int(rng.integers(len(names)))]
    found = [s for s in spots if s[1].full_name == name]
    m, field, count = found[int(rng.integers(len(found)))]
    if count < 0:
        _change_single(model, m, field, rng, other)
    else:
        _change_repeated(model, m, field, count, rng, other)


def _change_single(
    model: onnx.ModelProto, m: Any, field: Any, rng: Rng, other: onnx.ModelProto
) -> None:
    if rng.random() < 0.15:
        m.ClearField(field.name)
    elif field.type == field.TYPE_MESSAGE:
        _splice(model, getattr(m, field.name), rng, other)
    else:
        setattr(m, field.name, _value(model, field, getattr(m, field.name), rng))


def _change_repeated(
    model: onnx.ModelProto, m: Any, field: Any, count: int, rng: Rng, other: onnx.ModelProto
) -> None:
    values = getattr(m, field.name)
    i, j = (int(rng.integers(count)) for _ in range(2))
    is_message = field.type == field.TYPE_MESSAGE
    match int(rng.integers(0, 8)):
        case 0:
            del values[i]
        case 1:
            values.extend([values[i]] * int(rng.choice(np.array([1, 1, 2, 40]))))
        case 2 if i != j:
            kept = list(values)
            if is_message:
                kept = [type(v).FromString(v.SerializeToString()) for v in kept]
            kept[i], kept[j] = kept[j], kept[i]
            del values[:]
            values.extend(kept)
        case 3 if rng.random() < 0.3:
            del values[:]
        case 4 if not is_message:
            values.append(_value(model, field, values[i], rng))
        case _ if is_message:
            _splice(model, values[i], rng, other)
        case _:
            values[i] = _value(model, field, values[i], rng)


def _splice(model: onnx.ModelProto, m: Any, rng: Rng, other: onnx.ModelProto) -> None:
    """Put another message of the same type, of this file or another, in the place of `m`."""
    source = other if rng.random() < 0.5 else model
    found = _messages(source, m.DESCRIPTOR)
    if not found:
        return
    taken = found[int(rng.integers(len(found)))]
    data = taken.SerializeToString()
    if len(data) < 1 << 20:
        m.Clear()
        m.MergeFromString(data)


def _value(model: onnx.ModelProto, field: Any, old: Any, rng: Rng) -> Any:
    """A value that a field of this type can hold."""
    match field.type:
        case field.TYPE_FLOAT | field.TYPE_DOUBLE:
            return float(rng.choice(np.array(FLOATS)))
        case field.TYPE_STRING:
            return _text(model, rng)
        case field.TYPE_BYTES:
            return _raw(bytes(old), rng)
        case field.TYPE_ENUM:
            return int(rng.choice([v.number for v in field.enum_type.values]))
        case field.TYPE_INT32:
            return int(rng.choice(np.array([n for n in INTEGERS if abs(n) < 1 << 31])))
        case field.TYPE_UINT64:
            return int(rng.choice(np.array([n for n in INTEGERS if n >= 0])))
        case _ if rng.random() < 0.3:
            near = int(old) + int(rng.choice(np.array([-1, 1])))
            return min(max(near, INTEGERS[0]), INTEGERS[-1])
        case _:
            return int(rng.choice(np.array(INTEGERS)))


def _text(model: onnx.ModelProto, rng: Rng) -> str:
    """A name from the file, or a strange one."""
    if rng.random() < 0.3:
        return str(STRINGS[int(rng.integers(len(STRINGS)))])
    names = [str(v) for n in model.graph.node for v in (*n.output, *n.input, n.op_type)]
    names += [str(t.name) for t in (*model.graph.initializer, *model.graph.input)]
    return names[int(rng.integers(len(names)))] if names else "x"


def _raw(old: bytes, rng: Rng) -> bytes:
    """Other bytes: numbers of 4 or 8 bytes made strange, or more, fewer, or random ones."""
    raw = bytearray(old)
    match int(rng.integers(0, 5)):
        case 0:
            return bytes(raw[: int(rng.integers(0, len(raw) + 1))])
        case 1:
            return bytes(raw) + rng.bytes(int(rng.integers(1, 9)))
        case 2 | 3 if len(raw) >= 8:
            at = 8 * int(rng.integers(0, len(raw) // 8))
            raw[at : at + 8] = int(rng.choice(np.array(INTEGERS))).to_bytes(
                8, "little", signed=True
            )
        case _ if len(raw) >= 4:
            at = 4 * int(rng.integers(0, len(raw) // 4))
            raw[at : at + 4] = np.float32(rng.choice(np.array(FLOATS))).tobytes()
        case _:
            return rng.bytes(len(raw))
    return bytes(raw)


# ---------------------------------------------------------------- what models are made of


def _node(model: onnx.ModelProto, rng: Rng) -> onnx.NodeProto | None:
    nodes = model.graph.node
    return nodes[int(rng.integers(len(nodes)))] if nodes else None


def _other_operator(model: onnx.ModelProto, rng: Rng, other: onnx.ModelProto) -> None:
    """The node does something else with the same inputs and attributes."""
    n = _node(model, rng)
    if n is not None:
        known = sorted(onnx_importers())
        n.op_type = known[int(rng.integers(len(known)))]


def _rewire(model: onnx.ModelProto, rng: Rng, other: onnx.ModelProto) -> None:
    """An input or output of a node gets another value's name: cycles, doubles, dangling names."""
    n = _node(model, rng)
    names = [] if n is None else [n.input, n.output][int(rng.random() < 0.3)]
    if len(names):
        names[int(rng.integers(len(names)))] = _text(model, rng)


def _graft(model: onnx.ModelProto, rng: Rng, other: onnx.ModelProto) -> None:
    """A node of another model, on values of this one, whose result is an output."""
    n = _node(other, rng)
    if n is None:
        return
    copy = model.graph.node.add()
    copy.CopyFrom(n)
    kept = {t.name for t in other.graph.initializer}
    for i, value in enumerate(copy.input):
        if value in kept and rng.random() < 0.7:
            tensor = next(t for t in other.graph.initializer if t.name == value)
            model.graph.initializer.add().CopyFrom(tensor)
        else:
            copy.input[i] = _text(model, rng)
    for i, value in enumerate(copy.output):
        copy.output[i] = f"grafted {len(model.graph.node)} {i}" if value else ""
    if copy.output:
        model.graph.output.add().name = copy.output[0]


def _freeze(model: onnx.ModelProto, rng: Rng, other: onnx.ModelProto) -> None:
    """An input becomes a constant with strange values, so that it takes part in folding."""
    g = model.graph
    inputs = [i for i in g.input if i.type.HasField("tensor_type")]
    if not inputs:
        return
    info = inputs[int(rng.integers(len(inputs)))]
    dims = [d.dim_value for d in info.type.tensor_type.shape.dim]
    kind = info.type.tensor_type.elem_type
    if not all(0 <= d < 100 for d in dims) or math.prod(dims) > 1 << 16:
        return
    t = g.initializer.add()
    t.name, t.data_type = info.name, kind
    t.dims.extend(dims)
    count = math.prod(dims)
    if kind in (_KIND.INT64, _KIND.INT32, _KIND.INT8, _KIND.UINT8):
        width = {_KIND.INT64: 8, _KIND.INT32: 4}.get(kind, 1)
        chosen = rng.choice(np.array([n for n in INTEGERS if abs(n) < 1 << (8 * width - 2)]), count)
        plain = rng.integers(0, 4, count)
        values = np.where(rng.random(count) < 0.3, chosen, plain)
        t.raw_data = values.astype(f"<i{width}").tobytes()
    elif kind == _KIND.FLOAT:
        values = np.where(rng.random(count) < 0.1, rng.choice(np.array(FLOATS), count), 2.0)
        t.raw_data = values.astype("<f4").tobytes()
    elif kind == _KIND.BOOL:
        t.raw_data = rng.bytes(count)


def _fill(model: onnx.ModelProto, rng: Rng, other: onnx.ModelProto) -> None:
    """A constant of few bytes becomes a large one: what amplifies small files."""
    g = model.graph
    n = _node(model, rng)
    if n is None or not n.input:
        return
    size = g.initializer.add()
    size.name, size.data_type = f"size {len(g.initializer)}", _KIND.INT64
    dims = rng.choice(np.array([1, 2, 3, 1000, 1 << 14, 1 << 20, 1 << 27]), int(rng.integers(1, 4)))
    size.dims.append(len(dims))
    size.raw_data = dims.astype("<i8").tobytes()
    maker = onnx.helper.make_node("ConstantOfShape", [size.name], [f"filled {len(g.node)}"])
    n.input[int(rng.integers(len(n.input)))] = maker.output[0]
    g.node.insert(0, maker)


def _outside(model: onnx.ModelProto, rng: Rng, other: onnx.ModelProto) -> None:
    """A tensor lies in another file, if that can be."""
    found = _messages(model, _KIND.DESCRIPTOR)
    if not found:
        return
    t = found[int(rng.integers(len(found)))]
    t.data_location = _KIND.EXTERNAL
    if rng.random() < 0.5:
        t.ClearField("raw_data")
    places = ["weights.bin", "../weights.bin", "link.bin", "/etc/passwd", "/dev/zero", "pipe", ".", "none", ""]  # fmt: skip
    entries = {"location": places[int(rng.integers(len(places)))]}
    for key in ("offset", "length"):
        if rng.random() < 0.5:
            entries[key] = str(int(rng.choice(np.array(INTEGERS))))
    for key, value in entries.items():
        t.external_data.add(key=key, value=value)


def _nest(model: onnx.ModelProto, rng: Rng, other: onnx.ModelProto) -> None:
    """The nodes move into a branch of an `If`, or into a function that may call itself."""
    g = model.graph
    if not g.node or not g.output or len(g.node) > 200:
        return
    outputs = [o.name for o in g.output]
    if rng.random() < 0.5:
        inner = onnx.helper.make_graph(list(g.node), "inner", [], list(g.output))
        del g.node[:]
        flag = onnx.helper.make_tensor("flag", _KIND.BOOL, [], [int(rng.integers(2))])
        g.node.append(onnx.helper.make_node("Constant", [], ["flag"], value=flag))
        g.node.append(
            onnx.helper.make_node("If", ["flag"], outputs, then_branch=inner, else_branch=inner)
        )
        return
    inputs = [i.name for i in g.input] + [t.name for t in g.initializer]
    f = model.functions.add()
    f.name, f.domain = "f", "own"
    f.input.extend(inputs)
    f.output.extend(outputs)
    f.node.extend(g.node)
    f.opset_import.extend(model.opset_import)
    call = onnx.helper.make_node("f", inputs, outputs, domain="own")
    if rng.random() < 0.2:
        f.node.append(call)
    del g.node[:]
    g.node.append(call)
    model.opset_import.add(domain="own", version=1)


def _other_opset(model: onnx.ModelProto, rng: Rng, other: onnx.ModelProto) -> None:
    for o in model.opset_import:
        o.version = int(rng.choice(np.array([*range(1, 27), 99, *INTEGERS])))


_TABLE: tuple[tuple[float, Callable[[onnx.ModelProto, Rng, onnx.ModelProto], None]], ...] = (
    (8, _any_field), (2, _freeze), (1, _other_operator), (1, _rewire), (1, _graft), (1, _fill),
    (0.5, _outside), (0.3, _nest), (0.3, _other_opset),
)  # fmt: skip
_CHANGES = [change for _, change in _TABLE]
_WEIGHTS = np.array([weight for weight, _ in _TABLE]) / sum(weight for weight, _ in _TABLE)


# ---------------------------------------------------------------- valid files to begin with


def shrunk(data: bytes, most: int = 64) -> bytes:
    """A model whose stored tensors of more than `most` elements are replaced by single values, so that
    changes hit structure. It need not make sense any more."""
    model = onnx.ModelProto()
    try:
        model.ParseFromString(data)
    except DecodeError:
        return data
    for t in model.graph.initializer:
        if np.prod(t.dims, dtype=np.float64) > most:
            width = onnx.helper.tensor_dtype_to_np_dtype(t.data_type).itemsize
            raw = bytes(t.raw_data[:width]).ljust(width, b"\0")
            rank, name, kind = len(t.dims), t.name, t.data_type
            t.Clear()
            t.name, t.data_type, t.raw_data = name, kind, raw
            t.dims.extend([1] * rank)
    return bytes(model.SerializeToString())


def standard_models() -> Iterator[tuple[str, bytes]]:
    """ONNX's own test cases as (name, file): every operator, with plain inputs and with the integer
    inputs of the case compiled in, where shapes depend on them. Takes some seconds."""
    from onnx.backend.test.loader import load_model_tests

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cases = load_model_tests(kind="node")
    for case in cases:
        model = case.model
        if model is None or case.name.endswith("_expanded"):
            continue
        yield case.name, bytes(model.SerializeToString())
        frozen = onnx.ModelProto()
        frozen.CopyFrom(model)
        values = case.data_sets[0][0] if case.data_sets else []
        for info, value in zip(model.graph.input, values, strict=False):
            if isinstance(value, np.ndarray) and value.dtype.kind in "iub":
                frozen.graph.initializer.append(onnx.numpy_helper.from_array(value, info.name))
        if len(frozen.graph.initializer) > len(model.graph.initializer):
            yield f"{case.name} frozen", bytes(frozen.SerializeToString())


def pieces_removed(data: bytes) -> Iterator[bytes]:
    """The file without one node, stored tensor, attribute, input or output, larger pieces first; none if
    its bytes are not a model."""
    model = onnx.ModelProto()
    try:
        model.ParseFromString(data)
    except DecodeError:
        return
    spots = [(m, f.name, n) for m, f, n in _spots(model) if n > 0 and f.type == f.TYPE_MESSAGE]
    for m, name, count in spots:
        for share in (count, count // 2, 1):
            for start in range(0, count, share) if share and (share == 1 or share < count) else ():
                values = getattr(m, name)
                kept = [type(v).FromString(v.SerializeToString()) for v in values]
                del values[start : start + share]
                yield _bytes(model)
                del values[:]
                values.extend(kept)
