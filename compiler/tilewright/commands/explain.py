"""`tilewright explain`: for every kernel its schedule, why it was chosen, and how good it can be."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated, Any

import typer
from rich.table import Table

from tilewright import api
from tilewright.artifact import manifest as manifests
from tilewright.bench.inputs import make_inputs
from tilewright.bench.roofline import Roofline, measure
from tilewright.codegen.llvm import runs_here
from tilewright.codegen.spills import function_text
from tilewright.commands._artifact import arena_of, arena_text
from tilewright.commands._common import (
    ShapeList,
    TargetName,
    console,
    escape,
    locate,
    notice,
    progress,
)
from tilewright.errors import ModelError
from tilewright.loop.text import to_text
from tilewright.pipeline import build
from tilewright.program import Program, ideal_cycles, spec_of
from tilewright.report import (
    StepFacts,
    estimated_seconds,
    from_facts,
    in_words,
    sentence,
)
from tilewright.schedule.target import load_target, target_names
from tilewright.session import Session
from tilewright.tune.reasons import is_default

NAME = "explain"


def command(
    model: Annotated[
        str, typer.Argument(help="artifact directory, ONNX file, or name of `tilewright models`")
    ],
    target: TargetName = "host",
    shape: ShapeList = None,
    kernel: Annotated[
        str | None,
        typer.Option(help="show this kernel's loops and assembly (of a model, not an artifact)"),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """Per kernel: the schedule and why it was chosen, bytes moved, spills, percent of the roofline.

    The roofline is measured where the code runs on this machine; otherwise cycles are the target file's
    estimate. For an artifact, everything comes from its manifest.
    """
    path, shapes = locate(model, shape)
    if (path / manifests.FILE_NAME).is_file():
        if kernel is not None:
            raise typer.BadParameter("--kernel needs the model file, not an artifact")
        found = manifests.read(path)
        arena = arena_of(found)
        steps = from_facts(found.facts)
        _show(found.spec.name, found.spec.target, steps, arena, None, None, as_json)
        return
    if path.is_dir():
        raise ModelError(f"{path} is not an artifact: name a directory of `tilewright compile`")
    with progress() as report:
        program = build(path, target, shapes, report, notice)
        if kernel is not None:
            _loops(program, kernel)
            return
        report("generate code", 0.0)
        steps = list(api.facts_of(program))
        times = _times(program) if runs_here(program.target) else None
    roof = measure(program.target) if times is not None else None
    arena = program.arena_bytes, program.arena_lower_bound
    _show(program.name, program.target.name, steps, arena, times, roof, as_json)


def _loops(program: Program, name: str) -> None:
    found = next(
        (k for k in program.kernels if name in (k.name, _short(k.name, program.name))), None
    )
    if found is None:
        names = ", ".join(_short(k.name, program.name) for k in program.kernels)
        raise ModelError(f"there is no kernel `{name}` in {program.name}: there are {names}")
    print(f"# {sentence([list(s.to_json()) for s in program.traces[found.name]])}")
    print(f"# {program.reasons.get(found.name, '')}")
    print(to_text(found), end="")
    text = api.assembly(program)
    calling = [i for i, step in enumerate(program.steps) if step.kernel == found.name]
    code = function_text(text, found.name)
    if not code and calling:  # inlined into the step that calls it
        code = function_text(text, f"{program.name}_step{calling[0]}")
    print(f"\n{code}", end="")


def _times(program: Program) -> list[float]:
    """Least seconds of every step on this machine."""
    session = Session(program)
    session.set_inputs(make_inputs(spec_of(program).inputs, program.graph, 0))
    session.run()
    best = [float("inf")] * len(program.steps)
    for _ in range(5):
        for i in range(len(best)):
            best[i] = min(best[i], session.time_step(i, 2))
    return best


def _show(
    name: str,
    target: str,
    steps: list[StepFacts],
    arena: tuple[int, int],
    times: list[float] | None,
    roof: Roofline | None,
    as_json: bool,
) -> None:
    if as_json:
        rows: list[dict[str, Any]] = [asdict(s) for s in steps]
        for i, row in enumerate(rows):
            row["words"] = in_words(steps[i].schedule)
            row["intensity"] = steps[i].intensity
            row["seconds"] = times[i] if times is not None else None
            row["roofline"] = _share(steps[i], times[i], roof) if times and roof else None
        head = {
            "name": name,
            "target": target,
            "arena_bytes": arena[0],
            "arena_lower_bound": arena[1],
        }
        print(json.dumps({**head, "steps": rows}, indent=1))
        return
    known = load_target(target) if target in target_names() else None
    table = Table(title=f"{name} for {target}", title_justify="left", show_lines=True)
    table.add_column("step")
    on_gpu = known is not None and known.gpu is not None
    bounded = "time" if times else "least time (estimate)" if on_gpu else "least cycles (estimate)"
    for column in ("FLOPs", "bytes", "FLOP/byte", bounded):
        table.add_column(column, justify="right")
    if times:
        table.add_column("roofline", justify="right")
    for column in ("registers", "spilled bytes") if on_gpu else ("code", "stack accesses"):
        table.add_column(column, justify="right")
    table.add_column("schedule, and why", overflow="fold")
    for i, s in enumerate(steps):
        bound = f"{times[i] * 1e6:.1f} us" if times else ""
        if not times and known is not None:
            least = estimated_seconds(s, known)
            bound = (
                f"{ideal_cycles(s.flops, known):.0f}" if least is None else f"{least * 1e6:.2f} us"
            )
        cells = [
            escape(f"{s.label} {list(s.shape) if s.shape else ''}\n{s.kernel}"), f"{s.flops:,}", f"{s.bytes:,}",
            f"{s.intensity:.1f}", bound,
        ]  # fmt: skip
        if times and roof:
            cells.append(f"{_share(s, times[i], roof):.0%}")
        made = (s.registers, s.spill_bytes) if on_gpu else (s.code_bytes, s.stack_accesses)
        cells += ["" if n < 0 else str(n) for n in made]
        cells.append(escape(f"{in_words(s.schedule)}\n{s.reason}"))
        table.add_row(*cells)
    console.print(table)
    total = sum(s.flops for s in steps)
    tuned = sum(not is_default(s.reason) for s in steps)
    console.print(
        f"{len(steps)} steps, {total:,} FLOPs, {tuned} with a schedule from the tuning logs; --kernel NAME shows "
        "the trace, loops and assembly of one"
    )
    console.print(arena_text(*arena))
    if not on_gpu:
        console.print(
            "stack accesses are instructions inside loops that touch the stack (spilled registers or scratch)"
        )


def _share(s: StepFacts, seconds: float, roof: Roofline) -> float:
    """Share of the measured roofline that a step reaches."""
    return max(s.flops / roof.flops, s.bytes / roof.bandwidth) / seconds


def _short(kernel: str, model: str) -> str:
    return kernel.removeprefix(f"{model}_")
