"""A compiled model before it becomes bytes: kernels, the ordered steps, the memory plan.

In: the pipeline. Out: code generation, the in-process JIT, reports and verification.
Invariant: everything a report wants to know about a compiled model is a field here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from tilewright.codegen.checked import RECORD_BYTES, require_checkable
from tilewright.codegen.module import CallSite, ModulePlan, Place, fault_texts
from tilewright.core.index import FloorDiv, Ix
from tilewright.core.sizes import Size
from tilewright.graph.ir import Graph, TensorType
from tilewright.graph.layout import Placement
from tilewright.loop.ir import Kernel
from tilewright.runtime.model import OpenDim, SizeSpec, Spec, StateSpec, TensorSpec
from tilewright.schedule.target import Target
from tilewright.schedule.trace import Trace


@dataclass(frozen=True, slots=True)
class Tensor:
    """A model input or output; with open sizes `dims` are its dims as forms, and `type` is that at the bound."""

    name: str
    type: TensorType
    dims: tuple[Ix, ...] = ()


@dataclass(frozen=True, slots=True)
class Step:
    """One kernel call.

    `label` is what people see, `nodes` the model's nodes it computes, `flops` floating-point
    operations, `bytes` the memory it touches at least once, `outputs` the values it materialises.
    """

    label: str
    kernel: str
    op: str
    nodes: tuple[str, ...]
    flops: int
    bytes: int
    outputs: tuple[str, ...]
    places: tuple[Place, ...]
    count: int
    threaded: bool


@dataclass(slots=True)
class Program:
    """A whole model for one target."""

    name: str
    target: Target
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    graph: Graph
    placement: Placement
    kernels: tuple[Kernel, ...]
    traces: dict[str, Trace]
    steps: tuple[Step, ...]
    arena_bytes: int
    arena_lower_bound: int
    weights: bytes
    places: dict[str, Place] = field(default_factory=dict[str, Place])
    """Where each materialised allocation lies (root values only)."""
    sizes: tuple[Size, ...] = ()
    """Sizes that are known when the model runs."""
    reasons: dict[str, str] = field(default_factory=dict[str, str])
    """Kernel -> why it has its schedule: default rule, log record, or transferred from a near shape."""
    faults: tuple[str, ...] = ()
    """What the checks of a checked program can find (`with_checks`); none in others."""

    winograd: bool = True
    """Whether convolutions might be computed with fewer products."""

    arena_limit: int | None = None
    """Bytes that the arena was asked not to exceed."""

    apart: bool = False
    """Kernels are not made part of their callers (`ModulePlan.apart`), so that counts of them compare."""

    @property
    def weights_bytes(self) -> int:
        return len(self.weights)

    def plan(self) -> ModulePlan:
        """What code generation needs."""
        calls = tuple(CallSite(s.kernel, s.places, s.count, s.threaded) for s in self.steps)
        return ModulePlan(
            self.name,
            self.target,
            self.kernels,
            calls,
            len(self.weights),
            self.sizes,
            len(self.inputs),
            self.arena_bytes - RECORD_BYTES if self.faults else None,
            self.apart,
        )

    def with_checks(self) -> Program:
        """The same program with code that checks every access, and room in the arena to say what is wrong.

        Raises `TargetError` where checks cannot be compiled in.
        """
        require_checkable(self.target)
        arena = -(-self.arena_bytes // RECORD_BYTES) * RECORD_BYTES + RECORD_BYTES
        texts = fault_texts(replace(self.plan(), fault_at=0))
        return replace(self, arena_bytes=arena, faults=texts or ("nothing is read or written",))


def ideal_cycles(flops: int, target: Target) -> float:
    """Cycles of one core that so many operations take at least, by the target file."""
    return flops / (2 * target.fma_per_cycle * target.lanes(4))


def spec_of(program: Program, stack_bytes: int = 0) -> Spec:
    """The caller's view of a program; `stack_bytes` where it is known."""

    def tensors(items: Sequence[Tensor]) -> tuple[TensorSpec, ...]:
        return tuple(
            TensorSpec(
                t.name, t.type.shape, t.type.dtype.storage.numpy.name,
                tuple(_open_dim(d, program.sizes) for d in t.dims),
            )
            for t in items
        )  # fmt: skip

    return Spec(
        name=program.name,
        target=program.target.name,
        inputs=tensors(program.inputs),
        outputs=tensors(program.outputs),
        arena_bytes=program.arena_bytes,
        weights_bytes=program.weights_bytes,
        features=program.target.required,
        arena_align=program.target.align,
        stack_bytes=stack_bytes,
        threads=program.target.board is None,
        sizes=tuple(SizeSpec(s.name, s.low, s.high, s.step) for s in program.sizes),
        states=tuple(
            StateSpec(s.input, s.output, s.initial.tobytes() if s.initial.any() else b"")
            for s in program.graph.states
        ),
        faults=program.faults,
    )


def _open_dim(form: Ix, sizes: Sequence[Size]) -> OpenDim:
    """A form of the sizes as callers get it."""
    number = {s.var: i for i, s in enumerate(sizes)}
    terms: list[tuple[int, int, int, int]] = []
    for atom, coef in form.terms:
        match atom:
            case str():
                terms.append((coef, number[atom], 0, 1))
            case FloorDiv(Ix(shift, ((str(var), 1),)), den):
                terms.append((coef, number[var], shift, den))
            case _:
                raise AssertionError(f"no dim is {form}")
    return OpenDim(form.const, tuple(terms))
