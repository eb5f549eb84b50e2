"""Operators that run other subgraphs: calls, branches and loops.

In: the operator with its inputs. Out: the values of its outputs, after the subgraphs were imported in its
place. A branch whose condition is known at compile time takes one side, another computes both and picks
one; a loop is unrolled as long as its condition can be computed at compile time.
Invariant: `limits` bound how deep and how large this becomes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from tilewright.errors import ModelError, UnsupportedError
from tilewright.frontend.tflite.node import TfliteNode

if TYPE_CHECKING:
    from tilewright.frontend.tflite.importer import Importer, Scope


def _run(
    importer: Importer, node: TfliteNode, scope: Scope, index: int, inputs: Sequence[str], part: str
) -> list[str]:
    """Import subgraph `index` over values; its results."""
    if not 0 < index < len(importer.model.subgraphs):
        raise ModelError(f"subgraph {index} does not exist: the file is damaged")
    subgraph = importer.model.subgraphs[index]
    if len(subgraph.inputs) != len(inputs):
        raise ModelError(f"subgraph {index} has {len(subgraph.inputs)} inputs, not {len(inputs)}")
    name = f"{node.name}/{part}" if part else node.name
    inner = scope.inner(subgraph, name, dict(zip(subgraph.inputs, inputs, strict=True)))
    before = len(importer.problems)
    importer.count += 1  # a loop of nothing ends as well
    importer.ops(inner)
    if len(importer.problems) > before:
        raise UnsupportedError(["a subgraph that it runs has problems of its own"])
    results = [importer.value(inner, i) for i in subgraph.outputs]
    if any(r is None for r in results):
        raise ModelError(f"an output of subgraph {index} is not computed: the file is damaged")
    return [r for r in results if r is not None]


def _call(option: str) -> Callable[[Importer, TfliteNode, Scope], Sequence[str]]:
    def importer(importer: Importer, node: TfliteNode, scope: Scope) -> Sequence[str]:
        return _run(importer, node, scope, int(node.option(option, -1)), node.inputs, "")

    return importer


def _if(importer: Importer, node: TfliteNode, scope: Scope) -> Sequence[str]:
    sides = [int(node.option(f"{k}SubgraphIndex", -1)) for k in ("Then", "Else")]
    known = node.const(0)
    rest = node.inputs[1:]
    if known is not None:
        return _run(importer, node, scope, sides[0 if known.reshape(-1)[0] else 1], rest, "")
    before = {k: v.value for k, v in importer.variables.known.items()}
    a, b = (
        _run(importer, node, scope, side, rest, part)
        for side, part in zip(sides, ("then", "else"), strict=True)
    )
    if any(v.value != before.get(k, "") for k, v in importer.variables.known.items()):
        raise node.fail("a branch that assigns variables is not supported: assign them after it")
    if len(a) != len(b) or any(
        node.type_of(x) != node.type_of(y) for x, y in zip(a, b, strict=True)
    ):
        raise node.fail("its branches give results of different types: make them the same")
    condition = node.reshape(node.value(0), ())
    return [x if x == y else node.add("where", condition, x, y) for x, y in zip(a, b, strict=True)]


def _while(importer: Importer, node: TfliteNode, scope: Scope) -> Sequence[str]:
    condition = int(node.option("CondSubgraphIndex", -1))
    body = int(node.option("BodySubgraphIndex", -1))
    values, turn = list(node.inputs), 0
    while True:
        (go,) = _run(importer, node, scope, condition, values, f"{turn}/condition")
        known = importer.builder.graph.constants.get(go)
        if known is None:
            raise node.fail(
                "how often it runs is known only at run time: unroll the loop, or make the count a constant"
            )
        if not known.reshape(-1)[0]:
            return values
        values = _run(importer, node, scope, body, values, str(turn))
        turn += 1


#: builtin -> importer
NESTED: Mapping[str, Callable[[Importer, TfliteNode, Scope], Sequence[str]]] = {
    "CALL": _call("Subgraph"),
    "STABLEHLO_COMPOSITE": _call("DecompositionSubgraphIndex"),
    "IF": _if,
    "WHILE": _while,
}
