"""Models whose shapes depend on run-time values, imported for given values of those inputs.

In: a model, and a value for each of its inputs. Out: a `Graph` in which as few inputs as possible are
constants: those that a node needs to know at compile time (axes, shapes, pads, repeats, ...).
Invariant: the graph computes what the model does for every input that agrees with the constants.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tilewright.errors import ModelError, UnsupportedError
from tilewright.frontend.halves import widen_halves
from tilewright.frontend.importer import Importer
from tilewright.frontend.reading import Source, folder_of, name_of, read_model
from tilewright.graph.ir import Array, Graph


@dataclass(frozen=True, slots=True)
class Specialised:
    """A graph without the inputs `fixed`, whose values are compiled in. `layout`: per output of the model
    how many of the graph's it becomes, as a sequence; -1 for an empty optional, -2 for a tensor."""

    graph: Graph
    fixed: Mapping[str, Array]
    layout: Sequence[int]


def specialise_onnx(
    source: Source, inputs: Mapping[str, Array], lengths: Mapping[str, int]
) -> Specialised:
    """Import a model for the shapes of `inputs` and, where nodes ask for them, for their values.

    `lengths`: how many members sequences have, which are among `inputs` under `sequences.member_names`; -1 for
    an empty optional.

    Raises `UnsupportedError` for nodes that are not supported whatever the values are, `ModelError` for a
    broken file or an input of the wrong type.
    """
    model = read_model(source)
    shapes = {name: array.shape for name, array in inputs.items()}
    fixed: dict[str, Array] = {}
    while True:
        importer = Importer(model, folder_of(source), name_of(source), shapes, lambda m: None)
        importer.fixed, importer.lengths = fixed, lengths
        graph = importer.run()
        for name in graph.inputs:
            if name not in inputs:
                raise ModelError(
                    f"input `{name}` is missing: give one array per input of the model"
                )
            if graph.types[name].dtype.numpy != inputs[name].dtype:
                raise ModelError(f"input `{name}` is {graph.types[name]}, got {inputs[name].dtype}")
        if not importer.problems:
            return Specialised(widen_halves(graph), fixed, importer.layout)
        more = importer.undecided.intersection(inputs)
        if not more:
            problems = importer.problems
            if problems[0].broken:
                raise ModelError(str(problems[0]))
            raise UnsupportedError([str(p) for p in problems if not p.broken])
        fixed = {**fixed, **{name: inputs[name] for name in sorted(more)}}
