"""The passes of a graph that depend on the target.

In: an optimised graph, a target, a choice of variants. Out: a graph that the target computes faster.
Invariant: exact but for the variants, which round differently, and weights near 1e-38. Stages may be left out by name (`ADAPTATIONS`).
"""

from __future__ import annotations

from collections.abc import Set

from tilewright.graph.ir import Graph
from tilewright.graph.passes.choose_variants import Chooser, choose_variants
from tilewright.graph.passes.cut_bands import Caches, cut_bands
from tilewright.graph.passes.flush_subnormals import flush_subnormals
from tilewright.graph.passes.merge_requantize import merge_requantize
from tilewright.graph.passes.merge_roundings import merge_roundings
from tilewright.graph.passes.pad_channels import pad_channels
from tilewright.graph.passes.raise_bytes import raise_bytes
from tilewright.graph.passes.unsigned_bytes import unsigned_bytes
from tilewright.schedule.target import Target
from tilewright.schedule.templates.dots import has_dot
from tilewright.schedule.templates.ways import stream_rate

ADAPTATIONS = (
    "variants",
    "flush_subnormals",
    "merge_roundings",
    "merge_requantize",
    "unsigned_bytes",
    "pad_channels",
    "raise_bytes",
    "cut_bands",
)


def adapt(
    graph: Graph, target: Target, variants: Chooser, without: Set[str] = frozenset()
) -> Graph:
    """The graph as `target` computes it best."""
    if "variants" not in without:
        graph = choose_variants(graph, variants)
    if target.is_x86 and "flush_subnormals" not in without:
        graph = flush_subnormals(graph)  # elsewhere they take no longer than other numbers
    if target.family != "mcu" and "merge_roundings" not in without:
        graph = merge_roundings(graph)  # Cortex-M has one instruction for each of them
    if target.family != "mcu" and "merge_requantize" not in without:
        graph = merge_requantize(graph)
    if target.unsigned_by_signed and "unsigned_bytes" not in without:
        graph = unsigned_bytes(graph)
    if "pad_channels" not in without:
        graph = pad_channels(graph, lambda x, w: has_dot(x, w, target))
    if target.unsigned_by_signed and "raise_bytes" not in without:
        graph = raise_bytes(graph)
    if target.family == "simd" and "cut_bands" not in without:
        flops = 2.0 * target.fma_per_cycle * target.lanes(4)
        graph = cut_bands(graph, Caches(lambda size: stream_rate(size, target), flops))
    return graph
