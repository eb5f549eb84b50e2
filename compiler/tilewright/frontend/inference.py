"""ONNX's own shape inference, kept at a distance: it is C++ that broken files have made crash.

In: a model. Out: the model with inferred types, or as it was.
Invariant: inference runs in a process of its own, with limits on memory and time; whatever becomes of it,
this process goes on.
"""

from __future__ import annotations

import subprocess
import sys

import onnx
from google.protobuf.message import DecodeError

SECONDS = 20
_BYTES = 4 << 30
_PROGRAM = f"""
import sys
try:
    import resource
    resource.setrlimit(resource.RLIMIT_AS, ({_BYTES}, {_BYTES}))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
except ImportError:
    pass
import onnx.shape_inference
model = sys.stdin.buffer.read()
sys.stdout.buffer.write(onnx.shape_inference.infer_shapes(model, data_prop=True))
"""


def inferred(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with the types of inner values that ONNX finds; the model itself where it fails."""
    try:
        done = subprocess.run(
            [sys.executable, "-I", "-c", _PROGRAM], input=model.SerializeToString(),
            capture_output=True, check=False, timeout=SECONDS,
        )  # fmt: skip
    except (OSError, ValueError, subprocess.TimeoutExpired):
        return model
    if done.returncode or not done.stdout:
        return model
    out = onnx.ModelProto()
    try:
        out.ParseFromString(done.stdout)
    except DecodeError:
        return model
    return out
