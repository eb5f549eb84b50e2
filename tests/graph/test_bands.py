"""Chains of layers in bands of rows: exact, without copies, where it saves memory traffic."""

from __future__ import annotations

import numpy as np
import pytest
from graph_helpers import Builder
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tilewright.graph.bands import ROWS, cut, layer_of
from tilewright.graph.interp import run
from tilewright.graph.ir import Array, AttrValue, Graph
from tilewright.graph.layout import assign_layouts
from tilewright.graph.passes.cut_bands import Caches, chains, cut_bands
from tilewright.graph.passes.fit_bands import Usage, fit_bands
from tilewright.graph.verify import verify
from tilewright.pipeline import build
from tilewright.schedule.target import load_target
from tilewright.session import Session

#: Everything is worth cutting that does not lie in a few bytes.
TINY = Caches(lambda size: 1.0 if size > 64 else 1e9, 1e12)


class _Layers(Builder):
    """A builder that finds names for itself."""

    def layer(self, op: str, *inputs: str, **attrs: AttrValue) -> str:
        return self.node(op, self.graph.fresh(op), *inputs, **attrs)

    def weights(self, array: Array) -> str:
        return self.const(self.graph.fresh("w"), array)


def _whole(rng: np.random.Generator, *shape: int) -> Array:
    """Numbers whose sums of products are exact in any order."""
    return rng.integers(-3, 4, shape).astype(np.float32)


def _attention(heads: int, length: int, masked: bool) -> Graph:
    """Scores of every pair of rows, their softmax, what it weighs."""
    b = _Layers()
    rng = np.random.default_rng(0)
    q, k, v = (b.input(n, (2, heads, *s)) for n, s in (("q", (length, 4)), ("k", (4, length)), ("v", (length, 3))))  # fmt: skip
    scores = b.layer("matmul", q, k)
    if masked:
        scores = b.layer("add", scores, b.weights(_whole(rng, 2, 1, 1, length)))
    made = b.layer("matmul", b.layer("softmax", scores, axis=3), v)
    return b.done(b.layer("relu", b.layer("transpose", made, perm=(0, 2, 1, 3))))


@pytest.mark.parametrize(
    ("heads", "length", "masked"), [(3, 20, False), (1, 17, True), (4, 16, True)]
)
def test_attention_goes_head_by_head_and_some_rows_at_a_time(
    heads: int, length: int, masked: bool
) -> None:
    graph = _attention(heads, length, masked)
    rng = np.random.default_rng(1)
    arrays = {n: _whole(rng, *graph.types[n].shape) for n in graph.inputs}
    want = run(graph, arrays)
    cut_up = cut_bands(graph, Caches(lambda size: 1e-3 if size > 1024 else 1e9, 1e12))
    verify(cut_up)
    assert len([n for n in cut_up.nodes if n.op == "softmax"]) > heads
    for name, value in run(cut_up, arrays).items():
        assert np.array_equal(value, want[name])
    (chain,) = chains(graph)
    nodes = [n for g in chain for n in g.nodes]
    for rows, parts in ((length, 1), (4, 0), (3, 2)):
        made = cut(graph, nodes, rows, parts if parts < heads else 0)
        verify(made)
        session = Session(build(made, without={"cut_bands"}))
        session.set_inputs(arrays)
        for got, name in zip(session.run(), graph.outputs, strict=True):
            np.testing.assert_allclose(got, want[name], rtol=1e-5, atol=1e-6)


@st.composite
def _graphs(draw: st.DrawFn) -> Graph:
    """A chain of layers over maps, some of which are also added or read again by the next but one."""
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    b = _Layers()
    channels, high = draw(st.integers(1, 5)), draw(st.integers(3, 17))
    value = b.input("x", (draw(st.integers(1, 2)), channels, high, draw(st.integers(2, 6))))
    for _ in range(draw(st.integers(2, 5))):
        kinds = ["conv2d", "depthwise_conv2d", "max_pool2d", "avg_pool2d", "relu", "add", "diamond"]
        kind = draw(st.sampled_from(kinds))
        c, h, w = b.graph.types[value].shape[1:]
        if kind == "relu":
            value = b.layer("relu", value)
        elif kind == "add":
            shape = draw(st.sampled_from([(h, 1), (c, 1, 1), (1, c, h, w), (w,)]))
            value = b.layer("add", value, b.weights(_whole(rng, *shape)))
        elif kind == "diamond":
            value = b.layer("mul", value, b.layer("relu", value))
        else:
            kernel = (draw(st.integers(1, 3)), draw(st.integers(1, 2)))
            attrs: dict[str, AttrValue] = {
                "strides": (draw(st.integers(1, 2)), 1),
                "dilations": (draw(st.integers(1, 2)), 1),
                "pads": tuple(draw(st.integers(0, kernel[i % 2] - 1)) for i in range(4)),
            }
            reach = (kernel[0] - 1) * attrs["dilations"][0] + 1  # type: ignore[index]
            if reach > h or kernel[1] > w:
                continue
            if kind == "conv2d":
                weights = _whole(rng, draw(st.integers(1, 5)), c, *kernel)
                value = b.layer(kind, value, b.weights(weights), group=1, **attrs)
            elif kind == "depthwise_conv2d":
                value = b.layer(kind, value, b.weights(_whole(rng, c, 1, *kernel)), **attrs)
            elif kind == "max_pool2d":
                value = b.layer(kind, value, kernel=kernel, **attrs)
            else:
                value = b.layer(kind, value, kernel=kernel, count_include_pad=False, **attrs)
    return b.done(b.node("relu", "y", value))


@settings(deadline=None, max_examples=150, suppress_health_check=list(HealthCheck))
@given(_graphs(), st.data())
def test_any_chain_in_bands_of_any_height(graph: Graph, data: st.DataObject) -> None:
    """Cut at random, the interpreter finds the same; layouts find a window for everything."""
    x = _whole(np.random.default_rng(1), *graph.types["x"].shape)
    want = run(graph, {"x": x})["y"]
    for groups in chains(graph):
        first = data.draw(st.integers(0, len(groups) - 1))
        end = data.draw(st.integers(first + 1, len(groups)))
        nodes = [n for g in groups[first:end] for n in g.nodes]
        height = graph.types[nodes[-1].outputs[0]].shape[ROWS]
        graph = cut(graph, nodes, data.draw(st.integers(1, height)))
    verify(graph)
    np.testing.assert_array_equal(run(graph, {"x": x})["y"], want)


@settings(deadline=None, max_examples=25, suppress_health_check=list(HealthCheck))
@given(_graphs())
def test_compiled_bands(graph: Graph) -> None:
    x = _whole(np.random.default_rng(1), *graph.types["x"].shape)
    got: list[Array] = []
    for g in (graph, cut_bands(graph, TINY)):
        session = Session(build(g, without={"cut_bands"}))
        session.set_inputs([x])
        got.append(np.array(session.run()[0]))
    np.testing.assert_array_equal(got[0], got[1])


def _block(size: int, channels: int = 8, middle: int = 48) -> Graph:
    """An inverted residual: few channels, many, few."""
    rng = np.random.default_rng(0)
    b = _Layers()
    x = b.input("x", (1, channels, size, size))
    plain: dict[str, AttrValue] = {"strides": (1, 1), "dilations": (1, 1)}
    square: dict[str, AttrValue] = {**plain, "pads": (0, 0, 0, 0), "group": 1}
    x = b.layer(
        "relu", b.layer("conv2d", x, b.weights(_whole(rng, channels, channels, 1, 1)), **square)
    )
    wide = b.layer("conv2d", x, b.weights(_whole(rng, middle, channels, 1, 1)), **square)
    wide = b.layer("relu", wide)
    wide = b.layer(
        "depthwise_conv2d",
        wide,
        b.weights(_whole(rng, middle, 1, 3, 3)),
        pads=(1, 1, 1, 1),
        **plain,
    )
    narrow = b.layer("conv2d", wide, b.weights(_whole(rng, channels, middle, 1, 1)), **square)
    return b.done(
        b.node(
            "relu",
            "y",
            b.conv("last", b.layer("add", narrow, x), b.weights(_whole(rng, 3, channels, 1, 1))),
        )
    )


def test_large_maps_are_cut() -> None:
    """Most of the memory goes, no copy comes."""
    device, graph = load_target("sapphire-rapids"), _block(128)
    whole, cut_up = build(graph, device, without={"cut_bands"}), build(graph, device)
    assert any(s.nodes and "/band1" in s.nodes[0] for s in cut_up.steps)
    assert cut_up.arena_bytes < 0.4 * whole.arena_bytes
    assert sum(s.op == "copy" for s in cut_up.steps) == sum(s.op == "copy" for s in whole.steps)


@pytest.mark.parametrize("target", ["x86-64-v4", "cortex-m4", "cuda-sm80"])
def test_maps_that_a_near_cache_holds_stay(target: str) -> None:
    """So do all maps of devices that have no caches worth it."""
    size = 32 if target == "x86-64-v4" else 64
    program = build(_block(size), load_target(target))
    assert not any("/band" in n for s in program.steps for n in s.nodes)


def test_a_slice_has_the_border_of_what_it_is_cut_from() -> None:
    """Where both begin or end; elsewhere it needs a copy with a border of its own."""
    for first, last, copies in ((0, 4, 1), (2, 8, 1), (0, 8, 0)):
        b = _Layers()
        x = b.conv("c", b.input("x", (1, 3, 8, 8)), b.weights(np.ones((3, 3, 1, 1), np.float32)))
        part = b.layer(
            "slice", x, starts=(0, 1, first, 0), ends=(1, 3, last, 8), steps=(1, 1, 1, 1)
        )
        w = b.weights(np.ones((2, 1, 3, 3), np.float32))
        b.node(
            "depthwise_conv2d", "y", part, w, strides=(1, 1), dilations=(1, 1), pads=(1, 1, 1, 1)
        )
        place = assign_layouts(b.done("y"))
        assert sum(n.op == "copy" for n in place.graph.nodes) == copies + 1  # the input


def test_a_result_that_others_read_ends_a_chain() -> None:
    graph = _block(64)
    assert [[n.op for g in c for n in g.nodes] for c in chains(graph)] == [
        ["conv2d", "relu", "depthwise_conv2d", "conv2d", "add"]
    ]
    wide = next(n for n in graph.nodes if n.op == "depthwise_conv2d")
    graph.outputs += wide.outputs
    assert chains(graph) == []


@settings(deadline=None, max_examples=30, suppress_health_check=list(HealthCheck))
@given(_graphs(), st.integers(0, 100))
def test_a_graph_is_cut_until_it_fits(graph: Graph, share: int) -> None:
    """Or until nothing helps; what it computes stays."""

    def measure(g: Graph) -> Usage:
        sizes = {n.outputs[0]: g.types[n.outputs[0]].bytes for n in g.nodes if n.op != "concat"}
        most = max(sizes.values())
        return Usage(most, {v for v, size in sizes.items() if size == most})

    limit = measure(graph).bytes * share // 100
    made = fit_bands(graph, limit, measure)
    verify(made)
    assert measure(made).bytes <= measure(graph).bytes
    x = _whole(np.random.default_rng(1), *graph.types["x"].shape)
    np.testing.assert_array_equal(run(made, {"x": x})["y"], run(graph, {"x": x})["y"])


def test_an_arena_as_small_as_asked_for() -> None:
    """With the results of the whole model; a limit that cannot be reached is not an error here."""
    graph = _block(48)
    whole = build(graph, arena=1 << 30)
    small = build(graph, arena=whole.arena_bytes // 3)
    assert small.arena_bytes <= whole.arena_bytes // 3
    x = _whole(np.random.default_rng(1), 1, 8, 48, 48)
    got: list[Array] = []
    for program in (whole, small, build(graph, arena=0)):
        session = Session(program)
        session.set_inputs([x])
        got.append(np.array(session.run()[0]))
    assert np.array_equal(got[0], got[1]) and np.array_equal(got[0], got[2])


def test_the_layer_of_a_band() -> None:
    assert layer_of("conv/band12") == ("conv", True)
    assert layer_of("conv/bands") == ("conv/bands", False)
    assert layer_of("conv") == ("conv", False)
