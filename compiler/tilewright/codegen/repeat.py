"""Run one step many times in native code, so that timing does not measure the caller.

In: the plan of a module. Out: LLVM IR to append to it, with the entry
    void NAME_repeat(context, end, times)       times x NAME_step0(context, 0, end)
"""

from __future__ import annotations

from tilewright.codegen.module import ModulePlan


def repeat_entry(plan: ModulePlan) -> str:
    """The loop around the module's first step."""
    word = f"i{8 * plan.target.pointer_bytes}"
    return f"""
define void @{plan.name}_repeat(ptr %context, {word} %end, {word} %times) #0 {{
entry:
  br label %loop
loop:
  %i = phi {word} [ 0, %entry ], [ %next, %loop ]
  call void @{plan.name}_step0(ptr %context, {word} 0, {word} %end) noinline
  %next = add {word} %i, 1
  %more = icmp ult {word} %next, %times
  br i1 %more, label %loop, label %done, !llvm.loop !0
done:
  ret void
}}
"""
