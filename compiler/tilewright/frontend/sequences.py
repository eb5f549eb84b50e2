"""Sequences and optionals of ONNX, resolved while importing: a sequence is a list of values of known length.

In: nodes over sequences. Out: names; that of a sequence stands for its members in `Builder.sequences`.
Invariant: no sequence reaches the graph; positions and lengths are known at compile time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx

from tilewright.core.attributes import axis_of
from tilewright.frontend import limits
from tilewright.frontend.node import Builder, ForeignNode

#: Stands for an optional without an element.
NOTHING = "%nothing"


def sequence(builder: Builder, members: Sequence[str]) -> str:
    """A sequence of `members`."""
    name = f"%sequence.{len(builder.sequences)}"
    builder.sequences[name] = list(members)
    return name


def make(node: ForeignNode, members: Sequence[str]) -> str:
    """A sequence of `members`."""
    return sequence(node.builder, members)


def member_names(name: str, count: int) -> list[str]:
    """What the members of a sequence are called that is an input or output of the model."""
    return [f"{name}.item{i}" for i in range(count)]


def member_type(info: onnx.ValueInfoProto) -> onnx.TypeProto | None:
    """The type of a sequence's or optional's tensors; None for what is neither."""
    t = info.type
    if t.WhichOneof("value") == "optional_type":
        t = t.optional_type.elem_type
    elif t.WhichOneof("value") != "sequence_type":
        return None
    found = onnx.TypeProto()
    found.CopyFrom(t.sequence_type.elem_type if t.WhichOneof("value") == "sequence_type" else t)
    for d in found.tensor_type.shape.dim:  # open dims of one name need not agree between members
        if d.HasField("dim_param"):
            d.ClearField("dim_param")
    return found


def is_optional(info: onnx.ValueInfoProto) -> bool:
    """Whether an input is an optional tensor, which is there unless something else is said."""
    kind = info.type.optional_type.elem_type.WhichOneof("value")
    return bool(info.type.WhichOneof("value") == "optional_type" and kind == "tensor_type")


def members(node: ForeignNode, i: int) -> list[str]:
    """The members of input `i`, which must be a sequence."""
    found = node.builder.sequences.get(node.inputs[i]) if node.has(i) else None
    if found is None:
        raise node.fail(f"input {i} is not a sequence: repair the model")
    return list(found)


def stacked(node: ForeignNode, values: Sequence[str], axis: int, new: bool) -> str:
    """Values beside each other along an axis, which is a new one if `new`."""
    if new:
        parts: list[str] = []
        for v in values:
            shape = list(node.type_of(v).shape)
            shape.insert(axis_of(axis, len(shape) + 1), 1)
            parts += node.add("reshape", [v], {"shape": tuple(shape)})
        values = parts
    axis = axis_of(axis, node.type_of(values[0]).rank)
    return values[0] if len(values) == 1 else node.add("concat", values, {"axis": axis})[0]


def part(node: ForeignNode, value: str, axis: int, start: int, end: int) -> str:
    """Elements start .. end - 1 of a value along an axis."""
    shape = node.type_of(value).shape
    starts, ends = [0] * len(shape), list(shape)
    starts[axis], ends[axis] = start, end
    attrs = {"starts": tuple(starts), "ends": tuple(ends), "steps": (1,) * len(shape)}
    return node.add("slice", [value], attrs)[0]


def element(node: ForeignNode, value: str, axis: int, i: int) -> str:
    """Element `i` of a value along an axis, which vanishes."""
    shape = node.type_of(value).shape
    attrs = {"shape": (*shape[:axis], *shape[axis + 1 :])}
    return node.add("reshape", [part(node, value, axis, i, i + 1)], attrs)[0]


def _position(node: ForeignNode, i: int, count: int, default: int) -> int:
    if not node.has(i):
        return default
    given = int(node.need_const(i, "the position in the sequence").reshape(-1)[0])
    if not -count <= given < max(count, 1):
        raise node.fail(f"position {given} is not in a sequence of {count}: repair the model")
    return given + count if given < 0 else given


def _construct(node: ForeignNode) -> Sequence[str]:
    return [make(node, node.inputs)]


def _empty(node: ForeignNode) -> Sequence[str]:
    return [make(node, [])]


def _at(node: ForeignNode) -> Sequence[str]:
    found = members(node, 0)
    if not found:
        raise node.fail("the sequence is empty: repair the model")
    return [found[_position(node, 1, len(found), -1)]]


def _insert(node: ForeignNode) -> Sequence[str]:
    found = members(node, 0)
    at = len(found)
    if node.has(2):
        given = int(node.need_const(2, "the position in the sequence").reshape(-1)[0])
        if not -len(found) <= given <= len(found):
            raise node.fail(f"position {given} is not in a sequence of {len(found)}: repair it")
        at = given + len(found) if given < 0 else given
    return [make(node, [*found[:at], node.inputs[1], *found[at:]])]


def _erase(node: ForeignNode) -> Sequence[str]:
    found = members(node, 0)
    at = _position(node, 1, len(found), len(found) - 1)
    return [make(node, [*found[:at], *found[at + 1 :]])]


def _length(node: ForeignNode) -> Sequence[str]:
    return [node.constant(np.asarray(len(members(node, 0)), np.int64), "length")]


def _concat(node: ForeignNode) -> Sequence[str]:
    found = members(node, 0)
    if not found:
        raise node.fail("the sequence is empty: there is nothing to concatenate")
    return [stacked(node, found, int(node.attr("axis")), bool(node.attr("new_axis", 0)))]


def _split(node: ForeignNode) -> Sequence[str]:
    """Pieces of 1, of one size (the last may be smaller), or of the sizes given."""
    x, t = node.inputs[0], node.type(0)
    axis = axis_of(node.attr("axis", 0), t.rank)
    n = t.shape[axis]
    if not node.has(1):
        _check_members(node, n)
        if bool(node.attr("keepdims", 1)):
            return [make(node, [part(node, x, axis, i, i + 1) for i in range(n)])]
        return [make(node, [element(node, x, axis, i) for i in range(n)])]
    given = node.need_const(1, "the split")
    if given.ndim == 0:
        size = int(given)
        if size < 1:
            raise node.fail(f"the pieces have {size} elements: repair the model")
        _check_members(node, -(-n // size))
        sizes = [min(size, n - start) for start in range(0, n, size)]
    else:
        _check_members(node, given.size)
        sizes = [int(v) for v in given.reshape(-1)]
    if sum(sizes) != n or min(sizes, default=0) < 0:
        raise node.fail(f"pieces of {sizes} do not make {n} elements: repair the model")
    ends = np.cumsum(sizes).tolist()
    pieces = [part(node, x, axis, e - s, e) for e, s in zip(ends, sizes, strict=True)]
    return [make(node, pieces)]


def _check_members(node: ForeignNode, count: int) -> None:
    if count > limits.MAX_MEMBERS:
        raise node.fail(
            f"it makes a sequence of {count} members: at most {limits.MAX_MEMBERS} are supported, split the model"
        )


def _optional(node: ForeignNode) -> Sequence[str]:
    return [node.inputs[0] if node.has(0) else NOTHING]


def _has_element(node: ForeignNode) -> Sequence[str]:
    there = node.has(0) and node.inputs[0] != NOTHING
    return [node.constant(np.asarray(there), "there")]


def _get_element(node: ForeignNode) -> Sequence[str]:
    if not node.has(0) or node.inputs[0] == NOTHING:
        raise node.fail("the optional has no element: repair the model")
    return [node.inputs[0]]


SEQUENCES: Mapping[str, Callable[[ForeignNode], Sequence[str]]] = {
    "SequenceConstruct": _construct,
    "SequenceEmpty": _empty,
    "SequenceAt": _at,
    "SequenceInsert": _insert,
    "SequenceErase": _erase,
    "SequenceLength": _length,
    "ConcatFromSequence": _concat,
    "SplitToSequence": _split,
    "Optional": _optional,
    "OptionalHasElement": _has_element,
    "OptionalGetElement": _get_element,
}
