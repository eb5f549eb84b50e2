"""Derive the int8 models of tests/data from the float ones: `python docs/derive_int8.py`.

Post-training quantisation by ONNX Runtime: weights per channel and symmetric, activations per tensor, all
signed; calibrated on a few seeded random inputs, so that they check arithmetic and speed, not accuracy.
The pairs at the edges are cut off, so that inputs and outputs are bytes as on a microcontroller.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

DATA = Path(__file__).resolve().parents[1] / "tests" / "data"


class RandomInputs(CalibrationDataReader):
    """Eight seeded standard normal inputs."""

    def __init__(self, model: onnx.ModelProto) -> None:
        rng = np.random.default_rng(0)
        i = model.graph.input[0]
        shape = [d.dim_value or 1 for d in i.type.tensor_type.shape.dim]
        made = [{i.name: rng.standard_normal(shape).astype(np.float32)} for _ in range(8)]
        self.rest = iter(made)

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self.rest, None)


def cut_edges(model: onnx.ModelProto) -> None:
    """Remove the first quantisation and the last dequantisation."""
    g = model.graph
    first = next(n for n in g.node if n.input and n.input[0] == g.input[0].name)
    last = next(n for n in g.node if n.output[0] == g.output[0].name)
    for node, op, edge, inner in (
        (first, "QuantizeLinear", g.input[0], first.output[0]),
        (last, "DequantizeLinear", g.output[0], last.input[0]),
    ):
        if node.op_type != op:
            sys.exit(f"the edge node is {node.op_type}, expected {op}")
        dims = [d.dim_value or 1 for d in edge.type.tensor_type.shape.dim]
        g.node.remove(node)
        edge.CopyFrom(helper.make_tensor_value_info(inner, TensorProto.INT8, dims))


def derive(source: Path) -> Path:
    target = source.with_name(source.name.replace("_fp32_randw", "_int8_qdq"))
    with tempfile.TemporaryDirectory() as folder:
        ready, made = Path(folder) / "ready.onnx", Path(folder) / "made.onnx"
        quant_pre_process(str(source), str(ready), skip_symbolic_shape=True)
        quantize_static(
            str(ready), str(made), RandomInputs(onnx.load(ready)), quant_format=QuantFormat.QDQ,
            per_channel=True, activation_type=QuantType.QInt8, weight_type=QuantType.QInt8,
            extra_options={"ActivationSymmetric": False, "WeightSymmetric": True},
        )  # fmt: skip
        model = onnx.load(made)
        cut_edges(model)
        onnx.checker.check_model(model)
        onnx.save(model, target)
    return target


if __name__ == "__main__":
    for path in sorted(DATA.glob("mlperftiny_*_fp32_randw.onnx")):
        made = derive(path)
        print(made.name, made.stat().st_size)
