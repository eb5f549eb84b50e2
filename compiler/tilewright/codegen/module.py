"""A whole model as one LLVM module: kernels, one thunk per step, and the C entry points.

In: a `ModulePlan` (finished kernels and the ordered calls with where each argument lives). Out: text.
Invariant: no globals but the read-only weights, no calls outside the module except through the
`parallel_for` the caller passes in.

Calling convention of the result (see `runtime/tilewright.h`):
    i32 NAME_run(inputs, outputs, arena)
    i32 NAME_run_parallel(inputs, outputs, arena, parallel)
    i32 NAME_main(inputs, outputs, arena, weights, parallel)     what the in-process JIT calls
    void NAME_step<i>(context, begin, end)                       context = {inputs, outputs, arena, weights}
A checked module (`ModulePlan.fault_at`) returns `FIRST_SITE` and more after an access outside a buffer.
begin, end and the context's fields are as wide as a pointer. Boards have one thread: no `run_parallel`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from tilewright.codegen.checked import Sites, emit_checked
from tilewright.codegen.kernel import emit_kernel, parallel_extent
from tilewright.core.sizes import Size
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
    sizes: tuple[Size, ...] = ()
    """Sizes that are known at run time; their values come as one more input, number `inputs`."""
    inputs: int = 0
    fault_at: int | None = None
    """Code that checks every access (`codegen.checked`): where in the arena it says what was wrong."""
    apart: bool = False
    """Kernels stay functions that get addresses: their code does not depend on where data lie."""


def one_call(name: str, target: Target, kernel: Kernel, fault_at: int | None = None) -> ModulePlan:
    """A kernel alone as a model: what it reads are inputs, what it writes outputs, in the order of parameters."""
    places: list[Place] = []
    for p in kernel.params:
        base: Base = "output" if p.role == "out" else "input"
        places.append(Place(base, 0, sum(x.base == base for x in places)))
    call = CallSite(kernel.name, tuple(places), parallel_extent(kernel), False)
    return ModulePlan(name, target, (kernel,), (call,), 0, fault_at=fault_at)


#: Order of the pointers in a step's context.
_FIELDS: tuple[Base, ...] = ("input", "output", "arena", "weights")


def emit_module(plan: ModulePlan, with_weights: bool) -> str:
    """LLVM IR of the model; `with_weights` adds the weights section and the public entry points."""
    declarations: dict[str, None] = {}
    functions: list[str] = []
    for text, needs in _kernels(plan):
        functions.append(text)
        declarations.update(dict.fromkeys(needs))
    thunks = [_thunk(plan, i, call) for i, call in enumerate(plan.calls)]
    parts = [*declarations, *functions, *thunks, *_glue(plan, with_weights)]
    return _module(plan, parts)


def emit_parts(plan: ModulePlan, with_weights: bool) -> Iterator[str]:
    """The same model as modules to be optimised apart and linked: one per kernel, with the steps that call it,
    and one for what is left. A model for a microcontroller is one part: its code is as small as can be."""
    if plan.target.board is not None:
        yield emit_module(plan, with_weights)
        return
    steps: dict[str, list[str]] = {k.name: [] for k in plan.kernels}
    for i, call in enumerate(plan.calls):
        steps[call.kernel].append(_thunk(plan, i, call))
    for kernel, (text, needs) in zip(plan.kernels, _kernels(plan), strict=True):
        yield _module(plan, [*needs, text, *steps[kernel.name]])
    word = _word(plan.target)
    known = [
        f"declare hidden void @{plan.name}_step{i}(ptr, {word}, {word})"
        for i in range(len(plan.calls))
    ]
    yield _module(plan, [*known, *_glue(plan, with_weights)])


def _kernels(plan: ModulePlan) -> Iterator[tuple[str, list[str]]]:
    """Every kernel as a function, and the declarations it needs."""
    sites = Sites()
    for kernel in plan.kernels:
        if plan.fault_at is None:
            yield emit_kernel(kernel, plan.target)
        else:
            yield emit_checked(kernel, plan.target, sites)


def _glue(plan: ModulePlan, with_weights: bool) -> list[str]:
    """What calls the steps."""
    dispatch = [] if plan.target.board else [_DISPATCH]
    return [*dispatch, _main(plan), *([_entry_points(plan)] if with_weights else [])]


def _module(plan: ModulePlan, parts: Sequence[str]) -> str:
    """Functions as a module."""
    # no-builtins: loops stay loops, so the object needs no memset or memcpy from a libc
    end = (
        f'attributes #0 = {{ nounwind "no-builtins" {_cpu_attributes(plan.target)} }}',
        "!0 = distinct !{!0, !1}",
        '!1 = !{!"llvm.loop.unroll.disable"}',
    )
    head = f'target triple = "{plan.target.triple}"'
    return "\n\n".join([head, *parts, *end]) + "\n"


def fault_texts(plan: ModulePlan) -> tuple[str, ...]:
    """What a checked module means by the codes `FIRST_SITE` and following: one sentence each."""
    sites = Sites()
    for kernel in plan.kernels:
        emit_checked(kernel, plan.target, sites)
    return tuple(sites.texts)


def _cpu_attributes(target: Target) -> str:
    width = target.vector_bytes * 8
    return (
        f'"min-legal-vector-width"="{width}" "prefer-vector-width"="{width}" '
        f'"target-cpu"="{target.cpu}"'
        + (f' "target-features"="{target.features}"' if target.features else "")
    )


def _word(target: Target) -> str:
    """The integer as wide as a pointer."""
    return f"i{8 * target.pointer_bytes}"


def _thunk(plan: ModulePlan, i: int, call: CallSite) -> str:
    """`void NAME_step<i>(context, begin, end)`: finds the arguments and calls the kernel."""
    word, size = _word(plan.target), plan.target.pointer_bytes
    once = "noinline " if plan.target.board else ""  # flash holds the code of a step once
    lines = [
        f"define hidden void @{plan.name}_step{i}(ptr %context, {word} %begin, {word} %end) "
        f"{once}#0 {{"
    ]
    bases: dict[tuple[str, int], str] = {}
    args: list[str] = []
    for k, place in enumerate(call.places):
        key = (place.base, place.number)
        if key not in bases:
            at, field = f"%b{k}", _FIELDS.index(place.base) * size
            lines.append(f"  {at}.f = getelementptr i8, ptr %context, {word} {field}")
            lines.append(f"  {at} = load ptr, ptr {at}.f, align {size}")
            if place.base in ("input", "output"):
                lines.append(f"  {at}.t = getelementptr ptr, ptr {at}, {word} {place.number}")
                lines.append(f"  {at}.p = load ptr, ptr {at}.t, align {size}")
                at += ".p"
            bases[key] = at
        ptr = bases[key]
        if place.offset:
            lines.append(f"  %a{k} = getelementptr i8, ptr {ptr}, {word} {place.offset}")
            ptr = f"%a{k}"
        args.append(f"ptr {ptr}")
    if plan.fault_at is not None:
        lines += _fault_pointer(plan)
        args.append("ptr %fault")
    args += [f"{word} %begin", f"{word} %end"]
    apart = " noinline" if plan.apart else ""
    lines.append(f"  call void @{call.kernel}({', '.join(args)}){apart}")
    lines += ["  ret void", "}"]
    return "\n".join(lines)


def _fault_pointer(plan: ModulePlan) -> list[str]:
    """Instructions that find the record of a checked module by the step's %context."""
    word, size = _word(plan.target), plan.target.pointer_bytes
    return [
        f"  %fault.f = getelementptr i8, ptr %context, {word} {_FIELDS.index('arena') * size}",
        f"  %fault.arena = load ptr, ptr %fault.f, align {size}",
        f"  %fault = getelementptr i8, ptr %fault.arena, {word} {plan.fault_at}",
    ]


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
    """Checks the arena's alignment and the sizes, then runs every step in order."""
    n, word, size = plan.name, _word(plan.target), plan.target.pointer_bytes
    lines = [
        f"define hidden i32 @{n}_main(ptr %inputs, ptr %outputs, ptr %arena, ptr %weights, "
        "ptr %parallel) #0 {",
        "entry:",
        f"  %bits = ptrtoint ptr %arena to {word}",
        f"  %low = and {word} %bits, {plan.target.align - 1}",
        f"  %bad = icmp ne {word} %low, 0",
        "  br i1 %bad, label %refuse, label %sizes",
        "refuse:",
        "  ret i32 1",
        "sizes:",
        *_check_sizes(plan),
        "go:",
        f"  %context = alloca [4 x ptr], align {2 * size}",
    ]
    for i, value in enumerate(("inputs", "outputs", "arena", "weights")):
        lines.append(f"  %f.{value} = getelementptr i8, ptr %context, {word} {i * size}")
        lines.append(f"  store ptr %{value}, ptr %f.{value}, align {size}")
    if plan.fault_at is not None:
        lines += [*_fault_pointer(plan), "  store i32 0, ptr %fault, align 8"]
    for i, call in enumerate(plan.calls):
        task = f"@{n}_step{i}"
        if call.threaded and call.count > 1 and not plan.target.board:
            lines.append(
                f"  call void @tilewright_dispatch(ptr %parallel, ptr {task}, ptr %context, "
                f"i64 {call.count})"
            )
        else:
            lines.append(f"  call void {task}(ptr %context, {word} 0, {word} {call.count})")
        if plan.fault_at is not None:
            lines += [
                f"  %code{i} = load i32, ptr %fault, align 8",
                f"  %good{i} = icmp eq i32 %code{i}, 0",
                f"  br i1 %good{i}, label %after{i}, label %stop{i}",
                f"stop{i}:",
                f"  ret i32 %code{i}",
                f"after{i}:",
            ]
    lines += ["  ret i32 0", "}"]
    return "\n".join(lines)


def _check_sizes(plan: ModulePlan) -> list[str]:
    """Return 2 for a size that the code was not made for: nothing has been read or written then."""
    if not plan.sizes:
        return ["  br label %go"]
    word, size = _word(plan.target), plan.target.pointer_bytes
    lines = [
        f"  %given.f = getelementptr ptr, ptr %inputs, {word} {plan.inputs}",
        f"  %given = load ptr, ptr %given.f, align {size}",
    ]
    wrong = "false"
    for i, s in enumerate(plan.sizes):
        lines += [
            f"  %at{i} = getelementptr i64, ptr %given, {word} {i}",
            f"  %size{i} = load i64, ptr %at{i}, align 8",
            f"  %under{i} = icmp slt i64 %size{i}, {s.low}",
            f"  %over{i} = icmp sgt i64 %size{i}, {s.high}",
            f"  %rest{i} = srem i64 %size{i}, {s.step}",
            f"  %odd{i} = icmp ne i64 %rest{i}, 0",
            f"  %out{i} = or i1 %under{i}, %over{i}",
            f"  %bad{i} = or i1 %out{i}, %odd{i}",
            f"  %wrong{i} = or i1 {wrong}, %bad{i}",
        ]
        wrong = f"%wrong{i}"
    return [
        *lines,
        f"  br i1 {wrong}, label %misfit, label %go",
        "misfit:",
        "  ret i32 2",
    ]


def _entry_points(plan: ModulePlan) -> str:
    """`NAME_run`, `NAME_run_parallel` where there are threads, and the weights."""
    n = plan.name
    size = max(plan.weights_bytes, plan.target.align)
    # `externally_initialized`: the zeros are a placeholder, the optimiser must not fold them.
    parts = [
        f"@{n}_weights = hidden externally_initialized constant [{size} x i8] zeroinitializer, "
        f'section "{WEIGHTS_SECTION}", align {plan.target.align}'
    ]
    for entry, parallel in ((f"{n}_run", "null"), (f"{n}_run_parallel", "%parallel")):
        more = "" if parallel == "null" else ", ptr %parallel"
        if more and plan.target.board:
            continue
        parts.append(
            f"define i32 @{entry}(ptr %inputs, ptr %outputs, ptr %arena{more}) #0 {{\n"
            f"  %r = call i32 @{n}_main(ptr %inputs, ptr %outputs, ptr %arena, ptr @{n}_weights, "
            f"ptr {parallel})\n  ret i32 %r\n}}"
        )
    return "\n\n".join(parts)
