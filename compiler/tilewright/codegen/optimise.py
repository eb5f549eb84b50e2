"""LLVM's optimiser on modules of text; what a worker process needs and no more.

In: LLVM IR text and a `Cpu`. Out: optimised modules, or their bitcode.
Invariant: the optimiser may not vectorise or unroll (schedules did), and sees one part of a model at a time,
so equal text gives equal code, in whatever process and order parts are optimised.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import llvmlite.binding as llvm

from tilewright.errors import TargetError, ToolchainError


class Cpu(NamedTuple):
    """What LLVM wants to know of a target; `static`: code for one address, as firmware is."""

    triple: str
    cpu: str
    features: str
    static: bool = False


@cache
def initialize() -> None:
    """Make all of LLVM's targets known."""
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    llvm.initialize_native_asmparser()


def machine_of(cpu: Cpu, jit: bool = False, opt: int = 3) -> llvm.TargetMachine:
    """LLVM's code generator; `TargetError` if it has none for the triple."""
    initialize()
    try:
        backend = llvm.Target.from_triple(cpu.triple)
    except RuntimeError as err:
        raise TargetError(f"this LLVM cannot generate code for {cpu.triple}: {err}") from None
    return backend.create_target_machine(
        cpu=cpu.cpu,
        features=cpu.features,
        opt=opt,
        reloc="default" if jit else "static" if cpu.static else "pic",
        codemodel="jitdefault" if jit else "default",
        jit=jit,
    )


def parsed(text: str, machine: llvm.TargetMachine) -> llvm.ModuleRef:
    """A module as it is written."""
    try:
        module = llvm.parse_assembly(text)
        module.data_layout = str(machine.target_data)  # before anything folds sizes of pointers
        module.verify()
    except RuntimeError as err:
        raise ToolchainError(f"internal error: LLVM rejected the generated code: {err}") from None
    return module


def optimised(text: str, machine: llvm.TargetMachine) -> llvm.ModuleRef:
    """A module after the optimiser."""
    module = parsed(text, machine)
    options = llvm.PipelineTuningOptions(speed_level=2)
    options.loop_vectorization = False
    options.slp_vectorization = False
    options.loop_unrolling = False
    options.loop_interleaving = False
    builder = llvm.create_pass_builder(machine, options)
    builder.getModulePassManager().run(module, builder)
    return module


def bitcode(text: str, machine: llvm.TargetMachine) -> bytes:
    """A module after the optimiser, to be linked elsewhere."""
    return bytes(optimised(text, machine).as_bitcode())


def linked(parts: list[bytes]) -> llvm.ModuleRef:
    """One module of all parts, in their order."""
    whole = llvm.parse_bitcode(parts[0])
    for part in parts[1:]:
        whole.link_in(llvm.parse_bitcode(part))
    return whole


def assembly_of(module: bytes, machine: llvm.TargetMachine) -> str:
    """Assembly of a module that was optimised before."""
    return str(machine.emit_assembly(llvm.parse_bitcode(module)))
