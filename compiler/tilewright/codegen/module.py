"""A whole model as one LLVM module: kernels, one thunk per step, and the C entry points.

In: a `ModulePlan` (finished kernels and the ordered calls with where each argument lives). Out: text.
Invariant: no globals but the read-only weights, no calls outside the module except through the
`parallel_for` the caller passes in.

Calling convention of the result (see `runtime/tilewright.h`):
    i32 NAME_run(inputs, outputs, arena)
    i32 NAME_run_parallel(inputs, outputs, arena, parallel)
    i32 NAME_main(inputs, outputs, arena, weights, parallel)     what the in-process JIT calls
    void NAME_step<i>(context, begin, end)                       context = {inputs, outputs, arena, weights}
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tilewright.codegen.kernel import emit_kernel
from tilewright.loop.ir import Kernel
from tilewright.schedule.target import Target

#: Section that holds the weights; `codegen.llvm` fills it after compilation.
WEIGHTS_SECTION = ".rodata.tilewright"

Base = Literal["input", "output", "arena", "weights"]


@dataclass(frozen=True, slots=True)
class Place:
    """Where an argument lives: `offset` bytes into the arena, the weights, or tensor `number`."""

    base: Base
    offset: int
    number: int = 0


@dataclass(frozen=True, slots=True)
class CallSite:
    """One call of a kernel; `count` > 1 iterations of its parallel loop may run on threads."""

    kernel: str
    places: tuple[Place, ...]
    count: int
    threaded: bool


@dataclass(frozen=True, slots=True)
class ModulePlan:
    """Everything the code generator needs to know about a model."""

    name: str
    target: Target
    kernels: tuple[Kernel, ...]
    calls: tuple[CallSite, ...]
    weights_bytes: int


_FIELDS: dict[str, int] = {"input": 0, "output": 8, "arena": 16, "weights": 24}


def emit_module(plan: ModulePlan, with_weights: bool) -> str:
    """LLVM IR of the model; `with_weights` adds the weights section and the public entry points."""
    declarations: dict[str, None] = {}
    functions: list[str] = []
    for kernel in plan.kernels:
        text, needs = emit_kernel(kernel, plan.target)
        functions.append(text)
        declarations.update(dict.fromkeys(needs))
    thunks = [_thunk(plan.name, i, call) for i, call in enumerate(plan.calls)]
    parts = [
        f'target triple = "{plan.target.triple}"',
        *declarations,
        *functions,
        *thunks,
        _DISPATCH,
        _main(plan),
    ]
    if with_weights:
        parts.append(_entry_points(plan))
    # no-builtins: loops stay loops, so the object needs no memset or memcpy from a libc
    parts.append(f'attributes #0 = {{ nounwind "no-builtins" {_cpu_attributes(plan.target)} }}')
    parts.append("!0 = distinct !{!0, !1}")
    parts.append('!1 = !{!"llvm.loop.unroll.disable"}')
    return "\n\n".join(parts) + "\n"


def _cpu_attributes(target: Target) -> str:
    width = target.vector_bytes * 8
    return (
        f'"min-legal-vector-width"="{width}" "prefer-vector-width"="{width}" '
        f'"target-cpu"="{target.cpu}"'
        + (f' "target-features"="{target.features}"' if target.features else "")
    )


def _thunk(name: str, i: int, call: CallSite) -> str:
    """`void NAME_step<i>(context, begin, end)`: finds the arguments and calls the kernel."""
    lines = [f"define hidden void @{name}_step{i}(ptr %context, i64 %begin, i64 %end) #0 {{"]
    bases: dict[tuple[str, int], str] = {}
    args: list[str] = []
    for k, place in enumerate(call.places):
        key = (place.base, place.number)
        if key not in bases:
            at = f"%b{k}"
            lines.append(f"  {at}.f = getelementptr i8, ptr %context, i64 {_FIELDS[place.base]}")
            lines.append(f"  {at} = load ptr, ptr {at}.f, align 8")
            if place.base in ("input", "output"):
                lines.append(f"  {at}.t = getelementptr ptr, ptr {at}, i64 {place.number}")
                lines.append(f"  {at}.p = load ptr, ptr {at}.t, align 8")
                at += ".p"
            bases[key] = at
        ptr = bases[key]
        if place.offset:
            lines.append(f"  %a{k} = getelementptr i8, ptr {ptr}, i64 {place.offset}")
            ptr = f"%a{k}"
        args.append(f"ptr {ptr}")
    args += ["i64 %begin", "i64 %end"]
    lines.append(f"  call void @{call.kernel}({', '.join(args)})")
    lines += ["  ret void", "}"]
    return "\n".join(lines)


# Splits a step over the caller's threads; {parallel_for, self} is `tilewright_parallel`.
_DISPATCH = """\
define internal void @tilewright_dispatch(ptr %parallel, ptr %task, ptr %context, i64 %count) #0 {
entry:
  %none = icmp eq ptr %parallel, null
  br i1 %none, label %alone, label %shared
alone:
  call void %task(ptr %context, i64 0, i64 %count)
  ret void
shared:
  %for = load ptr, ptr %parallel, align 8
  %self.f = getelementptr i8, ptr %parallel, i64 8
  %self = load ptr, ptr %self.f, align 8
  call void %for(ptr %self, ptr %task, ptr %context, i64 %count)
  ret void
}"""


def _main(plan: ModulePlan) -> str:
    """Checks the arena's alignment, then runs every step in order."""
    n = plan.name
    lines = [
        f"define hidden i32 @{n}_main(ptr %inputs, ptr %outputs, ptr %arena, ptr %weights, "
        "ptr %parallel) #0 {",
        "entry:",
        "  %bits = ptrtoint ptr %arena to i64",
        "  %low = and i64 %bits, 63",
        "  %bad = icmp ne i64 %low, 0",
        "  br i1 %bad, label %refuse, label %go",
        "refuse:",
        "  ret i32 1",
        "go:",
        "  %context = alloca [4 x ptr], align 16",
    ]
    for field, offset in (("inputs", 0), ("outputs", 8), ("arena", 16), ("weights", 24)):
        lines.append(f"  %f.{field} = getelementptr i8, ptr %context, i64 {offset}")
        lines.append(f"  store ptr %{field}, ptr %f.{field}, align 8")
    for i, call in enumerate(plan.calls):
        task = f"@{n}_step{i}"
        if call.threaded and call.count > 1:
            lines.append(
                f"  call void @tilewright_dispatch(ptr %parallel, ptr {task}, ptr %context, "
                f"i64 {call.count})"
            )
        else:
            lines.append(f"  call void {task}(ptr %context, i64 0, i64 {call.count})")
    lines += ["  ret i32 0", "}"]
    return "\n".join(lines)


def _entry_points(plan: ModulePlan) -> str:
    n = plan.name
    size = max(plan.weights_bytes, 64)
    # `externally_initialized`: the zeros are a placeholder, the optimiser must not fold them.
    return f"""\
@{n}_weights = hidden externally_initialized constant [{size} x i8] zeroinitializer, section "{WEIGHTS_SECTION}", align 64

define i32 @{n}_run(ptr %inputs, ptr %outputs, ptr %arena) #0 {{
  %r = call i32 @{n}_main(ptr %inputs, ptr %outputs, ptr %arena, ptr @{n}_weights, ptr null)
  ret i32 %r
}}

define i32 @{n}_run_parallel(ptr %inputs, ptr %outputs, ptr %arena, ptr %parallel) #0 {{
  %r = call i32 @{n}_main(ptr %inputs, ptr %outputs, ptr %arena, ptr @{n}_weights, ptr %parallel)
  ret i32 %r
}}"""
