"""Models with open sizes: one program for every size in a range.

In: a model, shapes that name sizes (`tokens=1..512`). Out: for each group of the graph one kernel that holds at all
sizes.
The model is imported, optimised and lowered at several points of the sizes as if it were static; what differs
becomes forms of the sizes (`loop.generalise`). Graph, memory plan and schedules are those of the bound, and
tensors in memory keep the bound's strides, so that no index has a factor that is known at run time only.
Invariant: the graph has the same nodes at every point looked at, and each kernel is there what lowering makes of it;
anything else is refused with the node and the size. Points are not all sizes: `verify` runs others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from tilewright.core.index import Ix
from tilewright.core.sizes import Point, fit, points_to_check, points_to_fit, values_at
from tilewright.dynamic.instance import NoForm, differs, instance, numbers_differ, results_differ
from tilewright.dynamic.request import Request
from tilewright.errors import ModelError, TilewrightError
from tilewright.graph.fuse import Group, fuse
from tilewright.graph.ir import Graph, TensorType
from tilewright.graph.layout import Placement, assign_layouts
from tilewright.loop.generalise import Different, agree, at_point, generalise, same, with_sizes
from tilewright.loop.ir import Kernel
from tilewright.lower import Lowered, lower_fill, lower_group
from tilewright.registry import operator


@dataclass(slots=True)
class _View:
    """The model at one point."""

    point: Point
    place: Placement
    groups: list[Group]


class Open:
    """A model with open sizes: its graph at the bound, and kernels that hold for all sizes."""

    def __init__(self, request: Request, optimised: Callable[[Point], Graph]) -> None:
        """`optimised` imports the model at a point and runs the passes of the graph."""
        self.request, self.sizes = request, request.sizes
        fitted, checked = points_to_fit(self.sizes), points_to_check(self.sizes)
        graphs = [optimised(p) for p in fitted]
        for g, p in zip(graphs, fitted, strict=True):
            self._compare(graphs[0], g, p)
        for p in checked:
            self._check(graphs, fitted, optimised(p), p)
        rigid: frozenset[str] = frozenset()
        while True:  # views that are none at some size become copies
            places = [assign_layouts(g, rigid) for g in graphs]
            for place, p in zip(places, fitted, strict=True):
                self._compare(places[0].graph, place.graph, p)
            laid = [place.graph for place in places]
            places += [_elsewhere(places[0], instance(laid, fitted, p)) for p in checked]
            moved = {n for place in places for n in _moved(places[0], place)}
            if not moved:
                break
            rigid |= moved
        _shift_parts(places)
        groups = fuse(places[0])
        views = [
            _View(p, place, _regrouped(groups, place.graph))
            for p, place in zip([*fitted, *checked], places, strict=True)
        ]
        self.fitted, self.checked = views[: len(fitted)], views[len(fitted) :]

    @property
    def place(self) -> Placement:
        """The model's values in memory, at the bound."""
        return self.fitted[0].place

    @property
    def groups(self) -> list[Group]:
        """What becomes a kernel each."""
        return self.fitted[0].groups

    def group(self, i: int) -> tuple[Kernel, Lowered]:
        """Group `i` for all sizes, and as it is at the bound."""
        what = f"node `{self.groups[i].anchor.name}` ({self.groups[i].anchor.op})"
        return self._general(what, lambda v: lower_group(v.place, v.groups[i]))

    def fill(self, root: str) -> tuple[Kernel, Lowered] | None:
        """The step that writes the border of an allocation."""
        if lower_fill(self.place, root) is None:
            return None

        def lower(v: _View) -> Lowered:
            made = lower_fill(v.place, root)
            assert made is not None
            return made

        return self._general(f"the border of `{root}`", lower)

    def dims(self, number: int, output: bool) -> tuple[Ix, ...]:
        """Dims of an input or output as forms of the sizes' variables."""
        types = [self._tensor(v, number, output) for v in self.fitted]
        found: list[Ix] = []
        for d in range(types[0].rank):
            form = fit([v.point for v in self.fitted], [t.shape[d] for t in types])
            if form is None:
                raise ModelError(
                    f"{'output' if output else 'input'} {number}: dimension {d} depends on the sizes in no "
                    "known way: compile the model for fixed shapes"
                )
            found.append(form)
        return tuple(found)

    def _tensor(self, view: _View, number: int, output: bool) -> TensorType:
        g = view.place.graph
        return g.types[(g.outputs if output else g.inputs)[number]]

    def _general(self, what: str, lower: Callable[[_View], Lowered]) -> tuple[Kernel, Lowered]:
        made = [lower(v) for v in self.fitted]
        try:
            kernel = generalise([m.kernel for m in made], [v.point for v in self.fitted])
        except Different as err:
            raise ModelError(
                f"{what} cannot be compiled for {self._shown()}: {err}; compile the model for fixed shapes"
            ) from None
        for v in self.checked:
            here, own = at_point(kernel, v.point), lower(v)
            mine, theirs = ([a.value for a in m.arguments] for m in (made[0], own))
            constants = self.place.graph.constants
            if not same(here, own.kernel) and not agree(
                (here, mine), (own.kernel, theirs), constants
            ):
                raise self._refusal(what, "it computes in another way", v.point)
        return with_sizes(kernel, self.sizes), made[0]

    # ---- refusals

    def _compare(self, bound: Graph, other: Graph, point: Point) -> None:
        """Raise unless two graphs have the same nodes and constants that agree."""
        found = differs(bound, other)
        if found is not None:
            raise self._refusal(*found, point)

    def _check(
        self, graphs: Sequence[Graph], points: Sequence[Point], other: Graph, point: Point
    ) -> None:
        """Raise unless the bound's nodes are the model at another point, too. Passes may have found more to
        simplify there (a transposition of one row): then both must compute the same."""
        try:
            mine = instance(graphs, points, point)
            found = differs(mine, other)
            if found is None:
                found = numbers_differ(mine, other)
            elif not (far := results_differ(mine, other)):
                found = None
            else:
                found = far, "it computes something else"
        except NoForm as err:
            raise ModelError(
                f"the model cannot be compiled for {self._shown()}: {err}; compile it for fixed shapes"
            ) from None
        except TilewrightError as err:
            raise self._refusal("the model", f"it is another ({err})", point) from None
        if found is not None:
            raise self._refusal(*found, point)

    def _refusal(self, what: str, how: str, point: Point) -> ModelError:
        values = ", ".join(f"{n}={v}" for n, v in values_at(self.sizes, point).items())
        return ModelError(
            f"{what} cannot be compiled for {self._shown()}: at {values} {how}; narrow the range, or "
            "compile the model for fixed shapes"
        )

    def _shown(self) -> str:
        return ", ".join(map(str, self.sizes))


def _regrouped(groups: Sequence[Group], graph: Graph) -> list[Group]:
    """The bound's groups, of the nodes of the graph at another point."""
    nodes = {n.outputs: n for n in graph.nodes}
    return [Group(tuple(nodes[n.outputs] for n in g.nodes)) for g in groups]


def _elsewhere(bound: Placement, graph: Graph) -> Placement:
    """The bound's memory for the graph at another point."""
    parts: dict[str, tuple[str, int, int]] = {}
    for node in graph.nodes:
        start, axis = 0, node.attrs.get("axis")
        for name in node.inputs if node.op == "concat" else ():
            assert isinstance(axis, int)
            parts[name] = (node.outputs[0], axis, start)
            start += graph.types[name].shape[axis]
    return replace(bound, graph=graph, parts=parts)


def _moved(bound: Placement, other: Placement) -> set[str]:
    """Views of the bound that are elsewhere in memory at another point."""
    found: set[str] = set()
    g = other.graph
    for node in bound.graph.nodes:
        op = operator(node.op)
        if op.view is None or node.outputs[0] not in bound.aliased:
            continue
        mine = next(n for n in g.nodes if n.outputs == node.outputs)
        source, here = bound.storage[node.inputs[0]], bound.storage[node.outputs[0]]
        t = g.types[node.outputs[0]]
        view = op.view(g.types[node.inputs[0]], source.strides, mine.attrs, t)
        if (
            view is None
            or source.offset + view.offset != here.offset
            or any(
                n > 1 and a != b
                for n, a, b in zip(t.shape, view.strides, here.strides, strict=True)
            )
        ):
            found.add(node.name)
    return found


def _shift_parts(places: Sequence[Placement]) -> None:
    """Give all points the memory of the bound; where a part of a concatenation begins may depend on them."""
    bound = places[0]
    varying = {
        name
        for place in places
        for name, (_, _, start) in place.parts.items()
        if start != bound.parts[name][2]
    }
    for name in varying:
        whole, axis, start = bound.parts[name]
        s = bound.storage[name]
        offset = s.offset - start * bound.storage[whole].strides[axis]
        bound.storage[name] = replace(s, offset=offset)
    for place in places:
        place.shifts = {name: place.parts[name] for name in varying}
        place.storage, place.layouts, place.aliased = bound.storage, bound.layouts, bound.aliased
