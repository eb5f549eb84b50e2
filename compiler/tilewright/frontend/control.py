"""ONNX operators that need more than a node's view of the graph: nested graphs, sequences, optionals.

In: the importer and the node. Out: value names. Invariant: one entry per operator type; what it does is in
a module of its family.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from tilewright.frontend import loops, nested
from tilewright.frontend.node import ForeignNode
from tilewright.frontend.sequences import SEQUENCES

if TYPE_CHECKING:
    from tilewright.frontend.importer import Importer

Handler = Callable[["Importer", ForeignNode], Sequence[str]]


def _alone(handler: Callable[[ForeignNode], Sequence[str]]) -> Handler:
    return lambda importer, node: handler(node)


CONTROL: Mapping[str, Handler] = {
    "If": nested.branch,
    "Loop": loops.loop,
    "Scan": loops.scan,
    "SequenceMap": loops.sequence_map,
    **{name: _alone(handler) for name, handler in SEQUENCES.items()},
}
