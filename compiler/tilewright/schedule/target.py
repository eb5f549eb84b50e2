"""What the compiler knows about a device, read from `targets/<name>.toml`.

In: TOML files with `inherits`. Out: a frozen `Target`.
Invariant: everything a schedule or the code generator asks about a machine is a field here.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cache
from importlib import resources
from typing import Any

from tilewright.errors import TargetError


@dataclass(frozen=True, slots=True)
class Target:
    """A device. Sizes are in bytes, `vector_bytes` is the widest vector register worth using.

    `fma_per_cycle`: vector fused multiply-adds started per cycle and core; `fma_latency`: cycles;
    `registers`: architectural vector registers; `masked`: tails may use masked loads and stores.
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
        merged.update(layer)
    merged["name"] = name
    merged["required"] = tuple(merged.get("required", ()))
    known = {f.name for f in fields(Target)}
    missing = sorted(known - merged.keys())
    extra = sorted(merged.keys() - known - {"inherits"})
    if missing or extra:
        raise TargetError(f"target `{name}`: missing fields {missing}, unknown fields {extra}")
    return Target(**{k: v for k, v in merged.items() if k in known})


@cache
def load_target(name: str) -> Target:
    """The target called `name`; raises `TargetError` for an unknown name (`host` is not one here)."""
    return target_from_table(name, _table(name))
