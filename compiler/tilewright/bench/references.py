"""Who says what a model's outputs should be: ONNX Runtime for ONNX files, LiteRT for TFLite files.

In: a model file or its bytes, names of inner values to show. Out: a function from inputs to outputs and those values.
Invariant: nothing of ours takes part in it. The reference proper computes node by node, as the file says; the same
library as it comes rearranges sums, and how far the two are apart says what a difference means.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tilewright.bench.litert import Reference, litert_reference
from tilewright.errors import ModelError
from tilewright.frontend.expose import expose
from tilewright.frontend.models import is_tflite
from tilewright.graph.ir import Array


def reference_of(source: Path | bytes, inner: set[str]) -> tuple[Reference | None, str]:
    """Who runs a model of this format, and the name; None stands for our interpreter where that one cannot."""
    if is_tflite(source):
        found, name = litert_reference(source, inner), "LiteRT"
    else:
        found, name = onnxruntime_reference(source, inner), "ONNX Runtime"
    if found is None:
        name = f"the NumPy interpreter ({name} is not installed or lacks an operator)"
    return found, name


def as_it_comes(source: Path | bytes) -> Reference | None:
    """Outputs of the same library in the setting that a user gets without asking, with kernels fused and
    rearranged; None as for `reference_of`."""
    if is_tflite(source):
        return litert_reference(source, set(), plain=False)
    return onnxruntime_reference(source, set(), plain=False)


def onnxruntime_reference(
    source: Path | bytes, inner: set[str], plain: bool = True
) -> Reference | None:
    """Runs the model in ONNX Runtime, unoptimised if `plain`; None where it is not installed or lacks an operator."""
    if importlib.util.find_spec("onnxruntime") is None:
        return None
    ort: Any = importlib.import_module("onnxruntime")
    options = ort.SessionOptions()
    options.log_severity_level = 3
    if plain:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    shown = expose(source, inner)
    state: Any = importlib.import_module("onnxruntime.capi.onnxruntime_pybind11_state")
    try:
        session = ort.InferenceSession(shown.data, options, providers=["CPUExecutionProvider"])
    except (state.Fail, state.InvalidGraph, state.NotImplemented):
        return None
    names = [*shown.outputs, *shown.inner]
    # what is shown in float16 is rounded there, which it would not be inside
    halves = any(o.type == "tensor(float16)" for o in session.get_outputs())
    unshown = expose(source, set()).data if halves else None
    alone = (
        ort.InferenceSession(unshown, options, providers=["CPUExecutionProvider"])
        if unshown
        else None
    )

    def run(inputs: Mapping[str, Array]) -> tuple[list[Array], dict[str, Array]]:
        try:
            results = [np.asarray(v) for v in session.run(names, dict(inputs))]
        except (state.Fail, state.InvalidArgument, state.RuntimeException) as err:
            said = " ".join(str(err).split())[:300]
            raise ModelError(
                f"ONNX Runtime cannot run these inputs ({said}); give values that the model accepts with --input"
            ) from None
        count = len(shown.outputs)
        if alone is not None:
            results[:count] = [np.asarray(v) for v in alone.run(names[:count], dict(inputs))]
        return results[:count], dict(zip(names[count:], results[count:], strict=True))

    return run
