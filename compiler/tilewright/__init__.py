"""tilewright: an ahead-of-time tensor compiler for edge devices.

import tilewright
model = tilewright.compile("model.onnx")           # for this machine, in this process
outputs = model(array)
tilewright.tune("model.onnx", minutes=5)           # later `compile`s are faster
model.save("out/")                                 # .o .a .so .h manifest.json example.c
tilewright.load("out/")(array)                     # no compiler needed

Names are imported when they are first used: a command that finds its result in the cache needs no compiler.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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

_HOMES = {
    "api": ("CompiledModel", "compile", "load", "tune"),
    "errors": (
        "ArtifactError", "ModelError", "TargetError", "TilewrightError", "ToolchainError",
        "UnsupportedError",
    ),
    "runtime.model": ("Model", "TensorSpec"),
    "schedule.target": ("Target",),
}  # fmt: skip
_HOME = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module `tilewright` has no attribute `{name}`")
    value = getattr(importlib.import_module(f"tilewright.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _Package(ModuleType):
    """`tilewright.tune` is the function, though there is a package of that name: importing the package
    does not replace it."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _HOME and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
