"""The walk over an ONNX graph that builds ours.

In: a ModelProto. Out: a `Graph`, and a list of problems where nodes cannot be imported.
Invariant: the walk goes on after a problem as far as types are known, so that it reports everything at
once; the graph means something only if there are no problems. Values of the model's own graph keep
their names; those of nested graphs get the node they stand in as a prefix.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnx.defs

from tilewright.errors import ModelError, TilewrightError, UnsupportedError
from tilewright.frontend import limits, nested
from tilewright.frontend.composed import COMPOSED
from tilewright.frontend.constants import CONSTANTS
from tilewright.frontend.control import CONTROL
from tilewright.frontend.counted import count_name
from tilewright.frontend.domains import OTHER_DOMAINS
from tilewright.frontend.functions import body_of
from tilewright.frontend.inputs import Shapes, input_types
from tilewright.frontend.legacy import modernise
from tilewright.frontend.node import Builder, ForeignNode, Scope
from tilewright.frontend.order import in_order, node_name, subgraphs
from tilewright.frontend.problems import MALFORMED, Problem
from tilewright.frontend.qoperator import QOPERATORS
from tilewright.frontend.reading import functions_of
from tilewright.frontend.schema import MICROSOFT, check_node
from tilewright.frontend.sequences import NOTHING, is_optional, member_names, member_type, sequence
from tilewright.frontend.structural import REFUSED, STRUCTURAL
from tilewright.frontend.tensors import read_tensor
from tilewright.graph.ir import Array, Graph, Node, TensorType
from tilewright.registry import onnx_importers

_DOMAINS = ("", "ai.onnx", "com.microsoft")
_OWN = {**STRUCTURAL, **QOPERATORS, **CONSTANTS, **COMPOSED}


class Importer:
    """State of one import. `guess` gives the type of a value that could not be computed."""

    def __init__(
        self,
        model: onnx.ModelProto,
        folder: Path | None,
        name: str,
        shapes: Shapes,
        notify: Callable[[str], None],
        guess: Callable[[str], TensorType | None] = lambda value: None,
    ) -> None:
        self.model = model
        self.shapes = shapes
        self.notify = notify
        self.guess = guess
        self.builder = Builder(Graph(name, [], []), folder)
        self.problems: list[Problem] = []
        self.unchecked: list[tuple[str, str]] = []
        """Nodes (name, operator) whose inputs are unknown because of a problem before them."""
        self.count = 0
        self.functions = functions_of(model)
        self.versions = {str(o.domain): int(o.version) for o in model.opset_import if o.domain}
        self.fixed: Mapping[str, Array] = {}
        """Inputs that are constants of this import, by name."""
        self.lengths: Mapping[str, int] = {}
        """How many members inputs have that are sequences; -1 for an optional without an element."""
        self.layout: list[int] = []
        """The same for each output of the model; -2 for a tensor."""
        self.undecided: set[str] = set()
        """Inputs whose values would have had to be known to import nodes that could not be."""

    # ---- the whole graph

    def run(self) -> Graph:
        """Import everything the outputs need. Raises `ModelError` if the graph itself is broken."""
        g, graph = self.model.graph, self.builder.graph
        if not g.output:
            raise ModelError("the model's graph has no outputs: the file is empty or damaged")
        names = self.initializers(g, "")
        infos = self.flattened([i for i in g.input if i.name not in names], names)
        types = input_types(infos, self.shapes, self.notify)
        for name, t in types.items():
            names[name] = name
            if name in self.fixed:
                names[name] = graph.add_constant(name, self.fixed[name])
                continue
            graph.types[name] = t
            graph.inputs.append(name)
            if t.size == 0:  # nothing of it is unknown
                names[name] = graph.add_constant(name, np.zeros(t.shape, t.dtype.numpy))
        results = [str(o.name) for o in g.output]
        scope = Scope(names, _opset(self.model.opset_import))
        self.nodes(in_order(g.node, set(names), results), scope)
        renamed: dict[str, str] = {}
        for name in results:
            if name in names:
                for shown, value in self.shown(name, names[name]):
                    self.output(shown, renamed.get(value, value))
                    renamed.setdefault(value, graph.outputs[-1])
            elif not self.problems:
                raise ModelError(
                    f"output `{name}` is not computed by any node: the file is damaged"
                )
        self.counts()
        graph.drop_unused()
        return graph

    def flattened(
        self, infos: Sequence[onnx.ValueInfoProto], names: dict[str, str]
    ) -> list[onnx.ValueInfoProto]:
        """The model's inputs as tensors; `names` gains sequences and optionals, of the given lengths."""
        out: list[onnx.ValueInfoProto] = []
        for info in infos:
            inner = member_type(info)
            length = self.lengths.get(str(info.name), -2)
            if inner is None or (length == -2 and not is_optional(info)):
                out.append(info)
            elif length == -2:
                out.append(onnx.ValueInfoProto(name=info.name, type=inner))
            elif length == -1:
                names[str(info.name)] = NOTHING
            else:
                own = member_names(str(info.name), length)
                out += [onnx.ValueInfoProto(name=n, type=inner) for n in own]
                names[str(info.name)] = sequence(self.builder, own)
        return out

    def shown(self, name: str, value: str) -> list[tuple[str, str]]:
        """What the model's output `name` becomes: itself, or the members of a sequence."""
        found = self.builder.sequences.get(value)
        self.layout.append(-1 if value == NOTHING else -2 if found is None else len(found))
        if value == NOTHING:
            return []
        if found is None:
            return [(name, value)]
        return list(zip(member_names(name, len(found)), found, strict=True))

    def counts(self) -> None:
        """One more output for every value the outputs need that is padded to a bound: its valid size."""
        graph = self.builder.graph
        needed = set(graph.outputs)
        for node in reversed(graph.nodes):
            if needed.intersection(node.outputs):
                needed.update(node.inputs)
        for value in [v for v in self.builder.counts if v in needed]:
            count, axis = self.builder.counts[value]
            self.output(count_name(value, axis), count)

    def initializers(self, g: onnx.GraphProto, prefix: str) -> dict[str, str]:
        """Add a graph's stored tensors; their names in our graph by ONNX name."""
        if g.sparse_initializer:
            raise ModelError("the model has sparse initializers: convert them to dense ones")
        names: dict[str, str] = {}
        for t in g.initializer:
            if not t.name or t.name in names:
                raise ModelError(f"initializer `{t.name}` is defined twice: the file is damaged")
            try:
                array = read_tensor(t, self.builder.folder, f"initializer `{t.name}`")
            except ModelError as err:  # its readers cannot be checked, everything else can
                self.problems.append(Problem(str(t.name), "", str(err), "", broken=True))
                continue
            self.builder.stored_bytes += array.nbytes
            names[str(t.name)] = self.builder.graph.add_constant(f"{prefix}{t.name}", array)
        return names

    def output(self, name: str, value: str) -> None:
        """Make `value` the output called `name`: under that name if it can have it, else as a copy."""
        graph = self.builder.graph
        if value != name:
            taken = value in graph.inputs or value in graph.constants or value in graph.outputs
            own = {str(o.name) for o in self.model.graph.output}
            if name not in graph.types and not taken and value not in own:
                self.builder.rename(value, name)
            else:
                name = graph.fresh(name)
                graph.types[name] = graph.types[value]
                graph.nodes.append(Node(f"output {name}", "copy", (value,), (name,)))
        graph.outputs.append(name)

    # ---- nodes

    def nodes(self, nodes: Sequence[onnx.NodeProto], scope: Scope) -> None:
        """Import nodes that are in order; `scope.names` gains their outputs."""
        self.count += len(nodes)
        limits.check_nodes(self.count)
        for n in nodes:
            name = f"{scope.prefix}{node_name(n)}"
            missing = next((v for v in n.input if v and v not in scope.names), None)
            mark = len(self.builder.made)
            results: Sequence[str] = ()
            if missing is not None:
                self.unreadable(n, name, str(missing))
            else:
                results = self.guarded(n, name, scope)
            if not results:
                self.placeholders(n, scope)
            fresh = set(self.builder.made[mark:])
            for ours, theirs in zip(results, n.output, strict=False):
                if theirs:
                    scope.names[str(theirs)] = self.named(ours, str(theirs), fresh, scope)

    def guarded(self, n: onnx.NodeProto, name: str, scope: Scope) -> Sequence[str]:
        """The node's results; none, and a problem, if it cannot be imported."""
        before = len(self.problems)
        outer, self.builder.asked = self.builder.asked, []
        try:
            results = self.node(n, name, scope)
        except UnsupportedError as err:
            self.undecided |= self.builder.origins(self.builder.asked)
            for text in err.problems:
                self.problem(n, name, text, "change this node, or export the model differently")
        except TilewrightError as err:
            self.problem(n, name, str(err), "", broken=True)
        except MALFORMED as err:
            said = next(iter(str(err).splitlines()), "")[:200]
            reason = f"its attributes or inputs are malformed ({type(err).__name__}: {said})"
            self.problem(n, name, reason, "repair the model", broken=True)
        else:
            lost = next(
                (i for i, o in enumerate(n.output) if o and not any(results[i : i + 1])), None
            )
            if lost is None:
                return results
            if len(self.problems) == before:
                self.problem(
                    n, name, f"its output {lost + 1} is not supported", "remove that output"
                )
        finally:
            self.builder.asked = outer
        return ()

    def node(self, n: onnx.NodeProto, name: str, scope: Scope) -> Sequence[str]:
        function = self.functions.get((n.domain, n.op_type, n.overload))
        if function is not None:
            return nested.call(self, function, n, name, scope)
        check_node(n, self.versions.get(n.domain, scope.opset))
        view = ForeignNode(self.builder, n, name, scope)
        modernise(view)
        other = OTHER_DOMAINS.get((n.domain, n.op_type))
        if other is not None:
            return other(view)
        if n.op_type in CONTROL and n.domain in ("", "ai.onnx"):
            return CONTROL[n.op_type](self, view)
        problem = self.unknown(n, name)
        if problem is not None:
            found = self.expanded(n, name, scope)
            if not found:
                self.problems.append(problem)
            return found
        known = onnx_importers().get(_shown(n)) if n.domain else None
        known = known or _OWN.get(n.op_type)
        try:
            results = (known or onnx_importers()[n.op_type])(view)
        except UnsupportedError:
            self.undecided |= self.builder.origins(self.builder.asked)
            found = self.expanded(n, name, scope)
            if not found:
                raise
            return found
        if len(results) < _wanted(n):
            return self.expanded(n, name, scope) or results
        return results

    def expanded(self, n: onnx.NodeProto, name: str, scope: Scope) -> Sequence[str]:
        """The node by the function that ONNX defines it by; nothing if there is none that can be imported."""
        types = [self.builder.graph.types[scope.names[v]] if v else None for v in n.input]
        body = body_of(n, self.versions.get(n.domain, scope.opset), types)
        if body is None:
            return ()
        before = len(self.problems)
        results = nested.call(self, body, n, name, scope)
        if len(self.problems) > before or len(results) < _wanted(n):
            del self.problems[before:]  # those of the node itself say more
            return ()
        return results

    def named(self, ours: str, theirs: str, fresh: set[str], scope: Scope) -> str:
        """Give a value that this node just made the name it has in the model, if that is free."""
        name = f"{scope.prefix}{theirs}"
        if ours not in fresh or ours == name or name in self.builder.graph.types:
            return ours
        fresh.discard(ours)  # a second output of the same value goes without
        self.builder.rename(ours, name)
        return name

    # ---- problems

    def problem(
        self, n: onnx.NodeProto, name: str, text: str, hint: str, broken: bool = False
    ) -> None:
        """Note a problem; a reason that says what to do itself needs no hint."""
        where = f"node `{name}` ({n.op_type})"
        text = text.removeprefix(where).removeprefix(":").strip()
        self.problems.append(Problem(name, _shown(n), text, "" if ": " in text else hint, broken))

    def unknown(self, n: onnx.NodeProto, name: str) -> Problem | None:
        """The problem with a node that no importer takes."""
        if n.op_type in REFUSED and n.domain in _DOMAINS:
            return Problem(name, _shown(n), REFUSED[n.op_type], "")
        known = n.op_type in {*_OWN, *CONTROL, *onnx_importers()}
        if n.domain == "com.microsoft" and onnx.defs.has(n.op_type):
            known = n.op_type in MICROSOFT  # the same name need not mean the same there
        if (known and n.domain in _DOMAINS) or (n.domain and _shown(n) in onnx_importers()):
            return None
        hint = "replace it in the model, or add an operator file (docs/operators.md)"
        if not n.domain and not onnx.defs.has(n.op_type):
            hint = "check its name, ONNX has no such operator"
        return Problem(name, _shown(n), f"operator {_shown(n)} is not supported", hint)

    def unreadable(self, n: onnx.NodeProto, name: str, missing: str) -> None:
        """A node whose input is not there: because of an earlier problem, or because of the file."""
        if not self.problems:
            reason = f"it reads `{missing}`, which nothing defines: the file is damaged"
            self.problem(n, name, reason, "", broken=True)
            return
        function = self.functions.get((n.domain, n.op_type, n.overload))
        found = None if function is not None else self.unknown(n, name)
        if found is not None:
            self.problems.append(found)
        else:
            self.unchecked.append((name, _shown(n)))
        for inner in function.node if function is not None else ():
            self.unreadable(inner, f"{name}/{node_name(inner)}", missing)
        for g in subgraphs(n):
            for inner in g.node:
                self.unreadable(inner, f"{name}/{node_name(inner)}", missing)

    def placeholders(self, n: onnx.NodeProto, scope: Scope) -> None:
        """Go on after a problem: outputs whose type is known become values without a producer."""
        graph = self.builder.graph
        for o in n.output:
            t = self.guess(str(o)) if o and scope.depth == 0 else None
            if t is not None and o not in graph.types:
                graph.types[str(o)] = t
                scope.names[str(o)] = str(o)


def _wanted(n: onnx.NodeProto) -> int:
    """How many of its outputs the model uses, unnamed ones before the last included."""
    return max((i + 1 for i, o in enumerate(n.output) if o), default=0)


def _shown(n: onnx.NodeProto) -> str:
    return f"{n.domain}::{n.op_type}" if n.domain not in ("", "ai.onnx") else str(n.op_type)


def _opset(imports: Sequence[onnx.OperatorSetIdProto]) -> int:
    """The version of the standard operators."""
    default = onnx.defs.onnx_opset_version() if imports else 0
    version = next((int(o.version) for o in imports if o.domain in ("", "ai.onnx")), default)
    if version < 1:
        said = f"uses opset {version}" if version else "does not say which opset it uses"
        raise ModelError(f"the model {said}: the file is damaged")
    return limits.check_opset(version)
