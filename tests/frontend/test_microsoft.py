"""Operators of com.microsoft are checked against a small table of their own; other readers see our reader's model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tilewright.errors import ModelError
from tilewright.frontend.expose import expose, read_proto
from tilewright.frontend.onnx import check_onnx, load_onnx
from tilewright.frontend.schema import MICROSOFT
from tilewright.registry import onnx_importers

MS = "com.microsoft"


def one(op: str, inputs: list[str], tensors: dict[str, Any] | None = None, **attrs: Any) -> Any:
    arrays = {n: numpy_helper.from_array(np.asarray(a), n) for n, a in (tensors or {}).items()}
    graph = helper.make_graph(
        [helper.make_node(op, inputs, ["y"], "it", domain=MS, **attrs)], "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)], list(arrays.values()),
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid(MS, 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=9)


def test_what_the_table_has_is_imported() -> None:
    assert [n.op for n in load_onnx(one("Gelu", ["x"])).nodes] == ["gelu"]
    quantised = one("QuantizeLinear", ["x", "s"], {"s": np.float32(0.1)})
    assert [n.op for n in load_onnx(quantised).nodes] == ["quantize"]


@pytest.mark.parametrize(
    ("made", "says"),
    [
        (one("Gelu", ["x", "x"]), "has 2 inputs, it takes 1"),
        (one("Gelu", [""]), "input 0 is missing"),
        (one("Gelu", ["x"], approximate="tanh"), "`approximate` is not known"),
        (
            one("QuantizeLinear", ["x", "s"], {"s": np.float32(1)}, axis=1.0),
            "is FLOAT, but must be INT",
        ),
    ],
)
def test_what_it_does_not_have_is_refused(made: Any, says: str) -> None:
    (problem,) = check_onnx(made)
    assert problem.node == "it" and says in problem.reason and problem.broken


@pytest.mark.parametrize("op", ["Relu", "Conv", "Pad", "If", "BiasDropout", "Constant"])
def test_the_same_name_elsewhere_is_another_operator(op: str) -> None:
    assert op not in MICROSOFT
    (problem,) = check_onnx(one(op, ["x"]))
    assert f"{MS}::{op} is not supported" in problem.reason


def test_the_table_has_only_what_somebody_imports() -> None:
    from tilewright.frontend.domains import OTHER_DOMAINS
    from tilewright.frontend.qoperator import QOPERATORS

    others = {name for domain, name in OTHER_DOMAINS if domain == MS}
    assert set(MICROSOFT) <= {*onnx_importers(), *QOPERATORS, *others}


# ---------------------------------------------------------------- other readers


def external(folder: Path, location: str) -> Path:
    (folder / "inside.bin").write_bytes(np.arange(8, dtype=np.float32).tobytes())
    w = TensorProto(name="w", data_type=1, dims=[8], data_location=TensorProto.EXTERNAL)
    w.external_data.add(key="location", value=location)
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "w"], ["a"]), helper.make_node("Relu", ["a"], ["y"])], "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)], [w],
    )  # fmt: skip
    path = folder / "model.onnx"
    path.write_bytes(helper.make_model(graph).SerializeToString())
    return path


def test_other_runtimes_get_external_data_through_our_reader(tmp_path: Path) -> None:
    path = external(tmp_path, "inside.bin")
    (w,) = read_proto(path).graph.initializer
    assert numpy_helper.to_array(w).tolist() == list(range(8))
    shown = expose(path, {"a"})
    assert shown.outputs == ("y",) and shown.inner == ("a",)
    assert [o.name for o in onnx.load_from_string(shown.data).graph.output] == ["y", "a"]


def test_other_runtimes_get_nothing_from_outside(tmp_path: Path) -> None:
    folder = tmp_path / "models"
    folder.mkdir()
    (tmp_path / "secret.bin").write_bytes(bytes(32))
    with pytest.raises(ModelError, match="outside the model's folder"):
        read_proto(external(folder, "../secret.bin"))
    with pytest.raises(ModelError, match="truncated"):
        read_proto(b"not a model")
