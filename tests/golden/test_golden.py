"""The text of kernels, unscheduled and scheduled, as it was when a person last looked at it.

After a change that is meant to be: `TILEWRIGHT_UPDATE_GOLDEN=1 python -m pytest tests/golden`, then
read the difference before committing it.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

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
from tilewright.schedule.templates import gpu, injective
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


#: Large enough for a warp: 16 rows, 8 columns.
CASES_OF_WARPS = {"matmul": [(40, 32), (32, 24), (24,)]}


def single(name: str, dtype: type[np.floating[Any]] = np.float32) -> Graph:
    """A graph of one operator; f16: of the shapes that tensor cores take."""
    op, shapes, variable, attrs = CASES[name]
    shapes = CASES_OF_WARPS[name] if dtype is np.float16 else shapes
    arrays = [np.ones(s, dtype) for s in shapes]
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


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("matmul", np.float32),
        ("matmul", np.float16),
        ("conv2d", np.float32),
        ("softmax", np.float32),
    ],
)
def test_gpu_text(name: str, dtype: type[np.floating[Any]]) -> None:
    """Blocks, threads, shared memory; f16 on tensor cores."""
    place = assign_layouts(single(name, dtype))
    group = next(grp for grp in fuse(place) if grp.anchor.op == CASES[name][0])
    raw = lower_group(place, group).kernel
    trace = gpu.schedule(raw, load_target("cuda-sm80"))
    text = "\n".join([*map(str, trace), "", loop_text(specialize_tails(apply(raw, trace)))])
    compare(HERE / f"{name}.cuda-sm80.{np.dtype(dtype).name}.txt", text)


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
