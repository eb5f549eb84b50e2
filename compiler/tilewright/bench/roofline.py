"""What this machine can do at most: one core's multiply-add rate and cache bandwidth.

In: a target. Out: measured FLOP/s and bytes/s.
The multiply-add rate comes from our own packed matrix product at a size that fits the caches (a real
kernel, so a real roof); the bandwidth from a copy inside the second-level cache.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from tilewright.core.dtypes import F32
from tilewright.graph.ir import Graph, Node, TensorType
from tilewright.pipeline import build
from tilewright.schedule.target import Target
from tilewright.session import Session


@dataclass(frozen=True, slots=True)
class Roofline:
    """Floating-point operations and bytes per second of one core."""

    flops: float
    bandwidth: float


def matmul_graph(m: int, n: int, k: int) -> Graph:
    """C = A B with constant B."""
    b = np.random.default_rng(0).standard_normal((k, n)).astype(np.float32)
    g = Graph("roofline", ["a"], ["c"])
    g.types = {"a": TensorType(F32, (m, k)), "c": TensorType(F32, (m, n))}
    b_name = g.add_constant("b", b)
    g.nodes.append(Node("matmul", "matmul", ("a", b_name), ("c",)))
    return g


def best_time(session: Session, step: int, seconds: float = 0.3) -> float:
    """Least time of a step over about `seconds`."""
    best, start = float("inf"), time.perf_counter()
    while time.perf_counter() - start < seconds:
        best = min(best, session.time_step(step, 3))
    return best


def measure(target: Target) -> Roofline:
    """Measure this machine with code for `target`."""
    m, n, k = 384, 256, 256
    session = Session(build(matmul_graph(m, n, k), target))
    flops = 2 * m * n * k / best_time(session, 0)
    source = np.zeros(target.l2_bytes // 4, np.uint8)
    sink = np.empty_like(source)
    best = float("inf")
    for _ in range(200):
        start = time.perf_counter()
        np.copyto(sink, source)
        best = min(best, time.perf_counter() - start)
    return Roofline(flops, 2 * source.nbytes / best)
