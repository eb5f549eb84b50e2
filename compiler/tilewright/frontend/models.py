"""Model files of all formats: the format is told from the first bytes, then by the name.

In: a path, bytes or a ModelProto. Out: a `Graph`, or what keeps the model from compiling.
Invariant: a foreign file gives a `Graph` or a `ModelError`, nothing else.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx

from tilewright.frontend.inputs import Shapes
from tilewright.frontend.onnx import Source, examine_onnx, load_onnx, onnx_input_dims
from tilewright.frontend.problems import Findings
from tilewright.graph.ir import Graph


def is_tflite(source: Source) -> bool:
    """Whether this is a TFLite file: bytes 4 to 7 are `TFL3`, or it is called .tflite."""
    if isinstance(source, onnx.ModelProto):
        return False
    if isinstance(source, bytes):
        return source[4:8] == b"TFL3"
    path = Path(source)
    try:
        with path.open("rb") as f:
            return f.read(8)[4:8] == b"TFL3" or path.suffix.lower() == ".tflite"
    except (OSError, ValueError):
        return path.suffix.lower() == ".tflite"


def load_model(
    source: Source, shapes: Shapes | None = None, notify: Callable[[str], None] = lambda m: None
) -> Graph:
    """Import a model; `shapes` fixes input shapes by name, and `notify` says what else was assumed.
    Raises `UnsupportedError` that lists every unsupported node, or `ModelError` for a broken file."""
    if is_tflite(source):
        from tilewright.frontend.tflite.load import load_tflite

        assert not isinstance(source, onnx.ModelProto)
        return load_tflite(source, shapes, notify)
    return load_onnx(source, shapes, notify)


def examine_model(source: Source, shapes: Shapes | None = None) -> Findings:
    """Everything in the file that keeps the model from compiling, all at once. Raises nothing."""
    if is_tflite(source):
        from tilewright.frontend.tflite.load import examine_tflite

        assert not isinstance(source, onnx.ModelProto)
        return examine_tflite(source, shapes)
    return examine_onnx(source, shapes)


def input_dims(source: Source) -> dict[str, tuple[int | str, ...]]:
    """Dims of a model's inputs as the file states them: numbers, symbolic names, -1 where there is neither.
    Raises `ModelError` for a broken file."""
    if is_tflite(source):
        from tilewright.frontend.tflite.load import tflite_input_dims

        assert not isinstance(source, onnx.ModelProto)
        return tflite_input_dims(source)
    return onnx_input_dims(source)
