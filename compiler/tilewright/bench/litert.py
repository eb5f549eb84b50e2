"""LiteRT, which runs .tflite files: reference for `verify`, peer for `bench`.

In: a model file or its bytes. Out: a function from inputs to outputs and inner values by our names.
Invariant: the reference is LiteRT's reference kernels (no XNNPACK, nothing optimised), which the format's
specification of quantised operators describes; the peer is LiteRT as it comes.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tilewright.errors import ModelError
from tilewright.graph.ir import Array

#: Inputs by name -> outputs in order, inner values by name.
Reference = Callable[[Mapping[str, Array]], tuple[list[Array], dict[str, Array]]]

PACKAGE = "ai_edge_litert"
_IMAGE = "@nchw"


def installed() -> bool:
    return importlib.util.find_spec(PACKAGE) is not None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hide what the native library says on stderr when it starts."""
    saved = os.dup(2)
    with open(os.devnull, "wb") as sink:
        os.dup2(sink.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(saved, 2)
            os.close(saved)


def open_interpreter(source: Path | bytes, **options: Any) -> Any:
    """An interpreter of LiteRT with its tensors not allocated yet."""
    module: Any = importlib.import_module(f"{PACKAGE}.interpreter")
    model = {"model_content": source} if isinstance(source, bytes) else {"model_path": str(source)}
    kinds = module.OpResolverType
    if options.pop("reference", False):
        options["experimental_op_resolver_type"] = kinds.BUILTIN_REF
    if options.pop("plain", False):
        options["experimental_op_resolver_type"] = kinds.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    with _quiet():
        return module.Interpreter(**model, **options)


def set_inputs(interpreter: Any, inputs: Mapping[str, Array]) -> None:
    """Inputs in the model's order; sizes that differ from the file's are set first."""
    details = interpreter.get_input_details()
    pairs = list(zip(details, inputs.values(), strict=False))
    changed = [(d, a) for d, a in pairs if tuple(d["shape"]) != a.shape]
    for d, a in changed:
        interpreter.resize_tensor_input(d["index"], a.shape)
    with _quiet():
        interpreter.allocate_tensors()
    for d, a in pairs:
        interpreter.set_tensor(d["index"], a)


def _aborts(interpreter: Any) -> bool:
    """Whether a run takes the process with it: tried in a copy of this process."""
    child = os.fork()
    if child == 0:
        try:
            with _quiet():
                interpreter.invoke()
        finally:
            os._exit(0)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


def litert_reference(source: Path | bytes, inner: set[str], plain: bool = True) -> Reference | None:
    """Runs the model in LiteRT's reference kernels, or as it comes if not `plain`; None where it is not installed or
    lacks an operator.

    Where those kernels abort the process (LiteRT 2.3: MEAN of int8), its optimised ones are asked instead.
    Variables of the model keep their values from run to run. Inner values are those of tensors that are
    called like ours, also as [N, C, H, W] where ours is called `name@nchw`.
    """
    if not installed():
        return None
    keep = {"experimental_preserve_all_tensors": True}
    try:
        interpreter = open_interpreter(source, reference=plain, **keep)
    except ValueError:  # an operator that has no reference kernel
        interpreter = open_interpreter(source, plain=True, **keep)
    try:
        with _quiet():
            interpreter.allocate_tensors()
    except RuntimeError:  # a custom operator that only another program brings
        return None
    by_name: dict[str, int] = {}
    for d in interpreter.get_tensor_details():
        by_name.setdefault(str(d["name"]), int(d["index"]))
    wanted = {
        n: by_name[n.removesuffix(_IMAGE)] for n in inner if n.removesuffix(_IMAGE) in by_name
    }
    shapes: list[tuple[int, ...]] = []
    tried = False

    def run(inputs: Mapping[str, Array]) -> tuple[list[Array], dict[str, Array]]:
        nonlocal interpreter, tried
        given = [a.shape for a in inputs.values()]
        if shapes != given:  # allocating anew would reset the variables
            set_inputs(interpreter, inputs)
            shapes[:] = given
        if plain and not tried and _aborts(interpreter):
            interpreter = open_interpreter(source, plain=True, **keep)
            set_inputs(interpreter, inputs)
        tried = True
        for d, a in zip(interpreter.get_input_details(), inputs.values(), strict=False):
            interpreter.set_tensor(d["index"], a)
        try:
            interpreter.invoke()
        except RuntimeError as err:
            said = " ".join(str(err).split())[:300]
            raise ModelError(
                f"LiteRT cannot run these inputs ({said}); give values that the model accepts with --input"
            ) from None
        details = interpreter.get_output_details()
        outputs = [np.asarray(interpreter.get_tensor(d["index"])) for d in details]
        values: dict[str, Array] = {}
        for name, index in wanted.items():
            with contextlib.suppress(ValueError):  # a tensor that has no memory of its own
                value = np.asarray(interpreter.get_tensor(index))
                values[name] = value.transpose(0, 3, 1, 2) if name.endswith(_IMAGE) else value
        return outputs, values

    return run
