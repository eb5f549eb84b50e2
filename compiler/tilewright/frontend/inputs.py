"""Types of a model's inputs.

In: the declared inputs of an ONNX graph, and shapes that the user gives. Out: static tensor types.
Invariant: dims of one symbolic name agree over all inputs; a dim that nobody fixes is 1, and says so.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

import onnx

from tilewright.errors import ModelError
from tilewright.frontend import limits
from tilewright.frontend.tensors import element_type
from tilewright.graph.ir import TensorType

Shapes = Mapping[str, Sequence[int]]


def input_types(
    infos: Sequence[onnx.ValueInfoProto], shapes: Shapes, notify: Callable[[str], None]
) -> dict[str, TensorType]:
    """Type of each input by name; `ModelError` for a shape that contradicts the model.

    A dim of `shapes` fixes every other dim of the same symbolic name; -1 leaves it to the model.
    """
    _check_names(infos, shapes)
    bound: dict[str, int] = {}
    for info in infos:
        _bind(info, shapes.get(info.name), bound)
    return {str(info.name): _type(info, shapes.get(info.name), bound, notify) for info in infos}


def _check_names(infos: Sequence[onnx.ValueInfoProto], shapes: Shapes) -> None:
    names = [str(i.name) for i in infos]
    for name in names:
        if not name:
            raise ModelError("an input of the model has no name: the file is damaged")
        if names.count(name) > 1:
            raise ModelError(f"input `{name}` is defined twice: the file is damaged")
    extra = sorted(set(shapes) - set(names))
    if extra:
        symbols = sorted(
            {d for dims in declared_dims(infos).values() for d in map(str, dims) if _named(d)}
        )
        also = f" (its symbolic dimensions: {', '.join(symbols)})" if symbols else ""
        raise ModelError(
            f"--shape names `{extra[0]}`, but the model's inputs are: {', '.join(sorted(names))}{also}"
        )


def _bind(info: onnx.ValueInfoProto, given: Sequence[int] | None, bound: dict[str, int]) -> None:
    """Remember what the given shape makes of symbolic dims."""
    kind = info.type.WhichOneof("value")
    if kind != "tensor_type":
        raise ModelError(
            f"input `{info.name}` is a {kind or 'value without a type'}, only tensors are supported"
        )
    t = info.type.tensor_type
    if given is None:
        return
    shown = f"--shape {info.name}={','.join(map(str, given))}"
    if any(n < -1 for n in given):
        raise ModelError(f"{shown}: a dimension is negative")
    if not t.HasField("shape"):
        return
    if len(given) != len(t.shape.dim):
        raise ModelError(f"{shown} has {len(given)} dims, the input has {len(t.shape.dim)}")
    for i, (want, d) in enumerate(zip(given, t.shape.dim, strict=True)):
        if want == -1:
            continue
        if d.dim_value > 0 and d.dim_value != want:
            raise ModelError(f"{shown}: the model fixes dimension {i} to {d.dim_value}")
        if _symbol(d) and bound.setdefault(_symbol(d), want) != want:
            raise ModelError(
                f"{shown}: dimension `{d.dim_param}` is already {bound[d.dim_param]} in another input"
            )


def _type(
    info: onnx.ValueInfoProto,
    given: Sequence[int] | None,
    bound: Mapping[str, int],
    notify: Callable[[str], None],
) -> TensorType:
    what = f"input `{info.name}`"
    t = info.type.tensor_type
    dtype = element_type(t.elem_type, what)
    if not t.HasField("shape"):
        if given is None or -1 in given:
            raise ModelError(f"{what} has no shape: give one with --shape {info.name}=...")
        return TensorType(dtype, limits.check_shape(given, what))
    shape: list[int] = []
    for i, d in enumerate(t.shape.dim):
        if d.dim_value < -1:
            raise ModelError(
                f"{what} has the negative dimension {d.dim_value}: the file is damaged"
            )
        if d.dim_value > 0:
            shape.append(int(d.dim_value))
        elif given is not None and given[i] != -1:
            shape.append(int(given[i]))
        elif _symbol(d) in bound:
            shape.append(bound[_symbol(d)])
        else:
            notify(
                f"{what}: dimension `{d.dim_param or i}` is symbolic, using 1 "
                f"(set it with --shape {info.name}=...)"
            )
            shape.append(1)
    return TensorType(dtype, limits.check_shape(shape, what))


def _symbol(d: onnx.TensorShapeProto.Dimension) -> str:
    """The name that ties a dim to others; empty for `?`, `None` and the like, which name nothing."""
    name = str(d.dim_param)
    return name if _named(name) else ""


def _named(dim: str) -> bool:
    return dim != "None" and re.match(r"[A-Za-z_]", dim) is not None


def declared_dims(infos: Sequence[onnx.ValueInfoProto]) -> dict[str, tuple[int | str, ...]]:
    """Dims of each input as the model states them: numbers, symbolic names, -1 for what is neither."""
    out: dict[str, tuple[int | str, ...]] = {}
    for info in infos:
        dims = info.type.tensor_type.shape.dim
        out[str(info.name)] = tuple(
            int(d.dim_value) if d.dim_value > 0 else _symbol(d) or -1 for d in dims
        )
    return out
