"""The door to LLVM: text in, object code, assembly or running functions out.

In: LLVM IR text (of a whole module, or in parts that are optimised apart and then linked) and a `Target`.
Out: ELF bytes, assembly text, or a `Jit` with function addresses. Invariant: equal text gives equal code.
"""

from __future__ import annotations

import platform
import struct
from collections.abc import Iterable

import llvmlite.binding as llvm

from tilewright.codegen.module import WEIGHTS_SECTION
from tilewright.codegen.optimise import Cpu, initialize, linked, machine_of, optimised, parsed
from tilewright.codegen.workers import Pool
from tilewright.errors import ToolchainError
from tilewright.schedule.target import Target


def _cpu(target: Target) -> Cpu:
    return Cpu(target.triple, target.cpu, target.features, target.board is not None)


def to_assembly(text: str, target: Target) -> str:
    """Assembly of a module, for reading."""
    machine = machine_of(_cpu(target))
    return str(machine.emit_assembly(optimised(text, machine)))


def to_object(text: str, target: Target, weights: bytes | memoryview = b"") -> bytes:
    """ELF object of a module; `weights` fill its weights section."""
    machine = machine_of(_cpu(target))
    return _object(optimised(text, machine), machine, target, weights)


def to_object_and_assembly(
    parts: Iterable[str], target: Target, weights: bytes | memoryview = b"", jobs: int | None = None
) -> tuple[bytes, str]:
    """The object of a module in parts and the same code as text (without the weights).

    Parts are optimised by up to `jobs` processes (default: one per CPU); the result does not depend on it.
    """
    machine = machine_of(_cpu(target))
    with Pool(_cpu(target), jobs) as pool:
        module = linked(pool.optimise(parts))
        listing = pool.assembly(bytes(module.as_bitcode()))
        code = _object(module, machine, target, weights)
        return code, listing()


def _object(
    module: llvm.ModuleRef, machine: llvm.TargetMachine, target: Target, weights: bytes | memoryview
) -> bytes:
    code = bytearray(machine.emit_object(module))
    if len(weights):
        at, size = _section(code, WEIGHTS_SECTION)
        if size < len(weights):
            raise ToolchainError(f"internal error: weights section holds {size} bytes")
        code[at : at + len(weights)] = weights
    if target.board is not None:
        _fit_both_float_abis(code)
    return bytes(code)


def _fit_both_float_abis(code: bytearray) -> None:
    """Say in the object's attributes that it links with programs of either float calling convention.

    No float is passed by value, which LLVM does not tell from `hard` ("Addenda to the ABI for the Arm
    Architecture", section 2.3).
    """
    at, size = _section(code, ".ARM.attributes")
    i = (
        code.index(b"aeabi\0", at, at + size) + len("aeabi\0") + 5
    )  # tag and length of the file's list
    while i < at + size:
        tag = code[i]
        if tag == _TAG_VFP_ARGS:
            code[i + 1] = _VFP_ARGS_BOTH
        # names of CPUs and of the conformance are strings, the rest are numbers of one byte here
        i = code.index(0, i) + 1 if tag in _STRING_TAGS else i + 2


_TAG_VFP_ARGS, _VFP_ARGS_BOTH = 28, 3
_STRING_TAGS = (4, 5, 32, 65, 67)


def _section(elf: bytearray, name: str) -> tuple[int, int]:
    """File offset and size of a section of a little-endian ELF object of 32 or 64 bits."""
    wide = elf[4] == 2
    (table,) = struct.unpack_from("<Q", elf, 0x28) if wide else struct.unpack_from("<I", elf, 0x20)
    entry, count, names = struct.unpack_from("<HHH", elf, 0x3A if wide else 0x2E)
    form = "<IIQQQQIIQQ" if wide else "<10I"
    headers = [struct.unpack_from(form, elf, table + i * entry) for i in range(count)]
    strings = headers[names][4]
    for h in headers:
        start = strings + h[0]
        if elf[start : elf.index(0, start)].decode() == name:
            return int(h[4]), int(h[5])
    raise ToolchainError(f"internal error: the object has no section {name}")


class Jit:
    """A module running in this process; keep the object alive as long as its functions are used.

    A module in parts is optimised by several processes. One that is not told to `optimise` tells whether
    the optimiser is to blame for a failure.
    """

    def __init__(self, parts: str | Iterable[str], target: Target, optimise: bool = True) -> None:
        machine = machine_of(_cpu(target), jit=True, opt=3 if optimise else 0)
        if not isinstance(parts, str):
            with Pool(_cpu(target)) as pool:
                module = linked(pool.optimise(parts))
        else:
            module = optimised(parts, machine) if optimise else parsed(parts, machine)
        self._engine = llvm.create_mcjit_compiler(module, machine)
        self._engine.finalize_object()

    def address(self, symbol: str) -> int:
        """Address of a function."""
        return int(self._engine.get_function_address(symbol))


def host_cpu() -> tuple[str, frozenset[str]]:
    """LLVM's name of this machine's CPU and the features it has."""
    initialize()
    features = llvm.get_host_cpu_features()
    return str(llvm.get_host_cpu_name()), frozenset(k for k, on in features.items() if on)


def runs_here(target: Target) -> bool:
    """Whether this machine can execute code for `target`."""
    if target.family != "simd" or target.triple.split("-")[0] != platform.machine():
        return False
    return set(target.required) <= host_cpu()[1]
