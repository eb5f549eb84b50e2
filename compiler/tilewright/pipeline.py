"""The ordered stages from a model file to a `Program`; nothing else knows the whole order.

In: model bytes or a graph, a target. Out: a `Program` (finished loop IR, steps, memory plan, weights).
Each stage can be dumped as text with `dump`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from tilewright.adapt import ADAPTATIONS, adapt
from tilewright.codegen.kernel import parallel_extent
from tilewright.codegen.llvm import runs_here
from tilewright.codegen.module import Place
from tilewright.core.index import Ix
from tilewright.core.sizes import Point
from tilewright.dynamic.open import Open
from tilewright.dynamic.request import Request, requested
from tilewright.errors import TilewrightError
from tilewright.graph.fuse import Group, fuse
from tilewright.graph.ir import Graph, Node
from tilewright.graph.layout import Placement, assign_layouts
from tilewright.graph.passes import PASSES, optimize
from tilewright.graph.passes.choose_variants import Chooser
from tilewright.graph.passes.fit_bands import Usage, fit_bands
from tilewright.graph.plan import MemoryPlan, allocations, busiest, plan_memory
from tilewright.graph.text import to_text as graph_text
from tilewright.graph.verify import verify as verify_graph
from tilewright.loop.ir import Kernel
from tilewright.loop.pack import pack_array
from tilewright.loop.text import to_text as loop_text
from tilewright.loop.verify import verify as verify_kernel
from tilewright.lower import Argument, Lowered, fingerprint, lower_fill, lower_group
from tilewright.program import Program, Step, Tensor
from tilewright.registry import operator
from tilewright.schedule.grid import one_block
from tilewright.schedule.target import Target, load_target, target_names
from tilewright.schedule.trace import Trace
from tilewright.threads import threads_that_pay
from tilewright.tune.library import Decision, Library, load_library, reapplied

Progress = Callable[[str, float], None]
Source = str | Path | bytes | Graph
#: Shapes of inputs by name; a dim may be the name of a size, whose range is an entry of its own.
Shapes = Mapping[str, Sequence[int | str] | str]


def resolve_target(name: str | Target) -> Target:
    """A target by name; `host` is the best target file this machine can run."""
    if isinstance(name, Target):
        return name
    if name != "host":
        return load_target(name)
    usable = [t for t in map(load_target, target_names()) if runs_here(t)]
    if not usable:
        raise TilewrightError("no target file fits this machine: name one with --target")
    return max(usable, key=lambda t: (t.vector_bytes, len(t.required), t.name))


def build(
    source: Source,
    target: str | Target = "host",
    shapes: Shapes | None = None,
    progress: Progress = lambda stage, fraction: None,
    notify: Callable[[str], None] = lambda message: None,
    dump: Path | None = None,
    name: str | None = None,
    variants: Chooser | None = None,
    library: Library | None = None,
    without: Set[str] = frozenset(),
    winograd: bool = True,
    arena: int | None = None,
) -> Program:
    """Run all stages up to finished loop IR.

    `without` names stages (`stages()`) to leave out where sizes are not open, which finds the one to blame.
    `library` holds what tuning has found out (default: the logs that ship and the user's own); `variants`
    picks other ways to compute nodes than it does; without `winograd` all convolutions are direct.
    `arena` is the size in bytes that the arena should not exceed, as far as cutting maps into bands can reach it.
    """
    machine = resolve_target(target)
    known = library if library is not None else load_library(machine)
    choose = variants or known.chooser(machine, winograd)
    request = requested(shapes, lambda: _declared(source))
    if request.sizes:
        opened = _opened(source, request, machine, choose, progress, notify, dump)
        place, groups = opened.place, opened.groups
        title = name or place.graph.name
        made = _Assembler(title, machine, place, groups, known, progress, dump, opened).run()
        return replace(made, winograd=winograd)
    graph = _imported(source, request.at({}), progress, notify, dump)
    place, groups = _grouped(graph, machine, choose, progress, dump, without, arena)
    assembler = _Assembler(name or graph.name, machine, place, groups, known, progress, dump)
    assembler.reuse = "memory" not in without
    return replace(assembler.run(), winograd=winograd, arena_limit=arena)


def stages() -> tuple[str, ...]:
    """Stages that change no result and may be left out: passes by name, the variants of operators, views
    without copies, fusion, memory that several values share."""
    passes = dict.fromkeys(p.__name__ for p in PASSES)
    return (*passes, *ADAPTATIONS, "views", "fuse", "memory")


def survey(
    source: Source, target: str | Target = "host", shapes: Shapes | None = None
) -> tuple[Program | None, list[Failure]]:
    """Like `build`, but goes on after a kernel that cannot be made: the program, or every failure.

    What concerns the model as a whole (a broken file, an unsupported node) is raised as by `build`.
    """
    machine = resolve_target(target)
    known = load_library(machine)
    request = requested(shapes, lambda: _declared(source))
    opened: Open | None = None
    if request.sizes:
        opened = _opened(source, request, machine, known.chooser(machine))
        place, groups = opened.place, opened.groups
    else:
        graph = _imported(source, request.at({}))
        place, groups = _grouped(graph, machine, known.chooser(machine))
    assembler = _Assembler(
        place.graph.name, machine, place, groups, known, lambda stage, done: None, None, opened
    )
    failures: list[Failure] = []
    assembler.failures = failures
    program = assembler.run()
    return (None if failures else program), failures


def _imported(
    source: Source,
    shapes: Mapping[str, Sequence[int]] | None,
    progress: Progress = lambda stage, fraction: None,
    notify: Callable[[str], None] = lambda message: None,
    dump: Path | None = None,
) -> Graph:
    progress("import", 0.0)
    if isinstance(source, Graph):
        graph = source
    else:
        from tilewright.frontend.models import load_model

        graph = load_model(source, shapes, notify)
    verify_graph(graph)
    _dump(dump, "1_imported.graph", lambda: graph_text(graph))
    return graph


def largest(source: Source, shapes: Shapes | None) -> dict[str, tuple[int, ...]]:
    """Shapes of inputs with every open size at its largest. Raises `ModelError`."""
    request = requested(shapes, lambda: _declared(source))
    return request.at({s.var: s.range[1] for s in request.sizes})


def _declared(source: Source) -> Mapping[str, tuple[int | str, ...]]:
    """Dims of the inputs as the model states them."""
    if isinstance(source, Graph):
        return {n: source.types[n].shape for n in source.inputs}
    from tilewright.frontend.models import input_dims

    return dict(input_dims(source))


def _opened(
    source: Source,
    request: Request,
    target: Target,
    variants: Chooser,
    progress: Progress = lambda stage, fraction: None,
    notify: Callable[[str], None] = lambda message: None,
    dump: Path | None = None,
) -> Open:
    """The model with open sizes; what is dumped, noted and chosen is that at the bound."""
    if target.gpu is not None:
        raise TilewrightError(
            f"sizes cannot be left open for {target.name}: compile for fixed shapes, several if need be"
        )
    if isinstance(source, Graph):
        raise TilewrightError("a graph has static shapes: open sizes need the model it came from")
    chosen: dict[str, str | None] = {}
    smallest = optimize(
        _imported(source, request.at({s.var: s.range[0] for s in request.sizes}))
    ).types

    def choose(graph: Graph, node: Node) -> str | None:
        """A variant is made for one size of image: only the first dim (the batch) may be open."""
        if node.name not in chosen:
            out = node.outputs[0]
            fixed = out in smallest and smallest[out].shape[1:] == graph.types[out].shape[1:]
            chosen[node.name] = variants(graph, node) if fixed else None
        return chosen[node.name]

    def optimised(point: Point) -> Graph:
        first = not seen
        seen.append(point)
        graph = _imported(
            source,
            request.at(point),
            progress,
            notify if first else lambda m: None,
            dump if first else None,
        )
        out = adapt(
            optimize(graph), target, choose, {"cut_bands"}
        )  # its choice depends on the sizes
        verify_graph(out)
        return out

    seen: list[Point] = []
    opened = Open(request, optimised)
    _dump(dump, "2_optimised.graph", lambda: graph_text(opened.place.graph))
    _dump(dump, "3_groups.txt", lambda: _groups_text(opened.place, opened.groups))
    return opened


def _grouped(
    graph: Graph,
    target: Target,
    variants: Chooser,
    progress: Progress = lambda stage, fraction: None,
    dump: Path | None = None,
    without: Set[str] = frozenset(),
    arena: int | None = None,
) -> tuple[Placement, list[Group]]:
    """The optimised graph with memory orders, and what becomes one kernel each."""
    progress("optimise", 0.0)
    optimised = rewritten(graph, target, variants, without)
    if arena is not None:
        optimised = fit_bands(optimised, arena, lambda g: _usage(g, target))
    verify_graph(optimised)
    _dump(dump, "2_optimised.graph", lambda: graph_text(optimised))
    progress("layout", 0.0)
    rigid = {n.name for n in optimised.nodes} if "views" in without else frozenset[str]()
    place = assign_layouts(optimised, rigid)
    # nothing is computed where there are no elements
    fused = fuse(place, "fuse" not in without)
    groups = [group for group in fused if place.graph.types[group.output].size]
    _dump(dump, "3_groups.txt", lambda: _groups_text(place, groups))
    return place, groups


def _usage(graph: Graph, target: Target) -> Usage:
    """What the arena of a graph has to hold."""
    place = assign_layouts(graph)
    steps: list[list[str]] = []
    for group in fuse(place):
        made = {n.outputs[0] for n in group.nodes}
        steps.append([i for n in group.nodes for i in n.inputs if i and i not in made])
        steps[-1].append(group.output)
    size, alive = busiest(allocations(place, steps), target.align)
    return Usage(size, {a.name for a in alive})


def rewritten(
    graph: Graph, target: Target, variants: Chooser, without: Set[str] = frozenset()
) -> Graph:
    """The graph after its passes and those of the target."""
    optimised = optimize(graph, tuple(p for p in PASSES if p.__name__ not in without))
    return adapt(optimised, target, variants, without)


@dataclass(frozen=True, slots=True)
class Failure:
    """A kernel that cannot be made for the target: the nodes it computes, their operators, the reason."""

    nodes: tuple[str, ...]
    operators: tuple[str, ...]
    reason: str


class _Assembler:
    """Lowers and schedules groups, collects kernels, weights and steps."""

    def __init__(
        self,
        name: str,
        target: Target,
        place: Placement,
        groups: list[Group],
        library: Library,
        progress: Progress,
        dump: Path | None,
        opened: Open | None = None,
    ) -> None:
        self.opened = opened
        self.name = name
        self.target = target
        self.place = place
        self.g = place.graph
        self.groups = groups
        self.library = library
        self.progress = progress
        self.dump = dump
        self.kernels: dict[str, Kernel] = {}
        self.by_print: dict[str, str] = {}
        self.traces: dict[str, Trace] = {}
        self.reasons: dict[str, str] = {}
        self.weights = bytearray()
        self.weight_at: dict[tuple[str, str], int] = {}
        self.weight_by_bytes: dict[bytes, int] = {}
        self.reuse = True
        """Whether values that are not needed at the same time may share memory."""
        self.failures: list[Failure] | None = None
        """Where failures are noted; None: the first one is raised."""

    def run(self) -> Program:
        work: list[tuple[Lowered, Kernel, Group | None, str]] = []
        filled: set[str] = set()
        for i, group in enumerate(self.groups):
            self.progress("schedule", i / len(self.groups))
            root = self.place.storage[group.output].root
            if root not in filled:
                filled.add(root)
                border = self.fill(root)
                if border is not None:
                    work.append((border[1], self.scheduled(*border, None), None, root))
            try:
                kernel, lowered = self.lowered(i)
                work.append((lowered, self.scheduled(kernel, lowered, group), group, root))
            except TilewrightError as err:
                if self.failures is None:
                    raise
                nodes, ops = (tuple(n.name for n in group.nodes), tuple(n.op for n in group.nodes))
                self.failures.append(Failure(nodes, ops, str(err)))
        plan = self.memory([[a.value for a in w[0].arguments] for w in work])
        places = self.root_places(plan)
        steps = threads_that_pay([self.step(*w, places) for w in work], self.target)
        names = self.place.output_names
        return Program(
            name=self.name,
            target=self.target,
            inputs=tuple(
                Tensor(n, self.g.types[n], self.dims(i, False)) for i, n in enumerate(self.g.inputs)
            ),
            outputs=tuple(
                Tensor(shown, self.g.types[n], self.dims(i, True))
                for i, (shown, n) in enumerate(zip(names, self.g.outputs, strict=True))
            ),
            sizes=self.opened.sizes if self.opened else (),
            graph=self.g,
            placement=self.place,
            kernels=tuple(self.kernels.values()),
            traces=self.traces,
            reasons=self.reasons,
            steps=steps,
            arena_bytes=plan.size,
            arena_lower_bound=plan.lower_bound,
            weights=bytes(self.weights),
            places=places,
        )

    # ---- kernels

    def lowered(self, i: int) -> tuple[Kernel, Lowered]:
        """Group `i` as a kernel for all sizes, and as it was lowered (at the bound)."""
        if self.opened is not None:
            return self.opened.group(i)
        made = lower_group(self.place, self.groups[i])
        return made.kernel, made

    def fill(self, root: str) -> tuple[Kernel, Lowered] | None:
        """The same for the step that writes a border."""
        if self.opened is not None:
            return self.opened.fill(root)
        made = lower_fill(self.place, root)
        return None if made is None else (made.kernel, made)

    def dims(self, number: int, output: bool) -> tuple[Ix, ...]:
        return self.opened.dims(number, output) if self.opened is not None else ()

    def scheduled(self, raw: Kernel, lowered: Lowered, group: Group | None) -> Kernel:
        """Schedule as the library says, or by the operator's default; equal kernels are kept once."""
        digest = fingerprint(raw)
        if digest in self.by_print:
            return self.kernels[self.by_print[digest]]
        verify_kernel(raw)
        op = operator(group.anchor.op) if group else None
        made = self.library.decide(op, lowered.kernel, self.target)
        if raw is not lowered.kernel:
            made = reapplied(made, op, raw, lowered.kernel, self.target)
        symbol = f"{self.name}_{len(self.kernels)}_{raw.name}"
        self.kernels[symbol] = replace(made.kernel, name=symbol)
        self.traces[symbol] = made.trace
        alone = one_block(made.kernel) if self.target.gpu is not None else ""
        self.reasons[symbol] = f"{made.reason}; {alone}" if alone else made.reason
        self.by_print[digest] = symbol
        _dump(self.dump, f"4_loops/{symbol}.txt", lambda: loop_text(raw))
        _dump(self.dump, f"5_scheduled/{symbol}.txt", lambda: _scheduled_text(made))
        return self.kernels[symbol]

    # ---- memory

    def memory(self, values: list[list[str]]) -> MemoryPlan:
        """Live intervals of arena allocations, then the plan."""
        return plan_memory(allocations(self.place, values, self.reuse), self.target.align)

    def root_places(self, plan: MemoryPlan) -> dict[str, Place]:
        places = {r: Place("arena", at) for r, at in plan.offsets.items()}
        places.update({n: Place("output", 0, i) for i, n in enumerate(self.g.outputs)})
        places.update({n: Place("input", 0, i) for i, n in enumerate(self.g.inputs)})
        return places

    def constant(self, argument: Argument, kernel: Kernel, param: str) -> Place:
        """Put a constant (packed as the kernel wants it) into the weights; equal bytes once."""
        pack = next((p for p in kernel.packs if p.buffer == param), None)
        key = (argument.value, repr(pack))
        if key not in self.weight_at:
            array = self.g.constants[argument.value]
            if pack is not None:
                array = pack_array(array, pack)
            data = np.ascontiguousarray(array).tobytes()
            if data not in self.weight_by_bytes:
                self.weights.extend(b"\0" * (-len(self.weights) % self.target.align))
                self.weight_by_bytes[data] = len(self.weights)
                self.weights.extend(data)
            self.weight_at[key] = self.weight_by_bytes[data]
        return Place("weights", self.weight_at[key])

    # ---- steps

    def step(
        self,
        lowered: Lowered,
        kernel: Kernel,
        group: Group | None,
        root: str,
        places: dict[str, Place],
    ) -> Step:
        at: list[Place] = []
        touched = 0
        for argument, param in zip(lowered.arguments, kernel.params, strict=False):
            t = self.g.types[argument.value]
            touched += t.bytes
            if argument.role == "const":
                at.append(self.constant(argument, kernel, param.buffer.name))
                continue
            origin = self.place.storage[argument.value].root
            if origin in self.g.constants:  # a view of a constant that was not worth computing
                base = self.constant(Argument(origin, 0, "const"), kernel, "")
            else:
                base = places[origin]
            at.append(replace(base, offset=base.offset + argument.offset * t.dtype.bytes))
        if len(kernel.params) > len(lowered.arguments):  # sizes come after all inputs
            at.append(Place("input", 0, len(self.g.inputs)))
        nodes = group.nodes if group else ()
        flops = sum(self.flops(n) for n in nodes)
        count = parallel_extent(kernel)
        return Step(
            label=" + ".join([n.op for n in nodes]) if nodes else f"fill {root}",
            kernel=kernel.name,
            op=nodes[0].op if nodes else "fill",
            nodes=tuple(n.name for n in nodes),
            flops=flops,
            bytes=touched,
            outputs=(group.output,) if group else (),
            places=tuple(at),
            count=count,
            threaded=count > 1,
        )

    def flops(self, node: Node) -> int:
        op = operator(node.op)
        types = [self.g.types[i] if i else None for i in node.inputs]
        if op.flops is not None:
            return op.flops(types, node.attrs)
        return self.g.types[node.outputs[0]].size if op.trait == "elementwise" else 0


# ---------------------------------------------------------------- dumps


def _dump(root: Path | None, name: str, text: Callable[[], str]) -> None:
    if root is None:
        return
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text(), encoding="utf-8")


def _scheduled_text(made: Decision) -> str:
    steps = "".join(f"# {s}\n" for s in made.trace)
    return f"# {made.reason}\n{steps}{loop_text(made.kernel)}"


def _groups_text(place: Placement, groups: list[Group]) -> str:
    lines: list[str] = []
    for i, group in enumerate(groups):
        t = place.graph.types[group.output]
        layout = place.layouts[group.output]
        border = f" halo {layout.halo}" if layout.has_halo else ""
        lines.append(f"group {i}: {group.output}: {t} order {layout.order}{border}")
        lines += [f"  {n.op}({', '.join(n.inputs)})  # {n.name}" for n in group.nodes]
    return "\n".join(lines) + "\n"
