"""What a program needs of a microcontroller: flash and RAM, as a whole and step by step.

In: a `Program` and the code generated for it. Out: a `Footprint`, or a refusal with the numbers.
Invariant: every byte is counted once: code of a kernel and weights that several steps share belong to the
first of them. RAM is what the model itself needs at the same time: arena, inputs, outputs and stack; the
rest of the firmware and interrupts come on top.
"""

from __future__ import annotations

from dataclasses import dataclass

from tilewright.artifact.elf import SHF_ALLOC, Elf
from tilewright.codegen.stack import stack_bytes
from tilewright.errors import TargetError
from tilewright.program import Program

#: Sections of an object that a linker drops from firmware: tables for unwinding C++ exceptions.
_DROPPED = (".ARM.exidx", ".ARM.extab")


@dataclass(frozen=True, slots=True)
class StepNeed:
    """Bytes of one step: `arena` are those alive while it runs, `stack` what it takes below its caller."""

    label: str
    node: str
    code: int
    weights: int
    arena: int
    stack: int


@dataclass(frozen=True, slots=True)
class Footprint:
    """Bytes of a whole program. `code` has everything that is not weights, glue between steps too."""

    name: str
    target: str
    steps: tuple[StepNeed, ...]
    code: int
    weights: int
    arena: int
    inputs: int
    outputs: int
    stack: int

    @property
    def flash(self) -> int:
        return self.code + self.weights

    @property
    def ram(self) -> int:
        return self.arena + self.inputs + self.outputs + self.stack

    def peak(self) -> StepNeed | None:
        """The step with the most of arena and stack."""
        return max(self.steps, key=lambda s: s.arena + s.stack, default=None)


def footprint(program: Program, code: bytes, assembly: str) -> Footprint:
    """Measure object `code` of `program` and its `assembly` (of an Arm target)."""
    elf = Elf(code, program.name)
    sizes = {s.name: s.size for s in elf.symbols()}
    sections = {
        s.name: s.size
        for s in elf.sections
        if s.flags & SHF_ALLOC and not s.name.startswith(_DROPPED)
    }
    stacks = stack_bytes(assembly)
    weights = _weights(program)
    arena = live_arena(program)
    steps: list[StepNeed] = []
    seen: set[str] = set()
    for i, step in enumerate(program.steps):
        thunk = f"{program.name}_step{i}"
        fresh = {thunk, step.kernel} - seen
        seen |= fresh
        steps.append(
            StepNeed(
                step.label, step.nodes[0] if step.nodes else "",
                sum(sizes.get(f, 0) for f in fresh), weights[i], arena[i], stacks.get(thunk, 0),
            )
        )  # fmt: skip
    return Footprint(
        name=program.name,
        target=program.target.name,
        steps=tuple(steps),
        code=sum(sections.values()) - len(program.weights),
        weights=len(program.weights),
        arena=max(program.arena_bytes, program.target.align),
        inputs=sum(t.type.bytes for t in program.inputs),
        outputs=sum(t.type.bytes for t in program.outputs),
        stack=stacks.get(f"{program.name}_run", 0),
    )


def live_arena(program: Program) -> list[int]:
    """Bytes of the arena in use during each step, with gaps between allocations left out."""
    place = program.placement
    touched: list[set[str]] = []
    for step in program.steps:
        nodes = [n for n in program.graph.nodes if n.name in step.nodes] if step.nodes else []
        values = {v for n in nodes for v in (*n.inputs, *n.outputs) if v in place.storage}
        touched.append({place.storage[v].root for v in values})
    for i, step in enumerate(program.steps):
        if not step.nodes and i + 1 < len(program.steps):
            # a border is filled right before the first step that writes inside it
            touched[i] |= {place.storage[v].root for v in program.steps[i + 1].outputs}
    first: dict[str, int] = {}
    last: dict[str, int] = {}
    for i, roots in enumerate(touched):
        for root in roots:
            if root in program.places and program.places[root].base == "arena":
                first.setdefault(root, i)
                last[root] = i
    sizes = {r: place.elements(r) * program.graph.types[r].dtype.bytes for r in first}
    return [
        sum(sizes[r] for r in first if first[r] <= i <= last[r]) for i in range(len(program.steps))
    ]


def _weights(program: Program) -> list[int]:
    """Bytes of weights that each step is the first to use; alignment goes with what precedes it."""
    offsets = sorted({p.offset for s in program.steps for p in s.places if p.base == "weights"})
    ends = [*offsets, len(program.weights)][1:]
    size = {a: b - a for a, b in zip(offsets, ends, strict=True)}
    return [
        sum(size.pop(p.offset, 0) for p in s.places if p.base == "weights") for s in program.steps
    ]


def require_fit(need: Footprint, flash: int, ram: int, stack: int) -> None:
    """Raise `TargetError` with the numbers if `need` exceeds the bytes of flash, RAM or stack."""
    for reason, advice in shortages(need, flash, ram, stack):
        raise TargetError(f"{reason}; {advice}")


def shortages(need: Footprint, flash: int, ram: int, stack: int) -> list[tuple[str, str]]:
    """What `need` has too little of, with the numbers, and what to do about it."""
    found: list[tuple[str, str]] = []
    if need.flash > flash:
        large = max(need.steps, key=lambda s: s.weights + s.code, default=None)
        reason = (
            f"{need.name} needs {need.flash} bytes of flash and {flash} are available on {need.target}: "
            f"code {need.code}, weights {need.weights}{_largest(large, 'weights')}"
        )
        found.append((reason, "quantise the model to int8, or name a part with more with --flash"))
    if need.stack > stack:
        deep = max(need.steps, key=lambda s: s.stack, default=None)
        reason = (
            f"{need.name} needs {need.stack} bytes of stack and {stack} are allowed on {need.target}"
            f"{_largest(deep, 'stack')}"
        )
        found.append((reason, "raise stack_bytes in the target's [board]"))
    if need.ram > ram:
        reason = (
            f"{need.name} needs {need.ram} bytes of RAM and {ram} are available on {need.target}: arena "
            f"{need.arena}, inputs {need.inputs}, outputs {need.outputs}, stack {need.stack}"
            f"{_largest(need.peak(), 'arena')}"
        )
        advice = "take a smaller input (--shape), quantise the model to int8, or name a part with more with --ram"
        found.append((reason, advice))
    return found


def _largest(step: StepNeed | None, what: str) -> str:
    if step is None:
        return ""
    node = f" at `{step.node}`" if step.node else ""
    return f" (most in {step.label}{node}: {getattr(step, what)})"
