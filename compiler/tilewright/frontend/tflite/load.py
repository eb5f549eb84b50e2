"""The door of the TFLite frontend.

In: a path or bytes. Out: a `Graph` with static shapes, or what keeps the model from compiling.
Invariant: a foreign file gives a `Graph` or a `ModelError`, nothing else.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tilewright.errors import ModelError, TilewrightError, UnsupportedError
from tilewright.frontend.inputs import Shapes
from tilewright.frontend.problems import Findings, Problem
from tilewright.frontend.reading import name_of
from tilewright.frontend.tflite.importer import Importer, input_names
from tilewright.frontend.tflite.nested import NESTED
from tilewright.frontend.tflite.operators import BYTES, CUSTOM, FLOAT, RECURRENT
from tilewright.frontend.tflite.reading import read_tflite
from tilewright.frontend.tflite.state import VARIABLES
from tilewright.graph.ir import Graph

Source = str | Path | bytes


def load_tflite(
    source: Source, shapes: Shapes | None = None, notify: Callable[[str], None] = lambda m: None
) -> Graph:
    """Import a model; `shapes` fixes input shapes by name, other open dims keep the size that the file
    states (and `notify` says so). Raises `UnsupportedError` that lists every unsupported operator, or
    `ModelError` for a broken file."""
    importer = Importer(read_tflite(source), name_of(source), shapes or {}, notify)
    graph = importer.run()
    problems = importer.problems
    if problems and problems[0].broken:
        raise ModelError(str(problems[0]))
    if problems:
        raise UnsupportedError([str(p) for p in problems if not p.broken])
    return graph


def tflite_input_dims(source: Source) -> dict[str, tuple[int | str, ...]]:
    """Dims of the inputs by name, -1 where the file leaves one open."""
    model = read_tflite(source)
    tensors = model.subgraphs[0].tensors
    return {
        name: tuple(-1 if d in tensors[i].dynamic else n for d, n in enumerate(tensors[i].shape))
        for i, name in input_names(model).items()
    }


def supported() -> list[str]:
    """Names of all builtin operators that some importer takes, and of custom ones, in order."""
    builtins = {*BYTES, *FLOAT, *RECURRENT, *NESTED, *VARIABLES}
    return [*sorted(builtins), *(f"custom {name}" for name in sorted(CUSTOM))]


def examine_tflite(source: Source, shapes: Shapes | None = None) -> Findings:
    """Everything in the file that keeps the model from compiling, all at once. Raises nothing."""
    try:
        importer = Importer(read_tflite(source), name_of(source), shapes or {}, lambda m: None)
        importer.run()
        return Findings(importer.problems, importer.unchecked)
    except TilewrightError as err:
        return Findings([Problem("model", "", str(err), "", broken=True)])
