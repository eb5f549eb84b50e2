"""Layouts, borders, aliasing, fusion and the memory plan, on small graphs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tilewright.core.dtypes import F32
from tilewright.graph import interp
from tilewright.graph.fuse import fuse
from tilewright.graph.ir import Graph, Node, TensorType
from tilewright.graph.layout import assign_layouts
from tilewright.graph.passes import optimize
from tilewright.graph.plan import Allocation, plan_memory
from tilewright.pipeline import build
from tilewright.registry import operator
from tilewright.session import Session

RNG = np.random.default_rng(0)


class G(Graph):
    """A graph with a short way to add nodes."""

    def node(self, op: str, *inputs: str, **attrs: object) -> str:
        types = operator(op).infer([self.types[i] for i in inputs], attrs)  # type: ignore[arg-type]
        out = self.fresh(op)
        self.types[out] = types[0]
        self.nodes.append(Node(out, op, inputs, (out,), attrs))  # type: ignore[arg-type]
        return out

    def weights(self, *shape: int) -> str:
        return self.add_constant("w", RNG.standard_normal(shape).astype(np.float32))

    def conv(self, x: str, channels: int, size: int = 3, stride: int = 1) -> str:
        w = self.weights(channels, self.types[x].shape[1], size, size)
        pad = size // 2
        return self.node(
            "conv2d", x, w, strides=(stride, stride), pads=(pad,) * 4, dilations=(1, 1), group=1
        )


def graph(*shape: int) -> G:
    g = G("g", ["x"], [])
    g.types["x"] = TensorType(F32, shape)
    return g


def check(g: Graph) -> Session:
    """Compiled results agree with the interpreter; returns the session."""
    x = RNG.standard_normal(g.types["x"].shape).astype(np.float32)
    want = interp.run(g, {"x": x})
    session = Session(build(g))
    session.set_inputs([x])
    for name, got in zip(g.outputs, session.run(), strict=True):
        assert np.abs(got - want[name]).max() <= 1e-5 * max(np.abs(want[name]).max(), 1e-9)
    return session


def test_convolutions_are_channels_last_with_a_border() -> None:
    g = graph(1, 3, 9, 10)
    first = g.conv("x", 8)
    second = g.conv(g.node("relu", first), 5)
    g.outputs = [second]
    place = assign_layouts(g)
    middle = place.layouts["relu"]
    assert middle.order == (0, 2, 3, 1)
    assert middle.halo == ((0, 0), (0, 0), (1, 1), (1, 1))
    # the graph's input and output stay as the caller has them
    assert place.storage[place.graph.outputs[0]].strides == (5 * 90, 90, 10, 1)
    check(g)


def test_epilogues_join_their_producer() -> None:
    g = graph(1, 4, 6, 6)
    a = g.conv("x", 4)
    s = g.node("sigmoid", a)
    m = g.node("mul", a, s)
    g.outputs = [g.conv(g.node("add", m, g.node("relu", "x")), 4)]
    place = assign_layouts(g)
    groups = [[n.op for n in group.nodes] for group in fuse(place)]
    assert ["conv2d", "sigmoid", "mul", "add"] in groups
    check(g)


def test_a_value_with_other_readers_is_not_swallowed() -> None:
    g = graph(2, 33)
    a = g.node("exp", "x")
    b = g.node("neg", a)
    g.outputs = [b, g.node("reduce_sum", a, axes=(1,), keepdims=True)]
    groups = fuse(assign_layouts(g))
    assert all(len(group.nodes) == 1 for group in groups)
    check(g)


def test_concatenation_and_views_move_nothing() -> None:
    g = graph(1, 4, 6, 6)
    a, b = g.conv("x", 3), g.conv("x", 5)
    c = g.node("concat", a, b, axis=1)
    part = g.node("slice", c, starts=(0, 2, 0, 0), ends=(1, 7, 6, 6), steps=(1, 1, 1, 1))
    g.outputs = [g.conv(part, 2, size=1)]
    place = assign_layouts(g)
    assert place.storage[a].root == place.storage[b].root == place.storage[part].root == c
    assert {c, part} <= place.aliased
    check(g)


@pytest.mark.parametrize("twice", [False, True])
def test_outputs_may_repeat_inputs_views_and_each_other(twice: bool) -> None:
    g = graph(2, 6)
    y = g.node("neg", "x")
    t = g.node("transpose", y, perm=(1, 0))
    g.outputs = [t, "x", y, *([y] if twice else [])]
    check(g)


def test_pooling_and_convolution_disagree_about_the_border() -> None:
    """Maximum wants -inf around the image, convolution 0: one of them gets a copy."""
    g = graph(1, 4, 8, 8)
    a = g.conv("x", 4)
    pooled = g.node(
        "max_pool2d", a, kernel=(3, 3), strides=(1, 1), pads=(1, 1, 1, 1), dilations=(1, 1)
    )
    g.outputs = [g.node("add", pooled, g.conv(a, 4))]
    check(g)


def test_batch_norm_folds_away() -> None:
    g = graph(1, 3, 5, 5)
    y = g.conv("x", 6)
    params = [
        g.add_constant("p", np.abs(RNG.standard_normal(6)).astype(np.float32)) for _ in range(4)
    ]
    g.outputs = [g.node("relu", g.node("batch_norm", y, *params, epsilon=1e-3))]
    assert [n.op for n in optimize(g).nodes] == ["conv2d", "relu"]
    check(g)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # other work may run beside
@given(
    st.lists(
        st.tuples(st.integers(1, 1000), st.integers(0, 20), st.integers(0, 8)),
        min_size=1,
        max_size=20,
    )
)
def test_live_allocations_never_overlap(items: list[tuple[int, int, int]]) -> None:
    wanted = [Allocation(f"v{i}", n, a, a + d) for i, (n, a, d) in enumerate(items)]
    plan = plan_memory(wanted)
    assert plan.lower_bound <= plan.size <= sum(-(-a.size // 64) * 64 for a in wanted)
    for a in wanted:
        assert plan.offsets[a.name] % 64 == 0 and plan.offsets[a.name] + a.size <= plan.size
        for b in wanted:
            if a.name < b.name and a.start <= b.end and b.start <= a.end:
                la, lb = plan.offsets[a.name], plan.offsets[b.name]
                assert la + a.size <= lb or lb + b.size <= la


def test_the_arena_is_as_small_as_it_can_be() -> None:
    """Greedy by size alone leaves a hole of 17 % in the person detector's."""
    data = Path(__file__).resolve().parents[1] / "data"
    for path in sorted(data.glob("*_int8_qdq.onnx")):
        program = build(path, "cortex-m4")
        assert program.arena_bytes <= program.arena_lower_bound + program.target.align, path.stem
