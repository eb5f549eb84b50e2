"""The walk over a TFLite model that builds our graph.

In: a `TfliteModel`. Out: a `Graph`, and a list of problems where operators cannot be imported.
Invariant: the walk goes on after a problem, with the types that the file states, so that it reports
everything at once; the graph means something only if there are no problems. Values keep the names of
their tensors where those are free; an image that lies as [N, C, H, W] in the graph is `name@nchw`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from tilewright.errors import ModelError, TilewrightError, UnsupportedError
from tilewright.frontend import limits
from tilewright.frontend.inputs import Shapes
from tilewright.frontend.node import Builder
from tilewright.frontend.problems import MALFORMED, Problem
from tilewright.frontend.tflite.model import Op, Subgraph, Tensor, TfliteModel
from tilewright.frontend.tflite.nested import NESTED
from tilewright.frontend.tflite.node import TO_NHWC, TfliteNode
from tilewright.frontend.tflite.operators import REFUSED, importer, known
from tilewright.frontend.tflite.state import VARIABLES, Variables
from tilewright.graph.ir import Graph, Node, TensorType


@dataclass(slots=True)
class Scope:
    """A subgraph under import: names of values in our graph by tensor index, variables by the index of the
    tensor that holds their handle; `prefix` precedes names."""

    subgraph: Subgraph
    values: dict[int, str]
    prefix: str = ""
    depth: int = 0
    handles: dict[int, str] = field(default_factory=dict[int, str])

    def inner(self, subgraph: Subgraph, node: str, values: dict[int, str]) -> Scope:
        """The scope of a subgraph that operator `node` runs."""
        limits.check_depth(self.depth + 1)
        return Scope(subgraph, values, f"{node}/", self.depth + 1)


class Importer:
    """State of one import."""

    def __init__(
        self,
        model: TfliteModel,
        name: str,
        shapes: Shapes,
        notify: Callable[[str], None],
    ) -> None:
        self.model, self.shapes, self.notify = model, shapes, notify
        self.builder = Builder(Graph(name, [], []), None)
        self.problems: list[Problem] = []
        self.unchecked: list[tuple[str, str]] = []
        self.count = 0
        self.variables = Variables(self.builder.graph)

    # ---- the whole graph

    def run(self) -> Graph:
        """Import the model. Raises `ModelError` if the graph itself is broken."""
        main, graph = self.model.subgraphs[0], self.builder.graph
        if not main.outputs:
            raise ModelError("the model has no outputs: the file is empty or damaged")
        scope = Scope(main, {})
        self.inputs(scope)
        self.ops(scope)
        seen: dict[str, str] = {}
        for k, index in enumerate(main.outputs):
            tensor = main.tensors[index]
            value = self.value(scope, index)
            if value is None:
                if not self.problems:
                    raise ModelError(
                        f"output {k} `{tensor.name}` is not computed by any operator: the file is damaged"
                    )
                continue
            wanted = self.model.signature_outputs.get(index, "") or tensor.name or f"output_{k}"
            self.output(wanted, seen.get(value, value), seen, value)
        if not self.problems:
            for variable in self.variables.kept():
                value = variable.value
                self.output(f"{variable.source}.next", seen.get(value, value), seen, value)
                self.variables.keep(variable)
        graph.drop_unused()
        return graph

    def inputs(self, scope: Scope) -> None:
        """The graph's inputs, named as the signature or the file says."""
        graph, names = self.builder.graph, input_names(self.model)
        extra = sorted(set(self.shapes) - set(names.values()))
        if extra:
            shown = ", ".join(sorted(names.values()))
            raise ModelError(f"--shape names `{extra[0]}`, but the model's inputs are: {shown}")
        for index, name in names.items():
            t = scope.subgraph.tensors[index]
            if t.dtype is None:
                raise ModelError(
                    f"input `{name}` is {t.kind}, only tensors of numbers are supported"
                )
            graph.types[name] = TensorType(t.dtype, self.shape(t, name))
            graph.inputs.append(name)
            scope.values[index] = name

    def shape(self, t: Tensor, name: str) -> tuple[int, ...]:
        """The shape of an input: what the user says, else what the file says."""
        given = self.shapes.get(name)
        if given is None:
            for d in t.dynamic:
                self.notify(
                    f"input `{name}`: dimension `{d}` is open, using {t.shape[d]} (set it with --shape {name}=...)"
                )
            return t.shape
        shown = f"--shape {name}={','.join(map(str, given))}"
        if len(given) != len(t.shape):
            raise ModelError(f"{shown} has {len(given)} dims, the input has {len(t.shape)}")
        wanted = tuple(n if v == -1 else v for v, n in zip(given, t.shape, strict=True))
        return limits.check_shape(wanted, f"input `{name}`")

    def output(self, name: str, value: str, seen: dict[str, str], original: str) -> None:
        """Make `value` the output called `name`: under that name if it can have it, else as a copy."""
        graph = self.builder.graph
        taken = value in graph.inputs or value in graph.constants or value in graph.outputs
        if value != name and not taken and name not in graph.types:
            self.builder.rename(value, name)
            seen[original] = name
        elif value != name or taken:
            name = graph.fresh(name)
            graph.types[name] = graph.types[value]
            graph.nodes.append(Node(f"output {name}", "copy", (value,), (name,)))
        graph.outputs.append(name)

    def value(self, scope: Scope, index: int) -> str | None:
        """Our value of a tensor: computed, or a constant that is added when it is first read."""
        if index not in scope.values:
            t = scope.subgraph.tensors[index]
            if t.variable and t.dtype is not None:
                return self.variables.of_tensor(scope.prefix, t).read()
            if t.data is None:
                return None
            hint = f"{scope.prefix}{t.name}" or f"const_{index}"
            scope.values[index] = self.builder.graph.add_constant(hint, t.data)
        return scope.values[index]

    # ---- operators

    def ops(self, scope: Scope) -> None:
        """Import all operators of a subgraph, which the format keeps in order."""
        self.count += len(scope.subgraph.ops)
        limits.check_nodes(self.count)
        limits.check_depth(scope.depth)
        for op in scope.subgraph.ops:
            mark = len(self.builder.made)
            results = self.guarded(op, scope)
            fresh = set(self.builder.made[mark:])
            for ours, index in zip(results, op.outputs, strict=False):
                t = scope.subgraph.tensors[index]
                scope.values[index] = self.named(ours, f"{scope.prefix}{t.name}", fresh)
            if not results:
                self.placeholders(op, scope)

    def guarded(self, op: Op, scope: Scope) -> Sequence[str]:
        """The operator's results; none, and a problem, if it cannot be imported."""
        name = f"{scope.prefix}op {op.index}"
        try:
            results = self.node(op, name, scope)
            if results is None:
                self.unchecked.append((name, op.shown))
                return ()
            if len(results) >= len(op.outputs):
                return results
            text = f"it has {len(op.outputs)} outputs, {len(results)} are known: repair the model"
            self.problem(op, name, text, broken=True)
        except UnsupportedError as err:
            for text in err.problems:
                self.problem(op, name, text)
        except TilewrightError as err:
            self.problem(op, name, str(err), broken=True)
        except MALFORMED as err:
            reason = f"its options or inputs are malformed ({type(err).__name__}: {err})"
            self.problem(op, name, f"{reason}: repair the model", broken=True)
        return ()

    def node(self, op: Op, name: str, scope: Scope) -> Sequence[str] | None:
        """None if an input is unknown because of an earlier problem."""
        reason = _refusal(op)
        if reason:
            raise UnsupportedError([reason])
        if op.code in VARIABLES:
            return VARIABLES[op.code](self, op, name, scope)
        inputs: list[str] = []
        for index in op.inputs:
            value = "" if index < 0 else self.value(scope, index)
            if value is None:
                if self.problems:
                    return None
                t = scope.subgraph.tensors[index]
                raise ModelError(
                    f"it reads tensor {index} `{t.name}`, which nothing computes: the file is damaged"
                )
            inputs.append(value)
        view = TfliteNode(self.builder, scope.subgraph, op, name, inputs)
        if op.code in NESTED:
            return NESTED[op.code](self, view, scope)
        results = importer(view)(view)
        for index, value in view.kept.items():
            tensor = scope.subgraph.tensors[index]
            self.variables.of_tensor(scope.prefix, tensor).value = value
        return results

    def named(self, ours: str, name: str, fresh: set[str]) -> str:
        """Give a value that this operator just made the name of its tensor, if that is free."""
        graph = self.builder.graph
        if ours not in fresh or not name or name in graph.types:
            return ours
        fresh.discard(ours)
        self.rename(ours, name)
        if graph.nodes and graph.nodes[-1].op == "transpose" and graph.nodes[-1].outputs == (name,):
            inner = graph.nodes[-1].inputs[0]
            image = f"{name}@nchw"
            if (
                graph.nodes[-1].attrs["perm"] == TO_NHWC
                and inner in fresh
                and image not in graph.types
            ):
                self.rename(inner, image)
        return name

    def rename(self, old: str, new: str) -> None:
        """Call a value `new` everywhere, also where a variable holds it."""
        self.builder.rename(old, new)
        for variable in self.variables.known.values():
            if variable.value == old:
                variable.value = new

    # ---- problems

    def problem(self, op: Op, name: str, text: str, broken: bool = False) -> None:
        """Note a problem; a reason that says what to do itself needs no hint."""
        where = f"node `{name}` ({op.shown})"
        text = text.removeprefix(where).removeprefix(":").strip()
        hint = "" if ": " in text else "change this operator, or convert the model differently"
        self.problems.append(Problem(name, op.shown, text, hint, broken))

    def placeholders(self, op: Op, scope: Scope) -> None:
        """Go on after a problem: outputs become values without a producer, of the types the file states."""
        graph = self.builder.graph
        for index in op.outputs:
            t = scope.subgraph.tensors[index]
            if t.dtype is not None and index not in scope.values:
                name = graph.fresh(f"{scope.prefix}{t.name}" or f"tensor_{index}")
                graph.types[name] = TensorType(t.dtype, t.shape)
                scope.values[index] = name


def input_names(model: TfliteModel) -> dict[int, str]:
    """Names of the model's inputs by the index of their tensor: the signature's, else the file's."""
    main = model.subgraphs[0]
    names: dict[int, str] = {}
    for k, index in enumerate(main.inputs):
        t = main.tensors[index]
        if index in names:
            raise ModelError(f"input {k} `{t.name}` is listed twice: the file is damaged")
        wanted = model.signature_inputs.get(index, "") or t.name or f"input_{k}"
        names[index] = wanted if wanted not in names.values() else f"{wanted}_{k}"
    return names


def _refusal(op: Op) -> str:
    """Why no importer takes the operator; empty if there is one."""
    if known(op) or op.code in NESTED or op.code in VARIABLES:
        return ""
    if op.code == "CUSTOM":
        return f"{op.shown} is not supported: replace it by builtin operators when converting"
    if op.code in REFUSED:
        return REFUSED[op.code]
    return f"operator {op.code} is not supported: replace it in the model (docs/tflite.md has the list)"
