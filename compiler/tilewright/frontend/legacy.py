"""Operators as opsets before 7 had them: broadcasting along a stated axis, inputs that were attributes.

In: a node and the opset. Out: names of its inputs in our graph, as newer opsets want them.
Invariant: nodes of opset 7 and later are left as they are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tilewright.core.attributes import axis_of

if TYPE_CHECKING:
    from tilewright.frontend.node import ForeignNode

FIRST_MODERN = 7

#: Operators of two tensors that broadcast the second only where the attribute `broadcast` says so.
_BROADCAST = frozenset(
    {"Add", "Sub", "Mul", "Div", "Pow", "And", "Or", "Xor", "Equal", "Less", "Greater"}
)
_AXIS_FIRST = frozenset({"Concat"})


def modernise(node: ForeignNode) -> None:
    """Give the inputs of an old node the shapes that today's rules of broadcasting want."""
    if node.opset >= FIRST_MODERN:
        return
    if node.op_type in _BROADCAST and len(node.inputs) == 2:
        _align(node)
    elif node.op_type == "PRelu" and node.type(1).rank == 1 and node.type(0).rank > 2:
        shape = (node.type(1).shape[0], *(1 for _ in node.type(0).shape[2:]))
        node.inputs = [node.inputs[0], *node.add("reshape", [node.inputs[1]], {"shape": shape})]
    unsupported = {
        "Reshape": "shape",
        "Pad": "paddings",
        "Tile": "tiles",
        "Upsample": "width_scale",
    }
    old = unsupported.get(node.op_type)
    if old is not None and node.attr(old) is not None:
        raise node.fail(f"`{old}` as an attribute is not supported: convert the model to opset 7")


def _align(node: ForeignNode) -> None:
    """The second operand's dims begin at `axis` of the first's (default: they end together)."""
    a, b = node.type(0), node.type(1)
    if not node.attr("broadcast", 0):
        if a.shape != b.shape:
            raise node.fail(f"{a} and {b} differ, and broadcasting is off: repair the model")
        return
    if b.rank > a.rank:
        raise node.fail(f"{b} cannot be broadcast to {a}: repair the model")
    axis = node.attr("axis")
    if axis is None:
        return
    at = axis_of(axis, a.rank) if a.rank else 0
    after = a.rank - at - b.rank
    if after < 0:
        raise node.fail(f"{b} does not fit {a} from axis {at} on: repair the model")
    if after:
        shape = (*b.shape, *(1 for _ in range(after)))
        node.inputs = [node.inputs[0], *node.add("reshape", [node.inputs[1]], {"shape": shape})]
