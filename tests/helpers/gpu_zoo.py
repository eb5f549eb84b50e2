"""Kernels of many models for GPUs, each of them looked at once.

In: models, one after the other. Out: the kernels of each that no model before it had, assembled, or run in the
interpreter of threads and in the machine for PTX.
Invariant: kernels are one if their loops, their schedule and what is known of the alignment of their parameters are
equal. One that failed is not remembered.
"""

from __future__ import annotations

import hashlib
from collections.abc import Set
from dataclasses import dataclass, field, replace

from tilewright.codegen.cuda import launch_of
from tilewright.codegen.ptxas import KernelReport, assemble
from tilewright.gpu import alignments, gpu_assembly
from tilewright.graph.ir import Graph
from tilewright.loop.ir import Kernel
from tilewright.lower import fingerprint
from tilewright.pipeline import build, resolve_target, stages
from tilewright.program import Program
from tilewright.registry import Operator
from tilewright.schedule.target import Target, load_target
from tilewright.tune.admit import finish
from tilewright.tune.identity import target_hash
from tilewright.tune.library import Decision, Library


class Defaults(Library):
    """Default schedules, each made once for all models."""

    def __init__(self, target: Target) -> None:
        super().__init__(target_hash(target))
        self.known: dict[tuple[str, str], Decision] = {}

    def decide(self, op: Operator | None, kernel: Kernel, target: Target) -> Decision:
        key = op.name if op is not None else "", fingerprint(kernel)
        if key not in self.known:
            self.known[key] = super().decide(op, kernel, target)
        return self.known[key]


class Unscheduled(Library):
    """Loops as operators state them."""

    def decide(self, op: Operator | None, kernel: Kernel, target: Target) -> Decision:
        return Decision((), finish(kernel, ()), "unscheduled")


@dataclass(slots=True)
class Met:
    """Kernels for a target that were found right so far."""

    target: Target
    library: Defaults
    right: set[str] = field(default_factory=set[str])

    def program(self, graph: Graph) -> Program:
        return build(graph, self.target, name="m", library=self.library)


def met(target: str) -> Met:
    machine = load_target(target)
    return Met(machine, Defaults(machine))


def identities(program: Program) -> dict[str, str]:
    """Name of each kernel -> what makes it the same as another model's."""
    aligned = alignments(program)
    return {
        k.name: hashlib.sha256(f"{fingerprint(k)} {aligned[k.name]}".encode()).hexdigest()
        for k in program.kernels
    }


def ptx_of(program: Program, names: Set[str]) -> str:
    """PTX of some kernels of a program."""
    some = tuple(k for k in program.kernels if k.name in names)
    return gpu_assembly(replace(program, kernels=some))


def assembled(program: Program, names: Set[str], ptx: str) -> tuple[KernelReport, ...]:
    """What ptxas says of some kernels of a program; nothing where it is not installed."""
    gpu = program.target.gpu
    assert gpu is not None
    made = assemble(ptx, gpu, {k.name: launch_of(k) for k in program.kernels if k.name in names})
    if made is None:
        return ()
    assert made.cubin.startswith(b"\x7fELF") and len(made.kernels) == len(names)
    return made.kernels


def reference(there: Program) -> Program:
    """The same steps for this machine, their loops as operators state them."""
    here = resolve_target("host")
    passes = frozenset(stages()) - {"views", "fuse", "memory"}  # `there` is what they made
    library = Unscheduled(target_hash(here))
    return build(there.graph, here, name="m", library=library, without=passes)
