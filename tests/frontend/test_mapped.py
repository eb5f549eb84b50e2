"""Scans that carry nothing: one computation with a dim in front; others are unrolled as before."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx.helper as oh
import onnxruntime
import pytest

from tilewright.frontend.onnx import load_onnx
from tilewright.graph import interp
from tilewright.graph.ir import Graph

F = onnx.TensorProto.FLOAT
#: Rows of what is walked, and of the other operand.
ROWS, OTHERS, WIDTH = 40, 3, 4


def _info(name: str, *shape: int) -> onnx.ValueInfoProto:
    return oh.make_tensor_value_info(name, F, shape)


def _scan(nodes: list[onnx.NodeProto], results: list[str], state: str, **attrs: Any) -> bytes:
    """A model that walks `rows`; the body has state `s` (next: `state`) and a row `r`, and gives `results`."""
    constants = [
        oh.make_tensor("axes", onnx.TensorProto.INT64, [1], [1]),
        oh.make_tensor("w", F, [4, 2], np.arange(8.0)),
    ]
    body = oh.make_graph(
        [*nodes, oh.make_node("Identity", [state], ["after"])], "body",
        [_info("s", OTHERS, WIDTH), _info("r", WIDTH)],
        [_info("after", OTHERS, WIDTH), *(oh.make_empty_tensor_value_info(r) for r in results)],
        constants,
    )  # fmt: skip
    node = oh.make_node(
        "Scan",
        ["x", "rows"],
        ["last", *(f"y_{r}" for r in results)],
        body=body,
        num_scan_inputs=1,
        **attrs,
    )
    outputs = [
        _info("last", OTHERS, WIDTH),
        *(oh.make_empty_tensor_value_info(f"y_{r}") for r in results),
    ]
    shape = (WIDTH, ROWS) if attrs.get("scan_input_axes") == [1] else (ROWS, WIDTH)
    graph = oh.make_graph([node], "g", [_info("x", OTHERS, WIDTH), _info("rows", *shape)], outputs)
    model = oh.make_model(graph, opset_imports=[oh.make_opsetid("", 18)], ir_version=9)
    return model.SerializeToString()


def _right(model: bytes) -> Graph:
    """The imported graph, whose results are those of ONNX Runtime."""
    g = load_onnx(model)
    rng = np.random.default_rng(0)
    feed = {n: rng.standard_normal(g.types[n].shape).astype(np.float32) for n in g.inputs}
    wanted = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"]).run(None, feed)
    got = interp.run(g, feed)
    for name, w in zip(g.outputs, wanted, strict=True):
        np.testing.assert_allclose(got[name], w, rtol=1e-5, atol=1e-6)
    return g


_DISTANCE = [
    oh.make_node("Sub", ["s", "r"], ["d"]), oh.make_node("Abs", ["d"], ["a"]),
    oh.make_node("ReduceSum", ["a", "axes"], ["sum"], keepdims=0),
]  # fmt: skip


@pytest.mark.parametrize("attrs", [{}, {"scan_input_axes": [1]}, {"scan_output_axes": [1]}])
def test_distances_to_all_rows_are_one_computation(attrs: dict[str, Any]) -> None:
    assert len(_right(_scan(_DISTANCE, ["sum"], "s", **attrs)).nodes) < ROWS / 4


def test_what_does_not_depend_on_the_row_is_repeated() -> None:
    nodes = [oh.make_node("Exp", ["s"], ["e"]), oh.make_node("Mul", ["e", "r"], ["m"]),
             oh.make_node("MatMul", ["m", "w"], ["p"]), oh.make_node("Transpose", ["p"], ["t"], perm=[1, 0])]  # fmt: skip
    assert len(_right(_scan(nodes, ["t", "e"], "s")).nodes) < ROWS / 4


def test_states_that_change_and_what_has_no_lifted_form_are_unrolled() -> None:
    running = [oh.make_node("Add", ["s", "r"], ["total"])]
    sorted_ = [
        oh.make_node("Add", ["s", "r"], ["total"]),
        oh.make_node("CumSum", ["total", "axis"], ["c"]),
    ]
    axis = oh.make_node("Constant", [], ["axis"], value_int=1)
    assert len(_right(_scan(running, ["total"], "total")).nodes) > ROWS
    assert len(_right(_scan([axis, *sorted_], ["c"], "s")).nodes) > ROWS
    assert len(_right(_scan(_DISTANCE, ["sum"], "s", scan_input_directions=[1])).nodes) > ROWS
