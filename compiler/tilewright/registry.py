"""Operators and targets, found by file name.

In: the packages `tilewright.kernels` (one file per operator family) and `tilewright.targets` (one TOML
per device), plus third parties through the entry-point groups `tilewright.kernels` and
`tilewright.targets`. Out: `Operator` and `Target` objects by name.
Invariant: dropping in a file is all it takes; nothing else imports an operator or a target by name.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial
from importlib import metadata
from math import inf
from typing import Any, Protocol

import numpy as np

from tilewright.core.dtypes import dtype
from tilewright.core.index import Ix
from tilewright.core.window import Window
from tilewright.errors import TilewrightError
from tilewright.graph.ir import Array, Attrs, AttrValue, Graph, Node, TensorType, type_of
from tilewright.graph.quantized import IntegerForm
from tilewright.loop.builder import KernelBuilder, Reader
from tilewright.loop.ir import Expr, Kernel
from tilewright.schedule.space import Space
from tilewright.schedule.target import Target
from tilewright.schedule.trace import Trace

# ---------------------------------------------------------------- what an operator file provides

#: Traits that graph passes may look at (never operator names):
#: elementwise  out[i] depends on in[i] of each (broadcast) input only; may join an epilogue
#: injective    out[i] reads a bounded number of input elements at computed indices
#: view         the result can alias its first input with other strides (see `Operator.view`)
#: contraction  sums products over axes; the anchor of a fused group
#: reduction    reduces along axes or windows; the anchor of a fused group
#: opaque       anything else; stands alone
TRAITS = frozenset({"elementwise", "injective", "view", "contraction", "reduction", "opaque"})

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Sample:
    """One test case of an operator: input arrays (None for an absent optional) and attributes."""

    inputs: tuple[Array | None, ...]
    attrs: Attrs = field(default_factory=dict[str, AttrValue])


@dataclass(frozen=True, slots=True)
class LayoutWish:
    """What an operator wants of its operands' memory, to be fast (order) or at all (halo).

    `orders[i]`: the dims of input i from outermost to innermost; `halos[i]`: elements of padding
    (before, after) wanted around each dim of input i, filled with `fill`; `out_order`: the same for
    output 0. Missing entries mean no wish. A granted halo may be wider than asked for.
    """

    orders: Mapping[int, tuple[int, ...]] = field(default_factory=dict[int, tuple[int, ...]])
    halos: Mapping[int, tuple[tuple[int, int], ...]] = field(
        default_factory=dict[int, tuple[tuple[int, int], ...]]
    )
    fill: float = 0.0
    out_order: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class StridedView:
    """A view of input 0: `offset` and `strides` in elements relative to the input's own.

    `edges` says for each dim whether the view begins and ends where the input does, so that a border of the input is
    one of the view; empty where nothing is known.
    """

    offset: int
    strides: tuple[int, ...]
    edges: tuple[tuple[bool, bool], ...] = ()


@dataclass(frozen=True, slots=True)
class Border:
    """A result that is input 0 with `halo` elements (before, after) of value `fill` around each dim."""

    halo: tuple[tuple[int, int], ...]
    fill: float


class ImportNode(Protocol):
    """What an importer sees of one foreign node (see `frontend.onnx`)."""

    name: str
    op_type: str
    opset: int
    inputs: Sequence[str]
    """Value names in our graph; the empty string for an absent optional input."""
    output_count: int

    def attr(self, name: str, default: Any = None) -> Any:
        """Attribute as int, float, str, tuple of those, or NumPy array; `default` if absent."""
        ...

    def type(self, i: int) -> TensorType:
        """Type of input `i`."""
        ...

    def type_of(self, value: str) -> TensorType:
        """Type of any value of the graph."""
        ...

    def const(self, i: int) -> Array | None:
        """Value of input `i` if it is known at compile time."""
        ...

    def need_const(self, i: int, what: str) -> Array:
        """Like `const`, but refuses the node with a clear message if it is not known."""
        ...

    def has(self, i: int) -> bool:
        """Whether optional input `i` is present."""
        ...

    def constant(self, array: Array, hint: str = "const") -> str:
        """Add a constant; returns its value name."""
        ...

    def reserve(self, *shape: int) -> None:
        """Raises unless a constant of this shape may be made: call it before NumPy allocates what a file asks for."""
        ...

    def add(
        self, op: str, inputs: Sequence[str], attrs: Attrs | None = None, outputs: int = 1
    ) -> list[str]:
        """Add a node of canonical operator `op` (folded at once if all inputs are constants)."""
        ...

    def counted(self, value: str, count: str, axis: int) -> str:
        """The value of which only the first `count` (an i64 scalar) slices along `axis` are the result: those
        slices where the count is known, else the value, which a model output shows with its count."""
        ...

    def fail(self, reason: str) -> Exception:
        """An `UnsupportedError` that names this node: `raise node.fail("...")`."""
        ...


Importer = Callable[[ImportNode], Sequence[str]]


@dataclass(frozen=True, slots=True)
class Rows:
    """What a node needs that makes some rows of a map: rows of its first operand (`first` to before `end`; it needs
    the others whole), and its attributes."""

    first: int
    end: int
    attrs: Attrs


def window_rows(window: Window, height: int, attrs: Attrs, first: int, end: int) -> Rows:
    """The `Rows` of an operator whose windows slide over an image of `height` rows: what they reach of the pads stays."""
    low, high, above, below = window.rows(first, end, height)
    return Rows(low, high, {**attrs, "pads": (above, window.pads[1], below, window.pads[3])})


@dataclass(frozen=True, slots=True, kw_only=True)
class Operator:
    """Everything about one operator; an operator file exports `OPERATORS: list[Operator]`.

    attrs      attribute -> its type; `optional_attrs` may be missing
    infer      (input types, attrs) -> output types; raises ModelError on bad shapes or dtypes
    reference  (input arrays, attrs) -> output arrays: NumPy semantics; floats accumulate in float64,
               results are cast to the output dtype. Types that only store values (bf16, ...) need no
               care: operands arrive in the type of their arithmetic, results are rounded afterwards
    compute    injective operators: the element of output 0 at an index, as an expression of inputs
    lower      other operators: plain loops through a `KernelBuilder`, no tiling and no vectors
    schedule   (unscheduled kernel, target) -> the default trace for that target
    space      (unscheduled kernel, target) -> all schedules a tuner may try, whose default is that of
               `schedule`; None where there is only the default
    view       views: (input type, input strides, attrs, output type) -> StridedView, or None when
               the view needs a copy for these strides
    border     attrs -> the border that is all the operator adds, or None: where the input can have it in memory, the
               result is a view
    wishes     (input types, attrs) -> what the operator wants of its operands' memory
    samples    (rng) -> test cases that cover the operator's corners, small enough to interpret
    flops      (input types, attrs) -> floating-point operations, for profiles
    depth      (input types, attrs) -> length of the longest sum, for error bounds
    quantized  makes integer nodes for a float node between quantised tensors, True if it can
    onnx       ONNX operator type -> importer; of another domain than ONNX's own `domain::Type`
    rows       maps (rank 4): (input types, attrs, first row, row after the last) -> what a node that makes these
               rows of the output alone needs, or None where it cannot be had; elementwise operators need none
    apart      (input types, attrs) -> leading dims of the output along which a part needs the same part of the operands
               (those that broadcast whole), or None where there are none; elementwise operators need none
    alone      the kernel reads elements of its result again (`KernelBuilder.result`), or stores them more
               than once: nothing may be fused behind it
    fold_on_import  whether constant operands make a constant at once, before any pass sees the node
    """

    name: str
    trait: str
    infer: Callable[[Sequence[TensorType | None], Attrs], list[TensorType]]
    reference: Callable[[Sequence[Any], Attrs], list[Array]]
    attrs: Mapping[str, type | tuple[type, ...]] = field(default_factory=dict[str, Any])
    optional_attrs: Mapping[str, type] = field(default_factory=dict[str, type])
    compute: (
        Callable[[Sequence[Reader | None], tuple[Ix, ...], Attrs, TensorType, KernelBuilder], Expr]
        | None
    ) = None
    lower: Callable[[KernelBuilder, Attrs], None] | None = None
    schedule: Callable[[Kernel, Target], Trace] | None = None
    space: Callable[[Kernel, Target], Space | None] | None = None
    view: Callable[[TensorType, Shape, Attrs, TensorType], StridedView | None] | None = None
    border: Callable[[Attrs], Border | None] | None = None
    wishes: Callable[[Sequence[TensorType | None], Attrs], LayoutWish] | None = None
    samples: Callable[[np.random.Generator], Iterator[Sample]] | None = None
    flops: Callable[[Sequence[TensorType | None], Attrs], int] | None = None
    depth: Callable[[Sequence[TensorType | None], Attrs], int] = lambda types, attrs: 1
    quantized: Callable[[IntegerForm], bool] | None = None
    rows: Callable[[Sequence[TensorType | None], Attrs, int, int], Rows | None] | None = None
    apart: Callable[[Sequence[TensorType | None], Attrs], int] | None = None
    onnx: Mapping[str, Importer] = field(default_factory=dict[str, Importer])
    fold_on_import: bool = True
    alone: bool = False
    doc: str = ""


# ---------------------------------------------------------------- discovery


def _modules(package: str, group: str) -> Iterator[Any]:
    root = importlib.import_module(package)
    for info in sorted(pkgutil.iter_modules(root.__path__), key=lambda m: m.name):
        if not info.name.startswith("_"):
            yield importlib.import_module(f"{package}.{info.name}")
    for entry in metadata.entry_points(group=group):
        yield entry.load()


@cache
def operators() -> Mapping[str, Operator]:
    """All operators by canonical name."""
    found: dict[str, Operator] = {}
    for module in _modules("tilewright.kernels", "tilewright.kernels"):
        for operator in getattr(module, "OPERATORS", ()):
            if operator.name in found:
                raise TilewrightError(
                    f"operator `{operator.name}` is defined twice (again in {module.__name__}): rename one"
                )
            if operator.trait not in TRAITS:
                raise TilewrightError(
                    f"operator `{operator.name}` has the unknown trait {operator.trait}"
                )
            found[operator.name] = replace(operator, reference=_on_stored(operator))
    found.update(_own)
    return found


#: Operators that `register` added.
_own: dict[str, Operator] = {}


def register(own: Sequence[Operator]) -> None:
    """Add operators for the rest of this process, in place of those of the same name: what packages do with
    the entry point `tilewright.kernels`, for a file that is being written."""
    _own.update({op.name: replace(op, reference=_on_stored(op)) for op in own})
    operators.cache_clear()
    onnx_importers.cache_clear()


def _on_stored(op: Operator) -> Callable[[Sequence[Any], Attrs], list[Array]]:
    """The reference of `op` over types that only store values, too."""

    def reference(inputs: Sequence[Any], attrs: Attrs) -> list[Array]:
        arrays = [None if a is None else np.asarray(a) for a in inputs]
        if all(a is None or a.dtype.isbuiltin == 1 for a in arrays):
            return op.reference(inputs, attrs)
        types = op.infer([None if a is None else type_of(a) for a in arrays], attrs)
        wide = [None if a is None else a.astype(dtype(a.dtype).work.numpy) for a in arrays]
        found = op.reference(wide, attrs)
        return [np.asarray(y).astype(t.dtype.numpy) for y, t in zip(found, types, strict=True)]

    return reference


#: (graph, node) -> the nodes that compute the same in another way (constants and types are added to the
#: graph), or None where the variant does not apply.
Variant = Callable[[Graph, Node], "list[Node] | None"]


@cache
def variants() -> Mapping[str, Mapping[str, Variant]]:
    """Operator -> name -> another way to compute it: what operator files export as `VARIANTS`."""
    found: dict[str, dict[str, Variant]] = {}
    for module in _modules("tilewright.kernels", "tilewright.kernels"):
        for op, ways in getattr(module, "VARIANTS", {}).items():
            for name, rewrite in ways.items():
                if found.setdefault(op, {}).setdefault(name, rewrite) is not rewrite:
                    raise TilewrightError(
                        f"variant `{name}` of `{op}` is defined twice: rename one"
                    )
    return found


#: (graph, node, target) -> cycles that a way to compute the node is expected to take; infinite where it is none.
Cost = Callable[[Graph, Node, Target], float]
#: (graph, node, target) -> name of the variant that promises to be fastest; None for the operator's own way.
Way = Callable[[Graph, Node, Target], "str | None"]


@cache
def ways() -> Mapping[str, Way]:
    """Operator -> the rule that picks a variant where no log knows: the cheapest by what operator files export
    as `COSTS`, operator -> name of the variant -> cost. The operator's own way has no name, and no end if it has no cost."""
    found: dict[str, dict[str, Cost]] = {}
    for module in _modules("tilewright.kernels", "tilewright.kernels"):
        for op, costs in getattr(module, "COSTS", {}).items():
            for name, cost in costs.items():
                if found.setdefault(op, {}).setdefault(name, cost) is not cost:
                    raise TilewrightError(
                        f"way `{name}` of `{op}` has two costs: remove one of them"
                    )
    return {op: partial(_cheapest, costs) for op, costs in found.items()}


def _cheapest(costs: Mapping[str, Cost], graph: Graph, node: Node, target: Target) -> str | None:
    """The way with the least cost; None for the operator's own, which wins where others are no better."""
    cycles = {"": inf} | {name: cost(graph, node, target) for name, cost in costs.items()}
    return min(sorted(cycles), key=lambda name: cycles[name]) or None


def operator(name: str) -> Operator:
    """The operator called `name`; `TilewrightError` if there is none."""
    try:
        return operators()[name]
    except KeyError:
        raise TilewrightError(f"there is no operator `{name}`: see `tilewright ops`") from None


@cache
def onnx_importers() -> Mapping[str, Importer]:
    """ONNX operator type -> importer, over all operator files."""
    found: dict[str, Importer] = {}
    for op in operators().values():
        for op_type, importer in op.onnx.items():
            if found.setdefault(op_type, importer) is not importer:
                raise TilewrightError(f"two operator files import ONNX {op_type}")
    return found
