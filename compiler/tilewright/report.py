"""What there is to say about each kernel of a compiled model.

In: a `Program` and its code, or the facts in an artifact's manifest. Out: `KernelFacts` per step.
Invariant: facts are plain data that a manifest holds; reading them back checks every field.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tilewright.artifact.elf import Elf
from tilewright.codegen.ptxas import KernelReport
from tilewright.codegen.spills import stack_accesses
from tilewright.errors import ArtifactError
from tilewright.program import Program
from tilewright.schedule.target import Target
from tilewright.schedule.trace import trace_to_json


@dataclass(frozen=True, slots=True)
class StepFacts:
    """One step: `flops` and `bytes` it must do and move, its kernel's `schedule` (a trace as JSON) and
    the `reason` for it; `code_bytes` of the step with its kernel; `stack_accesses` of instructions in
    loops, `registers` of a thread and `spill_bytes` of a GPU kernel (-1 where nobody looked)."""

    label: str
    kernel: str
    nodes: tuple[str, ...]
    shape: tuple[int, ...]
    flops: int
    bytes: int
    reason: str
    schedule: tuple[Any, ...]
    code_bytes: int = -1
    stack_accesses: int = -1
    registers: int = -1
    spill_bytes: int = -1

    @property
    def intensity(self) -> float:
        """Operations per byte that must be moved."""
        return self.flops / max(self.bytes, 1)


def step_facts(
    program: Program,
    code: bytes | None = None,
    assembly: str | None = None,
    kernels: Sequence[KernelReport] = (),
) -> list[StepFacts]:
    """Facts on every step; code size and stack accesses where code and assembly are given, registers and
    spills where ptxas reported on `kernels`."""
    sizes = {} if code is None else {s.name: s.size for s in Elf(code, program.name).symbols()}
    touched = {} if assembly is None else stack_accesses(assembly)
    reports = {k.name: k for k in kernels}
    out: list[StepFacts] = []
    for i, s in enumerate(program.steps):
        gpu = reports.get(s.kernel)
        own = (f"{program.name}_step{i}", s.kernel)
        shape = program.graph.types[s.outputs[0]].shape if s.outputs else ()
        out.append(
            StepFacts(
                s.label, s.kernel, s.nodes, shape, s.flops, s.bytes,
                program.reasons.get(s.kernel, "default rule"),
                tuple(trace_to_json(program.traces.get(s.kernel, ()))),
                sum(sizes.get(f, 0) for f in own) if code is not None else -1,
                sum(touched.get(f, 0) for f in own) if assembly is not None else -1,
                gpu.registers if gpu else -1,
                gpu.spill_bytes if gpu else -1,
            )
        )  # fmt: skip
    return out


def to_facts(steps: Sequence[StepFacts]) -> list[dict[str, Any]]:
    """For the manifest."""
    return [asdict(s) for s in steps]


def from_facts(facts: Mapping[str, Any]) -> list[StepFacts]:
    """The steps of a manifest; `ArtifactError` if it holds none or they are damaged."""
    steps = facts.get("steps")
    kinds: dict[str, type] = {
        "label": str, "kernel": str, "nodes": list, "shape": list, "flops": int, "bytes": int,
        "reason": str, "schedule": list, "code_bytes": int, "stack_accesses": int,
    }  # fmt: skip
    out: list[StepFacts] = []
    if not isinstance(steps, list):
        raise ArtifactError("its manifest says nothing about steps: compile the model again")
    for s in steps:
        if not isinstance(s, dict) or any(not isinstance(s.get(k), t) for k, t in kinds.items()):
            raise ArtifactError("its manifest says too little about steps: compile the model again")
        values: dict[str, Any] = {k: tuple(s[k]) if t is list else s[k] for k, t in kinds.items()}
        out.append(StepFacts(**values))
    return out


def sentence(schedule: Sequence[Any]) -> str:
    """A trace in one line for people: `split m 14; unroll mi; vectorize nl`."""
    parts: list[str] = []
    for s in schedule:
        if isinstance(s, list) and s:
            words = [_word(a) for a in s[1:]]
            parts.append(" ".join([str(s[0]), *words]))
    return "; ".join(parts) or "as written"


def _word(a: Any) -> str:
    if isinstance(a, list):
        if a and isinstance(a[0], list):
            return "[" + ", ".join(_packed(d) for d in a) + "]"
        return "(" + " ".join(map(str, a)) + ")"
    return str(a)


def _packed(d: Any) -> str:
    """One dim of a packing: d0, d0/16 or d0%16."""
    if not isinstance(d, list) or len(d) != 3:
        return str(d)
    sign = {"outer": "/", "inner": "%"}.get(str(d[2]), "")
    return f"d{d[0]}{sign}{d[1]}" if sign else f"d{d[0]}"


def in_words(schedule: Sequence[Any]) -> str:
    """What a trace comes to: the tile kept in registers, vectors, threads, packed and shared operands."""
    steps = [s for s in schedule if isinstance(s, list) and len(s) > 1]
    factors = {str(s[4]): str(s[2]) for s in steps if s[0] == "split" and len(s) > 4}

    def named(word: str, at: int = 1) -> list[str]:
        return list(dict.fromkeys(str(s[at]) for s in steps if s[0] == word))

    parts: list[str] = []
    for s in steps:
        if s[0] == "stage" and isinstance(s[1], list):
            tile = (f"{v} {factors[v]}" if v in factors else str(v) for v in s[1])
            parts.append(f"a tile of {' x '.join(tile)} stays in registers")
    for word, at, text in (
        ("vectorize", 1, "vectors along {}"),
        ("tensorize", 1, "integer dot products along {}"),
        ("pack", 1, "{} packed"),
        ("share", 1, "{} staged in shared memory"),
        ("parallelize", 1, "threads share out {}"),
    ):
        if found := named(word, at):
            parts.append(text.format(", ".join(found)))
    for kind in ("block", "thread"):
        bound = [str(s[1]) for s in steps if s[0] == "bind" and len(s) > 2 and s[2] == kind]
        if bound:
            parts.append(f"a {kind} per {' x '.join(dict.fromkeys(bound))}")
    return "; ".join(parts) or "plain loops"


def estimated_seconds(step: StepFacts, target: Target) -> float | None:
    """Least time on a GPU by the figures of its data sheet; None for other targets, whose clock the
    target file does not say."""
    if target.gpu is None:
        return None
    return max(step.flops / target.gpu.flops_f32, step.bytes / target.gpu.bandwidth)
