"""The text of kernels, unscheduled and scheduled, as it was when a person last looked at it.

After a change that is meant to be: `TILEWRIGHT_UPDATE_GOLDEN=1 python -m pytest tests/golden`, then
read the difference before committing it.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from tilewright.graph.fuse import fuse
from tilewright.graph.ir import Graph, Node, type_of
from tilewright.graph.layout import assign_layouts
from tilewright.graph.text import parse, to_text
from tilewright.loop.passes.specialize_tails import specialize_tails
from tilewright.loop.text import to_text as loop_text
from tilewright.lower import lower_group
from tilewright.registry import operator
from tilewright.schedule.target import load_target
from tilewright.schedule.templates import injective
from tilewright.schedule.trace import apply

HERE = Path(__file__).parent

CASES: dict[str, tuple[str, list[tuple[int, ...]], int, dict[str, object]]] = {
    # name: operator, input shapes, how many leading inputs are not constants, attributes
    "matmul": ("matmul", [(15, 24), (24, 40), (40,)], 1, {}),
    "conv2d": (
        "conv2d", [(1, 5, 8, 9), (20, 5, 3, 3), (20,)], 1,
        {"strides": (1, 1), "pads": (1, 1, 1, 1), "dilations": (1, 1), "group": 1},
    ),
    "depthwise_conv2d": (
        "depthwise_conv2d", [(1, 20, 7, 7), (20, 1, 3, 3), (20,)], 1,
        {"strides": (2, 2), "pads": (1, 1, 1, 1), "dilations": (1, 1)},
    ),
    "softmax": ("softmax", [(3, 70)], 1, {"axis": 1}),
    "reduce_mean": ("reduce_mean", [(1, 20, 6, 6)], 1, {"axes": (2, 3), "keepdims": True}),
    "add": ("add", [(3, 33), (33,)], 2, {}),
}  # fmt: skip


def single(name: str) -> Graph:
    """A graph of one operator."""
    op, shapes, variable, attrs = CASES[name]
    arrays = [np.ones(s, np.float32) for s in shapes]
    g = Graph(name, [f"x{i}" for i in range(variable)], ["y"])
    g.types = {f"x{i}": type_of(a) for i, a in enumerate(arrays[:variable])}
    inputs = [*g.inputs, *(g.add_constant("w", a) for a in arrays[variable:])]
    g.types["y"] = operator(op).infer([g.types[i] for i in inputs], attrs)[0]  # type: ignore[arg-type]
    g.nodes = [Node(name, op, tuple(inputs), ("y",), attrs)]  # type: ignore[arg-type]
    return g


@pytest.mark.parametrize("target", ["x86-64-v3", "x86-64-v4"])
@pytest.mark.parametrize("name", CASES)
def test_kernel_text(name: str, target: str) -> None:
    g = single(name)
    place = assign_layouts(g)
    group = next(grp for grp in fuse(place) if grp.anchor.op == CASES[name][0])
    raw = lower_group(place, group).kernel
    choose = operator(group.anchor.op).schedule or injective
    trace = choose(raw, load_target(target))
    text = "\n".join(
        [
            loop_text(raw),
            *map(str, trace),
            "",
            loop_text(specialize_tails(apply(raw, trace))),
        ]
    )
    compare(HERE / f"{name}.{target}.txt", text)


def test_graph_text() -> None:
    g = single("conv2d")
    text = to_text(g)
    assert parse(text, g.constants).nodes == g.nodes
    compare(HERE / "conv2d.graph.txt", text)


def compare(path: Path, text: str) -> None:
    if os.environ.get("TILEWRIGHT_UPDATE_GOLDEN"):
        path.write_text(text, encoding="utf-8")
    assert path.read_text(encoding="utf-8") == text, (
        f"{path.name} differs: see this file's docstring"
    )
