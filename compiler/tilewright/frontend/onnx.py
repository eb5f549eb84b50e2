"""ONNX -> graph IR.

In: a path, bytes or a ModelProto (of any opset). Out: a `Graph` with static shapes.
Operators import themselves (`Operator.onnx`); bytes become a model in `reading.py`, the walk over it is in
`importer.py`, what vanishes on import in `structural.py`, what nests graphs in `nested.py`.
Invariant: a foreign file gives a `Graph` or a `ModelError`, nothing else. Whatever depends on
constants alone is folded at once, so shape arithmetic never reaches the graph.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import onnx

from tilewright.errors import ModelError, TilewrightError, UnsupportedError
from tilewright.frontend import limits
from tilewright.frontend.halves import widen_halves
from tilewright.frontend.importer import Importer
from tilewright.frontend.inference import inferred
from tilewright.frontend.inputs import Shapes, declared_dims, input_types
from tilewright.frontend.problems import Findings, Problem, sentence
from tilewright.frontend.reading import Source, folder_of, name_of, read_model
from tilewright.frontend.tensors import element_type
from tilewright.graph.ir import Graph, TensorType

__all__ = [
    "Findings",
    "Problem",
    "Source",
    "check_onnx",
    "examine_onnx",
    "load_onnx",
    "onnx_input_dims",
]


def load_onnx(
    source: Source, shapes: Shapes | None = None, notify: Callable[[str], None] = lambda m: None
) -> Graph:
    """Import a model; `shapes` fixes input shapes by name, other unknown dims become 1 (and
    `notify` says so). Raises `UnsupportedError` that lists every unsupported node, or `ModelError`
    for a broken file."""
    model = read_model(source)
    importer = Importer(model, folder_of(source), name_of(source), shapes or {}, notify)
    try:
        graph = importer.run()
    except ModelError as err:
        raise ModelError(sentence(str(err))) from None
    problems = importer.problems
    if problems and problems[0].broken:
        raise ModelError(str(problems[0]))
    if problems:
        raise UnsupportedError([str(p) for p in problems if not p.broken])
    return widen_halves(graph)


def onnx_input_dims(source: Source) -> dict[str, tuple[int | str, ...]]:
    """Dims of a model's inputs as the file states them: numbers, symbolic names, -1 where there is neither.

    Raises `ModelError` for a broken file."""
    graph = read_model(source).graph
    known = {t.name for t in graph.initializer}
    return declared_dims([i for i in graph.input if i.name not in known])


def check_onnx(source: Source, shapes: Shapes | None = None) -> list[Problem]:
    """Everything in the file that keeps the model from compiling, all at once."""
    return list(examine_onnx(source, shapes).problems)


def examine_onnx(source: Source, shapes: Shapes | None = None) -> Findings:
    """Like `check_onnx`, with the nodes that could not be checked.

    Types behind a node that cannot be imported are those that the file states or that ONNX's own shape
    inference finds. Raises nothing.
    """
    try:
        model = read_model(source)
        plain = Importer(model, folder_of(source), name_of(source), shapes or {}, lambda m: None)
        plain.run()
        if not plain.problems:
            return Findings([])
        if any(p.broken for p in plain.problems):  # repair comes before what could be compiled then
            return Findings(plain.problems, plain.unchecked)
        types = _inferred_types(model, shapes or {})
        again = Importer(
            model, folder_of(source), name_of(source), shapes or {}, lambda m: None, types.get
        )
        again.run()
        return Findings(again.problems, again.unchecked)
    except TilewrightError as err:
        return Findings([Problem("model", "", str(err), "", broken=True)])


# ---------------------------------------------------------------- types behind a problem


def _inferred_types(model: onnx.ModelProto, shapes: Shapes) -> Mapping[str, TensorType]:
    """Static types of inner values as ONNX infers them; those it cannot find are left out."""
    known = {t.name for t in model.graph.initializer}
    fixed = onnx.ModelProto()
    fixed.CopyFrom(model)
    infos = [i for i in fixed.graph.input if i.name not in known]
    types = input_types(infos, shapes, lambda m: None)
    for info in infos:
        del info.type.tensor_type.shape.dim[:]
        for n in types[info.name].shape:
            info.type.tensor_type.shape.dim.add().dim_value = n
    fixed = inferred(fixed)
    out: dict[str, TensorType] = {}
    for info in (*fixed.graph.value_info, *fixed.graph.output):
        t = info.type.tensor_type
        dims = [d.dim_value for d in t.shape.dim]
        if not t.HasField("shape") or any(not d.HasField("dim_value") for d in t.shape.dim):
            continue
        try:
            shape = limits.check_shape(dims, info.name)
            out[info.name] = TensorType(element_type(t.elem_type, info.name), shape)
        except ModelError:
            continue
    return out
