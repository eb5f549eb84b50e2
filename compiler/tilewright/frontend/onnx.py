"""ONNX -> graph IR.

In: a path, bytes or a ModelProto (opset 7 to the newest). Out: a `Graph` with static shapes.
Operators import themselves (`Operator.onnx`); what vanishes on import is in `structural.py`; only
what nests graphs (If, local functions) is known here.
Invariant: a foreign file gives a `Graph` or a `ModelError`, nothing else. Whatever depends on
constants alone is folded at once, so shape arithmetic never reaches the graph.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError

from tilewright.errors import ModelError, TilewrightError, UnsupportedError
from tilewright.frontend import limits
from tilewright.frontend.order import in_order, node_name
from tilewright.frontend.structural import STRUCTURAL
from tilewright.frontend.tensors import element_type, read_tensor
from tilewright.graph.ir import Array, Attrs, AttrValue, Graph, Node, TensorType
from tilewright.registry import onnx_importers, operator

Shapes = Mapping[str, Sequence[int]]
Source = str | Path | bytes | onnx.ModelProto

_DOMAINS = ("", "ai.onnx", "com.microsoft")
MIN_OPSET = 7


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that cannot be compiled: where, why, and what to do."""

    node: str
    op_type: str
    reason: str
    hint: str


def load_onnx(
    source: Source, shapes: Shapes | None = None, notify: Callable[[str], None] = lambda m: None
) -> Graph:
    """Import a model; `shapes` fixes input shapes by name, other unknown dims become 1 (and
    `notify` says so). Raises `UnsupportedError` with every unknown operator, else `ModelError`."""
    importer = _Importer(_read(source), _folder(source), _name(source), shapes or {}, notify)
    unknown = importer.unknown_operators()
    if unknown:
        raise UnsupportedError(
            [f"node `{p.node}` ({p.op_type}): {p.reason}; {p.hint}" for p in unknown]
        )
    return importer.run()


def check_onnx(source: Source, shapes: Shapes | None = None) -> list[Problem]:
    """Everything that keeps the model from compiling, all at once."""
    importer = _Importer(
        _read(source), _folder(source), _name(source), shapes or {}, lambda m: None
    )
    problems = importer.unknown_operators()
    importer.problems = []
    importer.tolerant = True
    try:
        importer.run()
    except TilewrightError as err:
        importer.problems.append(Problem("model", "", str(err), "repair the model"))
    known = {p.node for p in problems}
    return problems + [p for p in importer.problems if p.node not in known]


# ---------------------------------------------------------------- reading


def _folder(source: Source) -> Path | None:
    return Path(source).parent if isinstance(source, str | Path) else None


def _name(source: Source) -> str:
    stem = Path(source).stem if isinstance(source, str | Path) else "model"
    name = re.sub(r"\W", "_", stem)
    return f"m_{name}" if not name or name[0].isdigit() else name


def _read(source: Source) -> onnx.ModelProto:
    if isinstance(source, onnx.ModelProto):
        return source
    if isinstance(source, bytes):
        data = source
    else:
        path = Path(source)
        if not path.is_file():
            raise ModelError(f"there is no model file {path}: check the path")
        if path.stat().st_size > limits.MAX_FILE_BYTES:
            raise ModelError(
                f"{path} is larger than {limits.MAX_FILE_BYTES} bytes: use external data"
            )
        data = path.read_bytes()
    model = onnx.ModelProto()
    try:
        model.ParseFromString(data)
    except DecodeError:
        raise ModelError(
            f"{source if not isinstance(source, bytes) else 'the model'} is not an ONNX file or is "
            "truncated: export or download it again"
        ) from None
    if not model.graph.node and not model.graph.output:
        raise ModelError("the model has no graph: it is empty, truncated, or not an ONNX file")
    return model


class _Importer:
    """State of one import: the graph so far and the constants known so far."""

    def __init__(
        self,
        model: onnx.ModelProto,
        folder: Path | None,
        name: str,
        shapes: Shapes,
        notify: Callable[[str], None],
    ) -> None:
        self.model = model
        self.folder = folder
        self.shapes = dict(shapes)
        self.notify = notify
        self.graph = Graph(name, [], [])
        self.problems: list[Problem] = []
        self.tolerant = False
        self.opset = next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 0)
        if self.opset and self.opset < MIN_OPSET:
            raise ModelError(
                f"the model uses opset {self.opset}: convert it to {MIN_OPSET} or newer"
            )
        self.functions = {(f.domain, f.name): f for f in model.functions}

    def unknown_operators(self) -> list[Problem]:
        known = {*onnx_importers(), *STRUCTURAL, "If"}
        out: list[Problem] = []

        def walk(nodes: Iterable[onnx.NodeProto], depth: int) -> None:
            if depth > limits.MAX_DEPTH:
                raise ModelError(f"the model nests graphs deeper than {limits.MAX_DEPTH}")
            for i, n in enumerate(nodes):
                local = (n.domain, n.op_type) in self.functions
                if not local and (n.op_type not in known or n.domain not in _DOMAINS):
                    kind = f"{n.domain}::{n.op_type}" if n.domain else n.op_type
                    out.append(
                        Problem(
                            node_name(n, i),
                            kind,
                            f"operator {kind} is not supported",
                            "replace it in the model, or add an operator file (docs/operators.md)",
                        )
                    )
                for a in n.attribute:
                    if a.type == onnx.AttributeProto.GRAPH:
                        walk(a.g.node, depth + 1)

        walk(self.model.graph.node, 0)
        for f in self.model.functions:
            walk(f.node, 1)
        return out

    # ---- the whole graph

    def run(self) -> Graph:
        g = self.model.graph
        if len(g.node) > limits.MAX_NODES:
            raise ModelError(
                f"the model has {len(g.node)} nodes: at most {limits.MAX_NODES} are supported"
            )
        names: dict[str, str] = {}
        for tensor in g.initializer:
            names[tensor.name] = self.constant(
                read_tensor(tensor, self.folder, f"initializer `{tensor.name}`"), tensor.name
            )
        if g.sparse_initializer:
            raise ModelError("the model has sparse initializers: convert them to dense ones")
        inputs = {i.name for i in g.input}
        extra = sorted(set(self.shapes) - inputs)
        if extra:
            raise ModelError(
                f"--shape names `{extra[0]}`, but the inputs are: {', '.join(sorted(inputs))}"
            )
        for info in g.input:
            if info.name in names:
                continue
            if info.name in self.graph.types:
                raise ModelError(f"input `{info.name}` is defined twice")
            self.graph.types[info.name] = self.input_type(info)
            self.graph.inputs.append(info.name)
            names[info.name] = info.name
        self.nodes(in_order(g.node, set(names)), names, 0)
        for out in g.output:
            if out.name not in names:
                if self.tolerant:
                    continue
                raise ModelError(
                    f"output `{out.name}` is not computed by any node: the file is damaged"
                )
            self.graph.outputs.append(names[out.name])
        self.graph.drop_unused()
        return self.graph

    def input_type(self, info: onnx.ValueInfoProto) -> TensorType:
        kind = info.type.WhichOneof("value")
        if kind != "tensor_type":
            raise ModelError(
                f"input `{info.name}` is a {kind or 'value without type'}, not a tensor"
            )
        t = info.type.tensor_type
        dtype = element_type(t.elem_type, f"input `{info.name}`")
        given = self.shapes.get(info.name)
        if not t.HasField("shape") and given is None:
            raise ModelError(
                f"input `{info.name}` has no shape: give one with --shape {info.name}=..."
            )
        dims = list(t.shape.dim)
        if given is not None:
            if t.HasField("shape") and len(given) != len(dims):
                raise ModelError(
                    f"--shape {info.name}={list(given)}: the input has {len(dims)} dims"
                )
            for want, d in zip(given, dims, strict=False):
                if d.HasField("dim_value") and d.dim_value > 0 and d.dim_value != want:
                    raise ModelError(
                        f"--shape {info.name}={list(given)}: the model fixes a dim to {d.dim_value}"
                    )
            return TensorType(dtype, limits.check_shape(given, f"input `{info.name}`"))
        shape: list[int] = []
        for i, d in enumerate(dims):
            if d.HasField("dim_value") and d.dim_value < -1:
                raise ModelError(
                    f"input `{info.name}` has the negative dimension {d.dim_value}: the file is damaged"
                )
            if d.HasField("dim_value") and d.dim_value > 0:
                shape.append(d.dim_value)
                continue
            shown = d.dim_param or str(i)
            self.notify(
                f"input `{info.name}`: dimension `{shown}` is not fixed, using 1 "
                f"(set it with --shape {info.name}=...)"
            )
            shape.append(1)
        return TensorType(dtype, limits.check_shape(shape, f"input `{info.name}`"))

    def nodes(self, nodes: Iterable[onnx.NodeProto], names: dict[str, str], depth: int) -> None:
        """Import nodes in order; `names` maps ONNX value names to ours."""
        for i, n in enumerate(nodes):
            missing = [v for v in n.input if v and v not in names]
            if missing:
                if self.tolerant:
                    continue
                raise ModelError(
                    f"node `{node_name(n, i)}` ({n.op_type}) reads `{missing[0]}`, which nothing defines: "
                    "the file is damaged"
                )
            try:
                results = self.node(n, node_name(n, i), names, depth)
            except UnsupportedError as err:
                if not self.tolerant:
                    raise
                for text in err.problems:
                    self.problems.append(
                        Problem(node_name(n, i), n.op_type, text, "change the model")
                    )
                continue
            except ModelError as err:
                message = str(err)
                if not message.startswith("node "):
                    message = f"node `{node_name(n, i)}` ({n.op_type}): {message}"
                if not self.tolerant:
                    raise ModelError(message) from None
                self.problems.append(
                    Problem(node_name(n, i), n.op_type, message, "change the model")
                )
                continue
            except (
                ValueError,
                KeyError,
                IndexError,
                TypeError,
                OverflowError,
                AssertionError,
            ) as err:
                message = (
                    f"node `{node_name(n, i)}` ({n.op_type}): malformed attributes or inputs ({err}): "
                    "check the node with onnx.checker"
                )
                if not self.tolerant:
                    raise ModelError(message) from None
                self.problems.append(
                    Problem(node_name(n, i), n.op_type, message, "repair the model")
                )
                continue
            for ours, theirs in zip(results, n.output, strict=False):
                if not theirs:
                    continue
                if theirs in names:
                    raise ModelError(f"value `{theirs}` is defined twice: the file is damaged")
                names[theirs] = self.rename(ours, theirs)

    def node(
        self, n: onnx.NodeProto, name: str, names: dict[str, str], depth: int
    ) -> Sequence[str]:
        function = self.functions.get((n.domain, n.op_type))
        if function is not None:
            return self.call(function, n, names, depth)
        view = _View(self, n, name, names, depth)
        if n.op_type == "If":
            return _if(view)
        found = STRUCTURAL.get(n.op_type) or onnx_importers().get(n.op_type)
        if found is None:
            raise view.fail(f"operator {n.op_type} is not supported")
        return found(view)

    def call(
        self, f: onnx.FunctionProto, n: onnx.NodeProto, names: dict[str, str], depth: int
    ) -> Sequence[str]:
        """Inline a local function: its body sees only its parameters."""
        if depth > limits.MAX_DEPTH:
            raise ModelError(f"function {f.name} calls itself, or functions nest too deeply")
        inner = {p: names[v] for p, v in zip(f.input, n.input, strict=False) if v}
        given = {a.name: a for a in n.attribute}
        body: list[onnx.NodeProto] = []
        for node in f.node:
            copy = onnx.NodeProto()
            copy.CopyFrom(node)
            for a in copy.attribute:
                if a.ref_attr_name and a.ref_attr_name in given:
                    own = a.name
                    a.CopyFrom(given[a.ref_attr_name])
                    a.name = own
            body.append(copy)
        self.nodes(body, inner, depth + 1)
        return [inner[o] for o in f.output]

    # ---- values

    def rename(self, ours: str, theirs: str) -> str:
        """Give a value the name it has in the model, where that name is free and nobody reads it yet."""
        g = self.graph
        if ours == theirs or theirs in g.types or not ours.startswith("%"):
            return ours
        g.types[theirs] = g.types.pop(ours)
        if ours in g.constants:
            g.constants[theirs] = g.constants.pop(ours)
            return theirs
        for i in range(len(g.nodes) - 1, -1, -1):
            node = g.nodes[i]
            if ours in node.outputs:
                g.nodes[i] = node.with_(
                    outputs=tuple(theirs if o == ours else o for o in node.outputs)
                )
                break
            if ours in node.inputs:
                g.nodes[i] = node.with_(
                    inputs=tuple(theirs if v == ours else v for v in node.inputs)
                )
        return theirs

    def constant(self, array: Array, hint: str) -> str:
        return self.graph.add_constant(hint or "const", array)


# ---------------------------------------------------------------- one node


class _View:
    """`registry.ImportNode` over an ONNX node."""

    def __init__(
        self, owner: _Importer, n: onnx.NodeProto, name: str, names: dict[str, str], depth: int
    ) -> None:
        self.owner = owner
        self.proto = n
        self.name = name
        self.op_type = n.op_type
        self.opset = owner.opset
        self.names = names
        self.depth = depth
        self.inputs: Sequence[str] = [names[v] if v else "" for v in n.input]
        self.output_count = sum(1 for o in n.output if o)
        self._attrs = {a.name: a for a in n.attribute}

    def attr(self, name: str, default: Any = None) -> Any:
        a = self._attrs.get(name)
        if a is None or a.ref_attr_name:
            return default
        kind = onnx.AttributeProto
        match a.type:
            case kind.FLOAT:
                return float(a.f)
            case kind.INT:
                return int(a.i)
            case kind.STRING:
                return a.s.decode("utf-8", "replace")
            case kind.FLOATS:
                return tuple(float(v) for v in a.floats)
            case kind.INTS:
                return tuple(int(v) for v in a.ints)
            case kind.STRINGS:
                return tuple(s.decode("utf-8", "replace") for s in a.strings)
            case kind.TENSOR:
                return read_tensor(
                    a.t, self.owner.folder, f"attribute `{name}` of node `{self.name}`"
                )
            case kind.GRAPH:
                return a.g
            case _:
                raise self.fail(f"attribute `{name}` has an unsupported type")

    def type(self, i: int) -> TensorType:
        return self.owner.graph.types[self.inputs[i]]

    def type_of(self, value: str) -> TensorType:
        return self.owner.graph.types[value]

    def const(self, i: int) -> Array | None:
        return self.owner.graph.constants.get(self.inputs[i]) if self.has(i) else None

    def need_const(self, i: int, what: str) -> Array:
        value = self.const(i)
        if value is None:
            raise self.fail(
                f"{what} must be known at compile time, but is computed from the inputs"
            )
        return value

    def has(self, i: int) -> bool:
        return i < len(self.inputs) and self.inputs[i] != ""

    def constant(self, array: Array, hint: str = "const") -> str:
        return self.owner.constant(np.asarray(array), f"%{hint}")

    def add(
        self, op: str, inputs: Sequence[str], attrs: Attrs | None = None, outputs: int = 1
    ) -> list[str]:
        g = self.owner.graph
        given: dict[str, AttrValue] = dict(attrs or {})
        kind = operator(op)
        types = kind.infer([g.types[i] if i else None for i in inputs], given)
        for t in types:
            limits.check_shape(t.shape, f"the result of node `{self.name}`")
        known = all(not i or i in g.constants for i in inputs)
        if known and sum(t.size for t in types) <= limits.MAX_FOLDED_ELEMENTS:
            with np.errstate(all="ignore"):
                values = kind.reference([g.constants[i] if i else None for i in inputs], given)
            return [self.owner.constant(np.asarray(v), f"%{op}") for v in values]
        names = [g.fresh(f"%{op}") for _ in types]
        g.types.update(zip(names, types, strict=True))
        g.nodes.append(Node(self.name, op, tuple(inputs), tuple(names), given))
        return names

    def fail(self, reason: str) -> UnsupportedError:
        return UnsupportedError([f"node `{self.name}` ({self.op_type}): {reason}"])


def _if(node: _View) -> Sequence[str]:
    """A constant condition picks its branch; otherwise both run and the results are selected."""
    cond = node.const(0)
    branches = [node.attr("then_branch"), node.attr("else_branch")]

    def inline(g: onnx.GraphProto) -> list[str]:
        names = dict(node.names)
        for t in g.initializer:
            names[t.name] = node.owner.constant(
                read_tensor(t, node.owner.folder, f"initializer `{t.name}`"), f"%{t.name}"
            )
        local = {o for n in g.node for o in n.output}
        for name in local:  # a branch may reuse names of the other branch or of a sibling If
            names.pop(name, None)
        node.owner.nodes(in_order(g.node, set(names)), names, node.depth + 1)
        return [names[o.name] for o in g.output]

    if node.depth > limits.MAX_DEPTH:
        raise node.fail("graphs nest too deeply")
    if cond is not None:
        return inline(branches[0] if bool(cond.reshape(-1)[0]) else branches[1])
    then, orelse = inline(branches[0]), inline(branches[1])
    out: list[str] = []
    for a, b in zip(then, orelse, strict=True):
        ta, tb = node.type_of(a), node.type_of(b)
        if ta != tb:
            raise node.fail(f"the branches give {ta} and {tb}: a run-time If needs equal types")
        chosen = node.inputs[0]
        if node.type(0).rank and node.type(0).rank > ta.rank:
            (chosen,) = node.add("reshape", [chosen], {"shape": ()})
        out += node.add("where", [chosen, a, b])
    return out
