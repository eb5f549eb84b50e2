"""Schedule spaces: the default is one point of them, other points are legal or refused, never wrong."""

from __future__ import annotations

import random

import pytest
from tune_helpers import GRAPHS, conv_graph, kernel_of, kernels_of

from tilewright.errors import ScheduleError
from tilewright.pipeline import resolve_target
from tilewright.registry import operator
from tilewright.schedule.space import Space
from tilewright.schedule.target import load_target
from tilewright.tune.identity import sum_length
from tilewright.tune.library import default_trace, space_of
from tilewright.tune.measure import Job, measure


@pytest.mark.parametrize("target", ["x86-64-v3", "x86-64-v4", "cortex-a76"])
@pytest.mark.parametrize("graph", GRAPHS)
def test_default_is_a_point(graph: str, target: str) -> None:
    machine = load_target(target)
    found = 0
    for op, raw in kernels_of(GRAPHS[graph](), machine):
        if op is None or op.space is None:
            continue
        space = op.space(raw, machine)
        assert space is not None
        assert space.trace(space.default) == default_trace(op, raw, machine)
        found += 1
    assert found


@pytest.mark.parametrize("graph", GRAPHS)
def test_points_compute_the_same(graph: str) -> None:
    """Random points of every space, run natively against the unscheduled kernel."""
    machine = resolve_target("host")
    rng = random.Random(graph)
    for op, raw in kernels_of(GRAPHS[graph](), machine):
        space = space_of(op, raw, machine)
        if op is None or space is None:
            continue
        traces = []
        for _ in range(40):
            choice = {n: rng.choice(v) for n, v in space.params.items()}
            try:
                traces.append(space.trace(choice))
            except ScheduleError:
                continue
        job = Job(raw, machine, default_trace(op, raw, machine), tuple(traces[:5]),
                  sum_length(raw), rounds=1)  # fmt: skip
        verdicts = [o.verdict for o in measure(job)]
        assert not {"wrong", "illegal"} & set(verdicts), (op.name, verdicts)
        assert verdicts or space.size < 8, op.name


def test_unknown_values_are_refused() -> None:
    op, raw = kernel_of(conv_graph(), "conv2d")
    space = space_of(op, raw, load_target("x86-64-v3"))
    assert space is not None
    with pytest.raises(ScheduleError, match="`lanes` cannot be 7"):
        space.trace({**space.default, "lanes": 7})
    with pytest.raises(ScheduleError, match="no `band`"):
        space.trace({k: v for k, v in space.default.items() if k != "band"})


def test_nearest() -> None:
    space = Space("f", {"a": (1, 2, 8), "b": ("x", "y")}, {"a": 1, "b": "x"}, lambda c: ())
    assert space.nearest({"a": 7, "b": "y"}) == {"a": 8, "b": "y"}
    assert space.nearest({"b": "z", "c": 3}) == {"a": 1, "b": "x"}


def test_operators_without_a_schedule_have_the_injective_space() -> None:
    machine = load_target("x86-64-v3")
    op, raw = kernel_of(conv_graph(), "copy")
    space = space_of(operator("copy"), raw, machine)
    assert op.space is None and space is not None and space.family == "injective"
