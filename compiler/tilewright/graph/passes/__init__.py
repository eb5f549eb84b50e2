"""Graph passes: each a pure function Graph -> Graph in a file of its own.

`optimize` runs them in order until nothing changes. Invariant: a pass never changes what the model
computes beyond rounding; passes that are exact say so.
"""

from __future__ import annotations

from collections.abc import Callable

from tilewright.graph.ir import Graph
from tilewright.graph.passes.eliminate_dead import eliminate_dead
from tilewright.graph.passes.eliminate_duplicates import eliminate_duplicates
from tilewright.graph.passes.fold_batch_norm import fold_batch_norm
from tilewright.graph.passes.fold_bias import fold_bias
from tilewright.graph.passes.fold_constants import fold_constants
from tilewright.graph.passes.fold_pad import fold_pad
from tilewright.graph.passes.fuse_layer_norm import fuse_layer_norm
from tilewright.graph.passes.move_transposes import move_transposes
from tilewright.graph.passes.pack_weights import pack_weights
from tilewright.graph.passes.pad_with_constants import pad_with_constants
from tilewright.graph.passes.quantize import quantize
from tilewright.graph.passes.simplify import simplify

Pass = Callable[[Graph], Graph]

PASSES: tuple[Pass, ...] = (
    quantize,  # before constants are folded: it wants to see which ones were quantised
    pack_weights,  # likewise
    eliminate_dead,
    fold_constants,
    simplify,
    move_transposes,
    eliminate_duplicates,
    fuse_layer_norm,  # after duplicates: x - mean(x) is often there twice
    pad_with_constants,
    fold_pad,
    fold_batch_norm,
    fold_bias,
    eliminate_dead,
)

#: Passes feed each other; a few rounds reach the fixed point on every model we know.
MAX_ROUNDS = 8


def optimize(graph: Graph, passes: tuple[Pass, ...] = PASSES) -> Graph:
    """Run `passes` until the list of nodes does not change any more."""
    for _ in range(MAX_ROUNDS):
        before = graph.nodes
        for transform in passes:
            graph = transform(graph)
        if graph.nodes == before:
            break
    return graph
