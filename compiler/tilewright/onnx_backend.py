"""tilewright behind ONNX's own backend interface: `onnx.backend.base.Backend`.

In: a ModelProto or NodeProto, arrays. Out: arrays, computed by native code that is compiled at the first
run, when shapes are known. Inputs that decide shapes (axes, pads, shapes, repeats, ...) are compiled in
with the values they have then; other values or shapes at a later run make the model compile anew.
Invariant: nothing is interpreted, except what depends on compiled-in values alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx.backend.base import Backend as OnnxBackend
from onnx.backend.base import BackendRep, namedtupledict

from tilewright.api import CompiledModel
from tilewright.errors import ModelError
from tilewright.frontend.counted import counted
from tilewright.frontend.sequences import member_names
from tilewright.frontend.specialise import specialise_onnx
from tilewright.graph.ir import Array
from tilewright.pipeline import build

#: Most variants (by shapes and compiled-in values) of one model that are kept.
MAX_VARIANTS = 16


@dataclass(frozen=True, slots=True)
class _Variant:
    """The model compiled for some shapes and values of inputs."""

    shapes: Mapping[str, tuple[int, ...]]
    lengths: Mapping[str, int]
    """Of inputs that are sequences; -1 for an empty optional."""
    fixed: Mapping[str, Array]
    layout: Sequence[int]
    model: CompiledModel
    outputs: Sequence[str]
    types: Sequence[np.dtype[Any]]

    def fits(self, inputs: Mapping[str, Array], lengths: Mapping[str, int]) -> bool:
        return (
            self.lengths == lengths
            and all(inputs[n].shape == s for n, s in self.shapes.items())
            and all(
                inputs[n].dtype == v.dtype and inputs[n].tobytes() == v.tobytes()
                for n, v in self.fixed.items()
            )
        )


class PreparedModel(BackendRep):
    """A model that compiles itself for what it is run on."""

    def __init__(self, model: onnx.ModelProto, target: str = "host", threads: int = 1) -> None:
        stored = {t.name for t in model.graph.initializer}
        self.model = model
        self.target = target
        self.threads = threads
        self.inputs = [str(i.name) for i in model.graph.input if i.name not in stored]
        self.outputs = [str(o.name) for o in model.graph.output]
        self._variants: list[_Variant] = []

    def run(self, inputs: Any, **kwargs: Any) -> tuple[Any, ...]:
        """Run on arrays in input order, or by name; results in output order, also by name.

        Raises `ModelError` for a model that is not supported or inputs that do not fit it.
        """
        given, lengths = self._named(inputs)
        variant = next((v for v in self._variants if v.fits(given, lengths)), None)
        if variant is None:
            variant = self._compiled(given, lengths)
            self._variants = [variant, *self._variants][:MAX_VARIANTS]
        results = variant.model(*(given[t.name] for t in variant.model.inputs))
        # types that only store values come as their bits
        typed = [r.view(t) for r, t in zip(results, variant.types, strict=True)]
        by_name = dict(zip(variant.outputs, typed, strict=True))
        for name, (count, axis) in counted(variant.outputs).items():
            by_name[name] = by_name[name][(slice(None),) * axis + (slice(int(by_name[count])),)]
        own = _gathered([by_name[name] for name in variant.outputs], variant.layout)
        return tuple(namedtupledict("Outputs", self.outputs)(*own))

    @property
    def fixed(self) -> tuple[str, ...]:
        """The inputs that the last compilation fixed to their values."""
        return tuple(self._variants[0].fixed) if self._variants else ()

    @property
    def constant(self) -> bool:
        """Whether the last compilation fixed every input, so that the results are constants."""
        return bool(self._variants) and 0 < len(self.inputs) == len(self.fixed)

    def _named(self, inputs: Any) -> tuple[dict[str, Array], dict[str, int]]:
        """Arrays by name, members of sequences included, and the lengths of those."""
        if isinstance(inputs, Mapping):
            given: Mapping[str, Any] = inputs
        else:
            items: Sequence[Any] = inputs if isinstance(inputs, list | tuple) else [inputs]
            if len(items) > len(self.inputs):
                raise ModelError(f"the model has {len(self.inputs)} inputs, got {len(items)}")
            given = dict(zip(self.inputs, items, strict=False))
        out: dict[str, Array] = {}
        lengths: dict[str, int] = {}
        for name, value in given.items():
            if value is None or isinstance(value, list):
                members = value or []
                lengths[name] = -1 if value is None else len(members)
                arrays = map(np.asarray, members)
                out.update(zip(member_names(name, len(members)), arrays, strict=True))
                continue
            if not isinstance(value, np.ndarray | np.generic):
                kind = type(value).__name__
                raise ModelError(f"input `{name}` is a {kind}, only tensors are supported")
            out[name] = np.asarray(value)
        return out, lengths

    def _compiled(self, inputs: Mapping[str, Array], lengths: Mapping[str, int]) -> _Variant:
        special = specialise_onnx(self.model, inputs, lengths)
        graph = special.graph
        types = [graph.types[o].dtype.numpy for o in graph.outputs]
        model = CompiledModel(build(graph, self.target), self.threads)
        shapes = {n: a.shape for n, a in inputs.items()}
        return _Variant(shapes, lengths, special.fixed, special.layout, model, graph.outputs, types)


def _gathered(values: Sequence[Array], layout: Sequence[int]) -> list[Any]:
    """The model's outputs: tensors, sequences as lists, None for empty optionals."""
    left = iter(values)
    return [
        next(left) if count == -2 else None if count == -1 else [next(left) for _ in range(count)]
        for count in layout
    ]


class Backend(OnnxBackend):
    """`tilewright.onnx_backend.prepare(model).run(inputs)`, as `onnx.backend.base` describes it."""

    @classmethod
    def supports_device(cls, device: str) -> bool:
        """Only the CPU of this machine runs code in this process."""
        return device.partition(":")[0] == "CPU"

    @classmethod
    def prepare(cls, model: onnx.ModelProto, device: str = "CPU", **kwargs: Any) -> PreparedModel:
        """A model ready to run; `target` and `threads` as in `tilewright.compile`. Raises `ModelError`."""
        if not cls.supports_device(device):
            raise ModelError(f"there is no backend for the device {device}: use CPU")
        return PreparedModel(model, kwargs.get("target", "host"), kwargs.get("threads", 1))

    @classmethod
    def run_model(
        cls, model: onnx.ModelProto, inputs: Any, device: str = "CPU", **kwargs: Any
    ) -> tuple[Any, ...]:
        """Compile and run once."""
        return cls.prepare(model, device, **kwargs).run(inputs)

    @classmethod
    def run_node(
        cls,
        node: onnx.NodeProto,
        inputs: Any,
        device: str = "CPU",
        outputs_info: Any = None,
        **kwargs: Any,
    ) -> tuple[Any, ...]:
        """Compile and run one node on arrays (in order; None where an optional input is absent)."""
        kinds = onnx.helper.np_dtype_to_tensor_dtype
        arrays = {
            str(n): np.asarray(a)
            for n, a in zip(node.input, inputs, strict=True)
            if n and a is not None
        }
        infos = [
            onnx.helper.make_tensor_value_info(n, kinds(a.dtype), a.shape)
            for n, a in arrays.items()
        ]
        results = [onnx.ValueInfoProto(name=o) for o in node.output if o]
        graph = onnx.helper.make_graph([node], "node", infos, results)
        opset = kwargs.pop("opset_version", onnx.defs.onnx_opset_version())
        model = onnx.helper.make_model(
            graph, opset_imports=[onnx.helper.make_opsetid(node.domain, opset)]
        )
        return cls.run_model(model, arrays, device, **kwargs)


prepare = Backend.prepare
run_node = Backend.run_node
run_model = Backend.run_model
supports_device = Backend.supports_device
is_compatible = Backend.is_compatible
