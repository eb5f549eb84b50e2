"""What `compile` says about an artifact, from its manifest alone: the same whether it was compiled now or
came from the cache.

In: a `Manifest` and the files written. Out: text on the console. Imports no part of the compiler.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from tilewright.artifact.manifest import Manifest
from tilewright.artifact.write import Written
from tilewright.commands._common import console, escape, notice, size
from tilewright.tune.reasons import is_default


def show_artifact(
    manifest: Manifest, written: Written, how: str, limits: tuple[int, int] | None
) -> None:
    """Files, sizes, schedules; on a microcontroller flash and RAM against `limits`. `how` is what took the time."""
    spec, facts = manifest.spec, manifest.facts
    table = Table(title=f"{spec.name} for {spec.target}", title_justify="left")
    table.add_column("file")
    table.add_column("size", justify="right")
    for file, bytes_ in sorted(written.files.items()):
        table.add_row(str(written.directory / file), size(bytes_))
    console.print(table)
    steps: Sequence[Mapping[str, Any]] = facts["steps"]
    reasons = {s["kernel"]: s["reason"] for s in steps}
    console.print(
        f"{len(steps)} steps, {len(reasons)} kernels, weights {size(spec.weights_bytes)}, "
        f"arena {size(spec.arena_bytes)}, {how}"
    )
    console.print(arena_text(*arena_of(manifest)))
    _schedules(spec.name, reasons)
    if limits is not None:
        _memory(facts["memory"], *limits)
    if facts.get("kernels"):
        _kernels(facts["kernels"])
    for note in written.notes:
        notice(note)


def arena_of(manifest: Manifest) -> tuple[int, int]:
    """Bytes of the arena, and the least that any plan needs (0 where an artifact does not say)."""
    arena = manifest.facts.get("arena")
    bound = arena.get("lower_bound", 0) if isinstance(arena, Mapping) else 0
    return manifest.spec.arena_bytes, bound if isinstance(bound, int) else 0


def arena_text(arena: int, bound: int) -> str:
    """The arena against the lower bound in one line."""
    if not bound:
        return f"arena {arena} bytes"
    return f"arena {arena} bytes, {arena / bound:.3f} of the most that is needed at the same time ({bound})"


def _schedules(name: str, reasons: Mapping[str, str]) -> None:
    """How many kernels have their schedule from the logs, and which."""
    tuned = {k: r for k, r in reasons.items() if not is_default(r)}
    fixed = len(reasons) - len(tuned)
    if not tuned:
        console.print(f"schedules: {fixed} by default rules, none from tuning logs")
        return
    console.print(
        f"schedules: {len(tuned)} of {len(reasons)} from tuning logs, {fixed} by default rules"
    )
    for kernel, reason in tuned.items():
        console.print(f"  {kernel.removeprefix(f'{name}_')}: {escape(reason)}", soft_wrap=True)


def _kernels(reports: Sequence[Mapping[str, Any]]) -> None:
    """What ptxas says about every kernel."""
    table = Table(title="kernels", title_justify="left")
    table.add_column("kernel")
    for column in ("blocks", "threads", "registers", "spills", "shared", "occupancy"):
        table.add_column(column, justify="right")
    for r in reports:
        columns = ("blocks", "threads", "registers", "spill_bytes", "shared_bytes")
        table.add_row(
            r["name"], *(str(r[c]) for c in columns), f"{r['occupancy']:.0%}",
            style="bold" if r["spill_bytes"] else None,
        )  # fmt: skip
    console.print(table)
    console.print("spills and shared memory in bytes; never run on a GPU: see docs/gpu.md")


def _memory(need: Mapping[str, Any], flash: int, ram: int) -> None:
    """Where flash and RAM go, step by step."""
    from tilewright.footprint import Footprint, StepNeed

    found = Footprint(**{**need, "steps": tuple(StepNeed(**s) for s in need["steps"])})
    table = Table(title="memory in bytes", title_justify="left")
    for column in ("step", "first node"):
        table.add_column(column)
    for column in ("code", "weights", "live arena", "stack"):
        table.add_column(column, justify="right")
    peak = found.peak()
    for s in found.steps:
        style = "bold" if s is peak else None
        numbers = map(str, (s.code, s.weights, s.arena, s.stack))
        table.add_row(s.label, escape(s.node), *numbers, style=style)
    console.print(table)
    console.print(
        f"flash {found.flash} of {flash} bytes: code {found.code}, weights {found.weights}\n"
        f"RAM {found.ram} of {ram} bytes: arena {found.arena}, inputs {found.inputs}, outputs "
        f"{found.outputs}, stack {found.stack}"
    )
