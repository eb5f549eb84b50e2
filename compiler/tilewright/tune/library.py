"""What tuning has found out, as compilation uses it.

In: log folders (those that ship with the package and the user's own). Out: a schedule and the reason for
it per kernel, a way to compute per node.
Invariant: logs can make code slow, never wrong: a trace goes through `admit`, and a
record that fails there counts as absent.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path

from tilewright.errors import ScheduleError
from tilewright.graph.ir import Graph, Node
from tilewright.graph.passes.choose_variants import Chooser
from tilewright.loop.ir import Kernel
from tilewright.loop.rewrite import loops
from tilewright.registry import Operator, ways
from tilewright.schedule.space import Space
from tilewright.schedule.target import Target, load_target
from tilewright.schedule.templates import gpu, gpu_space, injective, injective_space
from tilewright.schedule.templates.draft import on_threads
from tilewright.schedule.trace import Trace, step
from tilewright.tune.admit import admit, finish
from tilewright.tune.folders import shipped_folder, user_folder
from tilewright.tune.identity import (
    distance,
    extents,
    kernel_hash,
    node_extents,
    node_hash,
    target_hash,
)
from tilewright.tune.reasons import DEFAULT_RULE
from tilewright.tune.records import Record, read

#: An untuned kernel takes the schedule of a tuned one at most this many doublings away.
NEAR = 3.0
#: The same for ways to compute a node, which turn on the shape more sharply.
NEAR_VARIANT = 1.0

#: ... and only if it gained this much there: what gains little on one shape may lose on the next.
TRANSFER_RATIO = 0.95


def default_trace(op: Operator | None, kernel: Kernel, target: Target) -> Trace:
    """The operator's own schedule; what has none is treated as data movement."""
    if target.family == "cuda":
        return gpu.schedule(kernel, target)
    choose = op.schedule if op is not None and op.schedule is not None else injective
    return choose(kernel, target)


def space_of(op: Operator | None, kernel: Kernel, target: Target) -> Space | None:
    """The operator's space for a kernel, if its default is what compilation would use."""
    if op is None:
        return None
    make: Callable[[Kernel, Target], Space | None] | None = op.space
    if target.family == "cuda":
        make = gpu_space
    elif make is None and op.schedule is None:
        make = injective_space
    space = make(kernel, target) if make is not None else None
    if space is None:
        return None
    try:
        same = space.trace(space.default) == default_trace(op, kernel, target)
    except ScheduleError:
        return None
    return space if same else None


@dataclass(frozen=True, slots=True)
class Decision:
    """A schedule, the finished kernel it makes, and why it was chosen."""

    trace: Trace
    kernel: Kernel
    reason: str


def reapplied(
    found: Decision, op: Operator | None, kernel: Kernel, bound: Kernel, target: Target
) -> Decision:
    """The schedule that was found for a kernel at the bound of its sizes, on the kernel for all sizes.

    Where it cannot be applied, the default; where that cannot either, vectors along the innermost loop, or
    loops as they are."""
    inner = list(loops(kernel.body))[-1:]
    vectors = tuple(
        s
        for v in inner
        for s in (step("split", v, target.lanes(4), f"{v}o", f"{v}l"), step("vectorize", f"{v}l"))
    )
    for trace, reason in (
        (found.trace, found.reason),
        (default_trace(op, bound, target), DEFAULT_RULE),
        (vectors, "vectors along the innermost loop"),
    ):
        try:
            return Decision(trace, admit(kernel, trace), f"{reason}, for the largest sizes")
        except ScheduleError:
            continue
    return Decision((), finish(kernel, ()), "loops as they are: no schedule holds for all sizes")


@dataclass(slots=True)
class Library:
    """Records of one target and of those whose logs hold for it; later ones replace earlier ones.

    `winners`: kernel hash -> what to use; `ways`: node hash -> which variant to use.
    """

    target: str = ""
    kin: frozenset[str] = frozenset()
    """Hashes of the other targets."""
    winners: dict[str, Record] = field(default_factory=dict[str, Record])
    ways: dict[str, Record] = field(default_factory=dict[str, Record])
    problems: list[str] = field(default_factory=list[str])

    def add(self, record: Record) -> None:
        """Take a record in."""
        if record.target != self.target and record.target not in self.kin:
            return
        if record.kind == "winner":
            self.winners[record.kernel] = record
        elif record.kind == "variant":
            self.ways[record.kernel] = record

    # ---- schedules

    def decide(self, op: Operator | None, kernel: Kernel, target: Target) -> Decision:
        """The best schedule known for a kernel: its own record, the nearest one's, or the default."""
        own = self.winners.get(kernel_hash(kernel)) if self.winners else None
        if own is not None:
            made = self._own(own, kernel, target)
            if made is not None:
                return made
        else:
            made = self._nearest(op, kernel, target)
            if made is not None:
                return made
        trace = default_trace(op, kernel, target)
        reason = DEFAULT_RULE
        if own is not None:
            reason += (
                ": tuning found nothing better"
                if own.verdict != "faster"
                else ": the record in the log cannot be applied any more"
            )
        return Decision(trace, finish(kernel, trace), reason)

    def _own(self, record: Record, kernel: Kernel, target: Target) -> Decision | None:
        if record.verdict != "faster":
            return None
        trace = record.trace
        try:
            made = admit(kernel, trace)
            if target.family == "simd":  # it may be older than the rule for threads
                trace = on_threads(kernel, trace)
                made = made if trace == record.trace else admit(kernel, trace)
        except ScheduleError:
            return None
        return Decision(trace, made, f"log record: {_gain(record)}")

    def _nearest(self, op: Operator | None, kernel: Kernel, target: Target) -> Decision | None:
        """The parameters of the nearest tuned kernel of the same operator and template."""
        if op is None or not any(r.operator == op.name for r in self.winners.values()):
            return None
        space = space_of(op, kernel, target)
        if space is None:
            return None
        mine = extents(kernel)
        near = sorted(
            (
                (distance(mine, r.extents), r.kernel, r)
                for r in self.winners.values()
                if r.operator == op.name and r.family == space.family
                and r.extents.keys() == mine.keys()
            ),
            key=lambda t: t[:2],
        )  # fmt: skip
        if not near or near[0][0] > NEAR or near[0][2].verdict != "faster":
            return None  # where the nearest one kept the default, so do we
        record = near[0][2]
        if record.ratio is None or record.ratio > TRANSFER_RATIO:
            return None
        choice = space.nearest(record.choice)
        if choice == dict(space.default) or not space.cost(choice) <= 1.3 * space.cost(
            space.default
        ):
            return None
        try:
            trace = space.trace(choice)
            made = admit(kernel, trace)
        except ScheduleError:
            return None
        shape = " ".join(f"{k}={v}" for k, v in record.extents.items())
        return Decision(
            trace, made, f"transferred from the nearest tuned shape ({shape}): {_gain(record)}"
        )

    # ---- ways to compute a node

    def chooser(self, target: Target, winograd: bool = True) -> Chooser:
        """Picks ways for `target`: what was measured for such a node or a near one, else what the operator's
        rule expects; without `winograd` none of that name."""

        def choose(graph: Graph, node: Node) -> str | None:
            known, rule = self.way(graph, node), ways().get(node.op)
            name = rule(graph, node, target) if rule is not None and known is None else None
            if known is not None and known.verdict == "faster":
                name = known.variant
            return name if name and (winograd or not name.startswith("winograd")) else None

        return choose

    def way(self, graph: Graph, node: Node) -> Record | None:
        """What was measured for a node that computes the same, or for the nearest one."""
        if not self.ways:
            return None
        own = self.ways.get(node_hash(graph, node))
        if own is None:
            mine = node_extents(graph, node)
            near = sorted(
                (distance(mine, r.extents), r.kernel)
                for r in self.ways.values()
                if r.operator == node.op and r.choice == node_choice(graph, node)
            )
            if not near or near[0][0] > NEAR_VARIANT:
                return None
            own = self.ways[near[0][1]]
        return own


def node_choice(graph: Graph, node: Node) -> Mapping[str, int | str]:
    """What must agree exactly before a way is carried over: attributes and dtypes."""
    types = ",".join(str(graph.types[i].dtype) for i in node.inputs if i)
    out: dict[str, int | str] = {"types": types}
    for name, value in sorted(node.attrs.items()):
        out[name] = "x".join(map(str, value)) if isinstance(value, tuple) else str(value)
    return out


def _gain(record: Record) -> str:
    how = "" if record.source == "measured" else f" (estimated by {record.source})"
    return f"{1 / record.ratio:.2f} times the default{how}" if record.ratio else f"faster{how}"


def load_library(target: Target, folders: Sequence[Path] | None = None) -> Library:
    """Records for a target; shipped ones first, so that the user's own replace them."""
    kin = [load_target(target.logs)] if target.logs else []
    library = Library(target_hash(target), frozenset(map(target_hash, kin)))
    places = folders if folders is not None else (shipped_folder(), user_folder())
    for one, folder in product((*kin, target), places):
        for record in read(folder, one.name, library.problems):
            library.add(record)
    return library
