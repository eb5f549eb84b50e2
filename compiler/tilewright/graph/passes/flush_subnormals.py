"""Weights too small for a normal float become zeros.

contraction(x, w)  ->  contraction(x, w')      w' = w, but 0 where 0 < |w| < 2^-126

Training leaves such numbers where weight decay has shrunk channels that nobody uses; on x86-64 a multiplication by
one of them takes some 150 cycles. Not exact, but what is dropped is below the rounding of a single product of the
largest weight (`LEAST`), unless the pixels differ by as many orders of magnitude.
"""

from __future__ import annotations

import numpy as np

from tilewright.graph.ir import Array, Graph, Node
from tilewright.registry import operator

#: A tensor whose largest weight is smaller than this is left alone: there they are all it has.
LEAST = 2.0**-90


def flush_subnormals(graph: Graph) -> Graph:
    """Flush the f32 weights of all contractions."""
    g = graph.clone()
    done: dict[str, str] = {}
    g.nodes = [_flushed(g, node, done) for node in g.nodes]
    g.drop_unused()
    return g


def _flushed(g: Graph, node: Node, done: dict[str, str]) -> Node:
    if operator(node.op).trait != "contraction":
        return node
    return node.with_(inputs=tuple(_weights(g, name, done) for name in node.inputs))


def _weights(g: Graph, name: str, done: dict[str, str]) -> str:
    """The constant to use for input `name`: itself, if it holds nothing to flush."""
    if name not in done:
        values = g.constants.get(name)
        small = _subnormal(values) if values is not None else None
        done[name] = name
        if values is not None and small is not None:
            flushed = np.where(small, np.float32(0.0), values)
            done[name] = g.add_constant(f"{name}.flushed", flushed)
    return done[name]


def _subnormal(values: Array) -> Array | None:
    """Where the subnormal numbers are; None if there are none, or hardly anything else."""
    if values.dtype != np.float32 or not values.size:
        return None
    size = np.abs(values)
    small = (size > 0) & (size < np.finfo(np.float32).tiny)
    return small if small.any() and (size >= LEAST).any() else None
