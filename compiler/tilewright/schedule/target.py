"""What the compiler knows about a device, read from `targets/<name>.toml`.

In: TOML files with `inherits`. Out: a frozen `Target`.
Invariant: everything a schedule or the code generator asks about a machine is a field here.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields, replace
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

from tilewright.errors import TargetError

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Board:
    """A microcontroller's memory and the QEMU machine that stands in for it (table `[board]`).

    Sizes are in bytes; `machine` is empty where QEMU has none; `stack_bytes` is the most that a run may
    take of the stack.
    """

    flash_bytes: int
    ram_bytes: int
    machine: str = ""
    stack_bytes: int = 8192


@dataclass(frozen=True, slots=True)
class Gpu:
    """What bounds a CUDA kernel (table `[gpu]`): sizes in bytes, `sm` as in sm_80.

    `shared_block` is what one block may use without opting in, `shared_sm` what a multiprocessor has;
    `bandwidth` (bytes/s), `flops_f32` and `flops_mma` (half precision on tensor cores, per second) are the
    data sheet's, for estimates only. `mma`: operands that tensor cores may multiply: `f16`, `i8` (bytes of
    either sign), and `tf32`, which rounds f32 to 10 bits after the point and is never a default.
    """

    sm: int
    ptx: int
    multiprocessors: int
    shared_block: int
    shared_sm: int
    registers_sm: int
    registers_thread: int
    threads_block: int
    threads_sm: int
    blocks_sm: int
    warp: int
    bandwidth: float
    flops_f32: float
    flops_mma: float
    mma: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Target:
    """A device. Sizes are in bytes, `vector_bytes` is the widest vector register worth using.

    `fma_per_cycle`: vector fused multiply-adds started per cycle and core; `fma_latency`: cycles;
    `registers`: architectural vector registers; `masked`: tails may use masked loads and stores;
    `dot`: instructions for integer dot products that code generation may use (`sdot`, `smmla`, `smlad`,
    `mve`, `vnni`, `dp4a`); `emulator`: command that runs a Linux program for this device elsewhere;
    `prefetch`: products ask for the weights of their next block ahead of time (`codegen.ahead`);
    `l2_rate`, `l3_rate`, `memory_rate`: bytes per cycle that one core streams from there (as given: Zen 4);
    `logs`: another target whose tuning logs hold for this one too;
    `abi`: LLVM's name of the float calling convention where it is not the triple's.
    """

    name: str
    description: str
    triple: str
    cpu: str
    features: str
    required: tuple[str, ...]
    vector_bytes: int
    registers: int
    masked: bool
    fma_per_cycle: int
    fma_latency: int
    loads_per_cycle: int
    cores: int
    l1_bytes: int
    l2_bytes: int
    l3_bytes: int
    line_bytes: int
    pointer_bytes: int = 8
    prefetch: bool = True
    l2_rate: float = 32.0
    l3_rate: float = 12.0
    memory_rate: float = 7.0
    dot: tuple[str, ...] = ()
    emulator: tuple[str, ...] = ()
    logs: str = ""
    abi: str = ""
    board: Board | None = None
    gpu: Gpu | None = None

    @property
    def family(self) -> str:
        """Which kind of schedule fits: `simd`, `mcu` (a microcontroller) or `cuda`."""
        return "cuda" if self.gpu else "mcu" if self.board else "simd"

    @property
    def is_x86(self) -> bool:
        return self.triple.startswith("x86_64")

    @property
    def unsigned_by_signed(self) -> bool:
        """Whether its dot products multiply unsigned by signed bytes, and no other ones."""
        return "vnni" in self.dot

    @property
    def dots(self) -> tuple[str, ...]:
        """`dot`, and `madd` (products of 16-bit pairs), which every x86-64 with vectors has."""
        return (*self.dot, "madd") if self.is_x86 else self.dot

    @property
    def align(self) -> int:
        """Bytes to which the arena, the weights and everything in them are aligned."""
        return 16 if self.board else 64

    def lanes(self, element_bytes: int) -> int:
        """Elements per vector register."""
        return max(1, self.vector_bytes // element_bytes)


def _table(name: str) -> dict[str, Any]:
    root = resources.files("tilewright.targets")
    path = root / f"{name}.toml"
    if not path.is_file():
        known = ", ".join(target_names())
        raise TargetError(f"unknown target `{name}`: use one of host, {known}")
    return tomllib.loads(path.read_text(encoding="utf-8"))


@cache
def target_names() -> tuple[str, ...]:
    """Names of all target files, sorted."""
    root = resources.files("tilewright.targets")
    return tuple(
        sorted(p.name[: -len(".toml")] for p in root.iterdir() if p.name.endswith(".toml"))
    )


def target_from_table(name: str, table: Mapping[str, Any]) -> Target:
    """Build a target from a parsed TOML table, following `inherits`; `TargetError` if incomplete."""
    merged: dict[str, Any] = {}
    chain: list[Mapping[str, Any]] = [table]
    seen = {name}
    while parent := chain[-1].get("inherits"):
        if parent in seen:
            raise TargetError(f"target `{name}` inherits from itself through `{parent}`")
        seen.add(parent)
        chain.append(_table(parent))
    for layer in reversed(chain):
        for key, value in layer.items():
            old = merged.get(key)
            merged[key] = {**old, **value} if isinstance(old, dict) else value
    merged.pop("inherits", None)
    merged["name"] = name
    for key, kind in (("board", Board), ("gpu", Gpu)):
        if key in merged:
            merged[key] = _record(kind, f"target `{name}` [{key}]", merged[key])
    return _record(Target, f"target `{name}`", merged)


def _record(kind: type[T], what: str, table: Any) -> T:
    """A dataclass from a TOML table; `TargetError` names what is missing, unknown or of a wrong type."""
    if not isinstance(table, Mapping):
        raise TargetError(f"{what} must be a table")
    known = {f.name: f for f in fields(kind)}  # type: ignore[arg-type]
    needed = {n for n, f in known.items() if f.default is MISSING}
    missing, extra = sorted(needed - table.keys()), sorted(table.keys() - known.keys())
    if missing or extra:
        raise TargetError(f"{what}: missing fields {missing}, unknown fields {extra}")
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in table.items()}
    for key, value in values.items():
        kinds = str(known[key].type).split("[")[0].split(" | ")
        ok = type(value).__name__ in kinds or (kinds == ["float"] and isinstance(value, int))
        if not ok:
            raise TargetError(f"{what}: `{key}` must be {' or '.join(kinds)}, got {value!r}")
    return kind(**values)


@cache
def load_target(name: str) -> Target:
    """The target called `name`, or the one in the file that `name` is (`devices/camera.toml`).

    `NAME+tf32`: a GPU whose tensor cores may multiply f32 rounded to 10 bits after the point.
    Raises `TargetError` for an unknown name (`host` is not one here), or a file that is no target.
    """
    if name.endswith(_TF32):
        return _rounding(load_target(name.removesuffix(_TF32)))
    if not name.endswith(".toml"):
        return target_from_table(name, _table(name))
    path = Path(name)
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as err:
        raise TargetError(f"{name} cannot be read: {err.strerror or err}") from None
    except ValueError as err:
        raise TargetError(f"{name} is not TOML: {err}") from None
    return target_from_table(path.stem, table)


_TF32 = "+tf32"


def _rounding(target: Target) -> Target:
    """A target that trades bits of f32 products for tensor cores: never a default."""
    if target.gpu is None or not target.gpu.mma:
        raise TargetError(f"{target.name} has no tensor cores that take tf32: leave out `{_TF32}`")
    kinds = tuple(dict.fromkeys((*target.gpu.mma, "tf32")))
    return replace(target, name=f"{target.name}{_TF32}", gpu=replace(target.gpu, mma=kinds))
