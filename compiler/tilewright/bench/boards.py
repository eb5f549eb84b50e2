"""What a model costs on a microcontroller: instructions on the emulated board, flash, RAM.

In: a model file, a target with a board. Out: a `Cost`, and Markdown of many.
Invariant: instructions, flash and RAM are of the same object code, and its outputs have been compared with
those of this machine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tilewright import api
from tilewright.bench.inputs import make_inputs
from tilewright.device.qemu_system import run_on_board
from tilewright.pipeline import build
from tilewright.program import Program, Step, spec_of
from tilewright.registry import operator


@dataclass(frozen=True, slots=True)
class Cost:
    """Instructions of one inference, multiply-accumulates in it, bytes; whether the outputs are to the bit
    those of this machine."""

    model: str
    target: str
    instructions: int
    macs: int
    code: int
    weights: int
    arena: int
    ram: int
    stack: int
    same: bool

    @property
    def per_mac(self) -> float:
        return self.instructions / max(1, self.macs)


def macs(program: Program, step: Step) -> int:
    """Multiply-accumulates of the products in a step (not of what is fused to them)."""
    total = 0
    for node in program.graph.nodes:
        op = operator(node.op)
        if node.name in step.nodes and op.trait == "contraction" and op.flops is not None:
            types = [program.graph.types[i] if i else None for i in node.inputs]
            total += op.flops(types, node.attrs) // 2
    return total


def cost(path: Path, target: str, seed: int = 0) -> Cost:
    """Compile a model for a board and for this machine, run both, compare and count.

    Raises `TargetError` if the target is no board, `ToolchainError` without emulator or linker.
    """
    program = build(path, target, name=path.stem.replace("-", "_"))
    inputs = make_inputs(spec_of(program).inputs, program.graph, seed)
    run = run_on_board(program, inputs)
    need = api.generate(program).need
    assert need is not None  # it is a board: `run_on_board` would have refused
    here = api.compile(path)(*inputs)
    same = all(np.array_equal(a, b, equal_nan=True) for a, b in zip(run.outputs, here, strict=True))
    return Cost(
        model=path.stem, target=target, instructions=run.instructions,
        macs=sum(macs(program, s) for s in program.steps), code=need.code, weights=need.weights,
        arena=need.arena, ram=need.ram, stack=run.stack_bytes, same=same,
    )  # fmt: skip


def markdown(costs: Sequence[Cost]) -> str:
    """A table of `costs` for documentation."""
    lines = [
        "| model | target | instructions | MACs | per MAC | code | weights | RAM | of it arena | = x86-64 |",
        "|---|---|--:|--:|--:|--:|--:|--:|--:|---|",
    ]
    for c in costs:
        lines.append(
            f"| {c.model} | {c.target} | {c.instructions:,} | {c.macs:,} | {c.per_mac:.2f} | {c.code:,} | "
            f"{c.weights:,} | {c.ram:,} | {c.arena:,} | {'yes' if c.same else 'no'} |"
        )
    return "\n".join(lines) + "\n"
