"""From bytes to a parsed ONNX file that is safe to walk.

In: a path, bytes or a ModelProto. Out: a ModelProto, external data left where it is.
Invariant: every string in it is text (protobuf hands out bytes where a file's text is not UTF-8), and
functions do not expand without bound.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx
from google.protobuf.message import DecodeError, Message

from tilewright.errors import ModelError
from tilewright.frontend import limits
from tilewright.frontend.order import subgraphs

Source = str | Path | bytes | onnx.ModelProto
Functions = Mapping[tuple[str, str, str], onnx.FunctionProto]


def folder_of(source: Source) -> Path | None:
    """Where external data may lie."""
    return Path(source).parent if isinstance(source, str | Path) else None


def name_of(source: Source) -> str:
    """A C identifier for the model."""
    stem = Path(source).stem if isinstance(source, str | Path) else "model"
    name = re.sub(r"\W", "_", stem, flags=re.ASCII)
    return f"m_{name}" if not name or name[0].isdigit() else name


def read_model(source: Source) -> onnx.ModelProto:
    """The parsed file; `ModelError` if it is not an ONNX file."""
    if isinstance(source, onnx.ModelProto):
        model, shown = source, "the model"
    else:
        shown = "the model" if isinstance(source, bytes) else str(source)
        data = source if isinstance(source, bytes) else _read_file(Path(source))
        if not data:
            raise ModelError(f"{shown} is empty: export or download it again")
        model = onnx.ModelProto()
        try:
            model.ParseFromString(data)
        except DecodeError:
            raise ModelError(
                f"{shown} is not an ONNX file or is truncated: export or download it again"
            ) from None
    if not model.HasField("graph"):
        raise ModelError(f"{shown} has no graph: it is truncated, or not an ONNX file")
    _check_text(model)
    return model


def functions_of(model: onnx.ModelProto) -> Functions:
    """The model's own functions by domain, name and overload, once their expansion is known finite."""
    functions = {(f.domain, f.name, f.overload): f for f in model.functions}
    sizes: dict[tuple[str, str, str], int] = {}

    def count(nodes: Any, depth: int) -> int:
        limits.check_depth(depth)
        total = 0
        for n in nodes:
            key = (n.domain, n.op_type, n.overload)
            if key in functions and key not in sizes:
                sizes[key] = count(functions[key].node, depth + 1)
            total += sizes.get(key, 1) + sum(count(g.node, depth + 1) for g in subgraphs(n))
        limits.check_nodes(total)
        return total

    count(model.graph.node, 0)
    return functions


def _read_file(path: Path) -> bytes:
    try:
        if not path.is_file():
            raise ModelError(f"there is no model file {path!s}: check the path")
        size = path.stat().st_size
        if size > limits.MAX_FILE_BYTES:
            raise ModelError(
                f"{path} has {size} bytes, at most {limits.MAX_FILE_BYTES} are possible: store the "
                "weights as external data"
            )
        return path.read_bytes()
    except (OSError, ValueError) as err:
        raise ModelError(f"{path} cannot be read ({err}): check the path") from None


def _check_text(message: Any) -> None:
    """Refuse text that is not UTF-8, anywhere in the file."""
    todo = [message]
    while todo:
        m = todo.pop()
        for field, value in m.ListFields():
            if field.type == field.TYPE_MESSAGE:
                todo += [value] if isinstance(value, Message) else value
            elif field.type == field.TYPE_STRING:
                for text in [value] if isinstance(value, str | bytes) else value:
                    if not isinstance(text, str):
                        raise ModelError(
                            f"the text {text!r} in the file is not UTF-8: the file is damaged"
                        )
