"""ONNX constructs that hold graphs of their own: `If`, and functions that the model defines.

In: the node and the importer. Out: value names; the nested nodes become nodes of the one graph.
Invariant: an inner graph sees what its standard says: a branch all outer values, a function only its
parameters.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import onnx

from tilewright.errors import ModelError
from tilewright.frontend import limits
from tilewright.frontend.node import ForeignNode, Scope
from tilewright.frontend.order import in_order, subgraphs
from tilewright.frontend.problems import Problem
from tilewright.frontend.sequences import make

if TYPE_CHECKING:
    from tilewright.frontend.importer import Importer


def branch(importer: Importer, node: ForeignNode) -> Sequence[str]:
    """`If`: a constant condition picks its branch; otherwise both run and the results are selected."""
    then, other = node.attr("then_branch"), node.attr("else_branch")
    condition = node.const(0)
    if condition is not None:
        if condition.size != 1:
            raise node.fail(f"the condition has {condition.size} elements: it must be one bool")
        chosen = then if bool(condition.reshape(-1)[0]) else other
        return _inline(importer, node, chosen, "then" if chosen is then else "else")
    if node.type(0).size != 1:
        raise node.fail(f"the condition is {node.type(0)}: it must be one bool")
    return _both(importer, node, then, other)


def _both(
    importer: Importer, node: ForeignNode, then: onnx.GraphProto, other: onnx.GraphProto
) -> Sequence[str]:
    """Both branches, and a choice for every result. A branch that no input of these shapes can take, because
    its own operators do not fit them, is left out."""
    before = len(importer.problems)
    results: list[list[str]] = []
    broken: list[list[Problem]] = []
    for g, which in ((then, "then"), (other, "else")):
        results.append(_inline(importer, node, g, which))
        broken.append(importer.problems[before:])
        del importer.problems[before:]
    misfits = [bool(b) and all(p.broken for p in b) for b in broken]
    if sum(misfits) == 1 and all(results[i] for i, bad in enumerate(misfits) if not bad):
        bad = misfits.index(True)
        which = ("then", "else")[bad]
        importer.notify(
            f"node `{node.name}` (If): its {which} branch cannot run with these shapes "
            f"({broken[bad][0].reason}), the other one is taken whatever the condition is"
        )
        return results[1 - bad]
    importer.problems += [*broken[0], *broken[1]]
    if not all(results):
        return ()
    if len(results[0]) != len(results[1]):
        raise ModelError("the branches have different numbers of outputs: the file is damaged")
    condition = node.inputs[0]
    return [select(node, condition, a, b) for a, b in zip(*results, strict=True)]


def select(node: ForeignNode, condition: str, a: str, b: str) -> str:
    """`a` where the run-time condition, a value of one element, holds, else `b`."""
    sequences = node.builder.sequences
    if a == b:
        return a
    if a in sequences and b in sequences and len(sequences[a]) == len(sequences[b]):
        pairs = zip(sequences[a], sequences[b], strict=True)
        return make(node, [select(node, condition, x, y) for x, y in pairs])
    known = node.builder.graph.types
    if a not in known or b not in known:
        raise node.fail(
            "it chooses between sequences of different lengths, and the condition is known only at run "
            "time: make it a constant"
        )
    ta, tb = node.type_of(a), node.type_of(b)
    if ta != tb:
        raise node.fail(
            f"the branches give {ta} and {tb}, and the condition is known only at run time: make "
            "both the same shape"
        )
    if node.type_of(condition).rank > ta.rank:
        (condition,) = node.add("reshape", [condition], {"shape": ()})
    return node.add("where", [condition, a, b])[0]


def _inline(importer: Importer, node: ForeignNode, g: onnx.GraphProto, which: str) -> list[str]:
    """Results of a branch; none if a problem in it was reported."""
    stored = importer.initializers(g, f"{node.name}/{which}/")
    return inline(importer, node, g, which, stored)


def inline(
    importer: Importer, node: ForeignNode, g: onnx.GraphProto, which: str, given: Mapping[str, str]
) -> list[str]:
    """Results of a nested graph whose own names `given` are known; none if a problem in it was reported."""
    outer = dict(node.scope.names)
    scope = node.scope.inner(f"{node.name}/{which}", outer)
    for n in g.node:  # a nested graph may reuse names of another one
        for o in n.output:
            outer.pop(str(o), None)
    outer.update(given)
    results = [str(o.name) for o in g.output]
    before = len(importer.problems)
    importer.nodes(in_order(g.node, set(outer), results, scope.depth), scope)
    return _results(importer, outer, results, before, f"the {which} graph")


def _results(
    importer: Importer, names: Mapping[str, str], results: Sequence[str], before: int, what: str
) -> list[str]:
    lost = [r for r in results if r not in names]
    if lost and len(importer.problems) == before:
        raise ModelError(f"{what} does not compute its output `{lost[0]}`: the file is damaged")
    return [] if lost else [names[r] for r in results]


def call(
    importer: Importer, f: onnx.FunctionProto, n: onnx.NodeProto, name: str, scope: Scope
) -> Sequence[str]:
    """A function that the model defines, inlined."""
    if len(n.input) > len(f.input):
        raise ModelError(
            f"it has {len(n.input)} inputs, the function takes {len(f.input)}: the file is damaged"
        )
    given = [scope.names[v] if v else "" for v in n.input]
    given += [""] * (len(f.input) - len(given))
    inner = scope.inner(name, dict(zip(map(str, f.input), given, strict=True)))
    inner.opset = _opset(f, scope.opset)
    values = {a.name: a for a in (*f.attribute_proto, *n.attribute)}
    body = [_bound(node, values) for node in f.node]
    used = {str(o) for o, theirs in zip(f.output, n.output, strict=False) if theirs}
    results = [str(o) for o in f.output if o in used]
    before = len(importer.problems)
    importer.nodes(in_order(body, set(inner.names), results, inner.depth), inner)
    found = _results(importer, inner.names, results, before, f"function {f.name}")
    by_name = dict(zip(results, found, strict=False))
    return [by_name.get(str(o), "") for o in f.output] if found else []


def _opset(f: onnx.FunctionProto, default: int) -> int:
    """The version of the standard operators inside a function."""
    found = (int(o.version) for o in f.opset_import if o.domain in ("", "ai.onnx"))
    return limits.check_opset(next(found, default))


def _bound(n: onnx.NodeProto, values: Mapping[str, onnx.AttributeProto]) -> onnx.NodeProto:
    """A node of a function's body with the attributes that its caller gave."""
    copy = onnx.NodeProto()
    copy.CopyFrom(n)
    del copy.attribute[:]
    for a in n.attribute:
        value = values.get(a.ref_attr_name) if a.ref_attr_name else a
        if value is None:  # left out by the caller: the operator's own default holds
            continue
        bound = copy.attribute.add()
        bound.CopyFrom(value)
        bound.name = a.name
    for g in subgraphs(copy):
        inner = [_bound(node, values) for node in g.node]
        del g.node[:]
        g.node.extend(inner)
    return copy
