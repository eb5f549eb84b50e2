"""tilewright: an ahead-of-time tensor compiler for edge devices.

import tilewright
model = tilewright.compile("model.onnx")           # for this machine, in this process
outputs = model(array)
tilewright.tune("model.onnx", minutes=5)           # later `compile`s are faster
model.save("out/")                                 # .o .a .so .h manifest.json example.c
tilewright.load("out/")(array)                     # no compiler needed
"""

from tilewright.api import CompiledModel, compile, load, tune
from tilewright.errors import (
    ArtifactError,
    ModelError,
    TargetError,
    TilewrightError,
    ToolchainError,
    UnsupportedError,
)
from tilewright.runtime.model import Model, TensorSpec
from tilewright.schedule.target import Target

__all__ = [
    "ArtifactError",
    "CompiledModel",
    "Model",
    "ModelError",
    "Target",
    "TargetError",
    "TensorSpec",
    "TilewrightError",
    "ToolchainError",
    "UnsupportedError",
    "compile",
    "load",
    "tune",
]
