"""The C header of an artifact.

In: a `Spec`. Out: C source text.
Invariant: the header needs only the compiler's own headers, compiles as C99 and C++11 without warnings,
and every size in it is a compile-time constant.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from tilewright.runtime.spec import FIRST_FAULT, Spec, TensorSpec, open_dim_text

C_TYPES = {
    "float32": "float", "float64": "double", "float16": "uint16_t", "bool": "uint8_t", "int8": "int8_t",
    "int16": "int16_t", "int32": "int32_t", "int64": "int64_t", "uint8": "uint8_t",
    "uint16": "uint16_t", "uint32": "uint32_t", "uint64": "uint64_t",
}  # fmt: skip
#: CPU features by LLVM's name that __builtin_cpu_supports of every gcc since 8 and clang since 7 knows.
_BUILTIN = frozenset({
    "sse3", "ssse3", "sse4.1", "sse4.2", "popcnt", "aes", "pclmul", "avx", "avx2", "fma", "bmi",
    "bmi2", "avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl", "avx512ifma", "avx512vbmi",
    "avx512vbmi2", "avx512vnni", "avx512bitalg", "avx512vpopcntdq", "gfni", "vpclmulqdq",
})  # fmt: skip
#: Others: (leaf, subleaf, register, bit) of the cpuid instruction (Intel SDM volume 2A, CPUID).
_CPUID = {
    "f16c": (1, 0, "c", 29), "movbe": (1, 0, "c", 22), "lzcnt": (0x80000001, 0, "c", 5),
    "sha": (7, 0, "b", 29), "avxvnni": (7, 1, "a", 4), "avx512bf16": (7, 1, "a", 5),
    "avx512fp16": (7, 0, "d", 23), "amx-bf16": (7, 0, "d", 22), "amx-tile": (7, 0, "d", 24),
    "amx-int8": (7, 0, "d", 25),
}  # fmt: skip
#: AArch64: (auxiliary vector entry, bit) that Linux reports (uapi/asm/hwcap.h).
_HWCAP = {
    "fp-armv8": ("AT_HWCAP", 0), "neon": ("AT_HWCAP", 1), "lse": ("AT_HWCAP", 8),
    "fullfp16": ("AT_HWCAP", 10), "rdm": ("AT_HWCAP", 12), "dotprod": ("AT_HWCAP", 20),
    "sve": ("AT_HWCAP", 22), "fp16fml": ("AT_HWCAP", 23), "sve2": ("AT_HWCAP2", 1),
    "i8mm": ("AT_HWCAP2", 13), "bf16": ("AT_HWCAP2", 14),
}  # fmt: skip


def macro(text: str) -> str:
    """`text` as part of an upper-case C identifier."""
    return re.sub(r"[^A-Z0-9_]", "_", text.upper())


def unique_macros(tensors: Sequence[TensorSpec]) -> list[str]:
    """One macro part per tensor name; a number follows where two names would be the same."""
    out: list[str] = []
    for t in tensors:
        base = re.sub("__+", "_", macro(t.name)).strip("_") or "UNNAMED"
        name, n = base, 2
        while name in out:
            name, n = f"{base}_{n}", n + 1
        out.append(name)
    return out


def comment(text: str) -> str:
    """`text` made harmless inside a C comment: printable ASCII that neither ends nor opens one."""
    shown = ascii(text)[1:-1].replace("*/", "* /").replace("/*", "/ *")
    return shown.replace("??/", "?? /")  # a trigraph for a backslash


def header(spec: Spec, more: Sequence[str] = ()) -> str:
    """Text of NAME.h, with the declarations `more`."""
    n, upper = spec.name, macro(spec.name)
    lines = [
        f"/* {n}: a model compiled by tilewright for {comment(spec.target)}.",
        " *",
        " * inputs and outputs are arrays of pointers to dense row-major tensors, in the order below, each",
        " * aligned for its element type; outputs overlap nothing. arena is scratch memory of",
        f" * {upper}_ARENA_BYTES bytes, aligned to {upper}_ARENA_ALIGN; it needs no initialisation and",
        " * nothing in it is kept between runs. No memory is allocated and nothing global is written: several",
        " * threads may run the model at once, each with an arena of its own.",
        " */",
        f"#ifndef TILEWRIGHT_MODEL_{upper}_H",
        f"#define TILEWRIGHT_MODEL_{upper}_H",
        "",
        "#include <stdint.h>",
        *_cpu_includes(spec),
        "",
        "#ifdef __cplusplus",
        'extern "C" {',
        "#endif",
        "",
        f"#define {upper}_ARENA_BYTES {spec.arena_size}",
        f"#define {upper}_ARENA_ALIGN {spec.arena_align}",
        *([] if spec.threads else _memory(spec)),
        "",
        *tensor_macros(spec, "INPUT", spec.inputs),
        *tensor_macros(spec, "OUTPUT", spec.outputs),
        *(_sizes(spec) if spec.sizes else []),
        *(_states(spec) if spec.states else []),
        "/* Runs the model on the calling thread. Returns 0, or 1 if the arena is misaligned"
        + (
            ", or 2 if a size is\n * not one that the model was compiled for. */"
            if spec.sizes
            else ". */"
        ),
        f"int32_t {n}_run(const void *const *inputs, void *const *outputs, void *arena);",
        "",
        *(_checks(spec) if spec.faults else []),
        *(_threads(spec) if spec.threads else []),
        *more,
        "#ifdef __cplusplus",
        "}",
        "#endif",
        "",
        "#endif",
    ]
    return "\n".join(lines) + "\n"


def _threads(spec: Spec) -> list[str]:
    """What only machines with an operating system have: threads, CPUs of several kinds."""
    n = spec.name
    pad = " " * (len(n) + len("int32_t _run_parallel("))
    return [
        "struct tilewright_parallel; /* see tilewright.h */",
        "",
        "/* The same on several threads; `parallel` may be NULL: one thread. */",
        f"int32_t {n}_run_parallel(const void *const *inputs, void *const *outputs, void *arena,",
        f"{pad}const struct tilewright_parallel *parallel);",
        "",
        "/* 1 if this CPU and its operating system have the features that the code needs, else 0:",
        f" * {comment(', '.join(spec.features)) or 'none beyond the architecture'}. */",
        f"static inline int {n}_cpu_supported(void) {{",
        *_cpu_check(spec),
        "}",
        "",
    ]


def _states(spec: Spec) -> list[str]:
    """What the caller keeps from run to run, and a function that fills in the first values."""
    n, upper = spec.name, macro(spec.name)
    lines = [
        "/* States: what one run writes to outputs[STATE_k_OUTPUT] the next one reads from",
        " * inputs[STATE_k_INPUT] (two buffers each, exchanged after every run). reset fills the buffers of",
        " * the first run in; states[k] is that of state k. */",
        f"#define {upper}_STATE_COUNT {len(spec.states)}",
    ]
    fill: list[str] = []
    for k, (s, value) in enumerate(zip(spec.states, spec.initial(), strict=True)):
        t = spec.inputs[s.input]
        lines += [f"#define {upper}_STATE_{k}_INPUT {s.input}"]
        lines += [f"#define {upper}_STATE_{k}_OUTPUT {s.output}"]
        # bytes: the same whatever the element type
        raw = value.reshape(-1).view("uint8")
        pointer = f"((unsigned char *)states[{k}])"
        if raw.size and (raw == raw[0]).all():
            fill.append(f"  for (uint32_t i = 0; i < {t.nbytes}u; i++) {pointer}[i] = {raw[0]};")
        elif raw.size:
            numbers = ", ".join(map(str, raw))
            fill.append(f"  static const unsigned char first_{k}[{t.nbytes}] = {{{numbers}}};")
            fill.append(
                f"  for (uint32_t i = 0; i < {t.nbytes}u; i++) {pointer}[i] = first_{k}[i];"
            )
    return [
        *lines,
        f"static inline void {n}_reset(void *const *states) {{",
        *(fill or ["  (void)states;"]),
        "}",
        "",
    ]


def _checks(spec: Spec) -> list[str]:
    """What a checked model says about an access that it refused."""
    n, upper = spec.name, macro(spec.name)
    cases = [
        f'  case {FIRST_FAULT + i}: return "{_c_string(t)}";' for i, t in enumerate(spec.faults)
    ]
    return [
        "/* Compiled with checks: a run also returns, before the access, a code for every index outside its",
        f" * buffer. {n}_fault gives the code in words (NULL for others), {upper}_FAULT_INDEX the index. */",
        f"static inline const char *{n}_fault(int32_t code) {{",
        "  switch (code) {",
        *cases,
        "  default: return 0;",
        "  }",
        "}",
        f"#define {upper}_FAULT_INDEX(arena) \\",
        f"  (*(const int64_t *)((const unsigned char *)(arena) + {spec.arena_bytes - 8}))",
        "",
    ]


def _c_string(text: str) -> str:
    """`text` inside quotes in C: printable ASCII without quotes, backslashes and trigraphs."""
    shown = ascii(text)[1:-1]
    return shown.replace("\\", "/").replace('"', "'").replace("??", "? ?")


def _sizes(spec: Spec) -> list[str]:
    """Sizes that every run may choose, and how tensors follow them."""
    upper = macro(spec.name)
    names = unique_macros([TensorSpec(s.name, (), "int64") for s in spec.sizes])
    largest = ", ".join(str(s.high) for s in spec.sizes)
    lines = [
        "/* Sizes that every run may choose: one more input, inputs[INPUT_COUNT], points to SIZE_COUNT int64_t.",
        " * Dims above are those at the largest sizes, and tensors always lie in memory with these: at",
        " * other sizes only the leading corner of each is read or written.",
        *(f" *   {comment(_tensor_dims(spec, t))}" for t in (*spec.inputs, *spec.outputs)),
        " */",
        f"#define {upper}_SIZE_COUNT {len(spec.sizes)}",
        f"#define {upper}_SIZES_LARGEST {{{largest}}}",
    ]
    for i, (s, name) in enumerate(zip(spec.sizes, names, strict=True)):
        lines += [
            f"#define {upper}_SIZE_INDEX_{name} {i}",
            f"#define {upper}_SIZE_{i}_LOW {s.low}",
            f"#define {upper}_SIZE_{i}_HIGH {s.high}",
            f"#define {upper}_SIZE_{i}_STEP {s.step}",
        ]
    return [*lines, ""]


def _tensor_dims(spec: Spec, t: TensorSpec) -> str:
    return f"{t.name}[{', '.join(open_dim_text(spec, d) for d in t.dims)}]"


def _memory(spec: Spec) -> list[str]:
    """What firmware must set aside, and checks at compile time that it fits."""
    n, upper = spec.name, macro(spec.name)
    return [
        "",
        "/* Flash for the weights, and the most stack that a run takes below its caller. */",
        f"#define {upper}_WEIGHTS_BYTES {spec.weights_bytes}",
        f"#define {upper}_STACK_BYTES {spec.stack_bytes}",
        "",
        f"/* Defines a static arena: {upper}_ARENA(arena); */",
        f"#define {upper}_ARENA(name) \\",
        f"  static unsigned char name[{upper}_ARENA_BYTES] __attribute__((aligned({upper}_ARENA_ALIGN)))",
        "",
        "/* Define the RAM that the arena may take, and a model that outgrows it fails to build. */",
        f"#if defined({upper}_ARENA_LIMIT) && {upper}_ARENA_BYTES > {upper}_ARENA_LIMIT",
        f'#error "the arena of {n} is larger than {upper}_ARENA_LIMIT"',
        "#endif",
        "#if defined(__cplusplus)",
        f'static_assert(sizeof(void *) == 4, "{n} is compiled for 32-bit pointers");',
        "#elif defined(__STDC_VERSION__) && __STDC_VERSION__ >= 201112L",
        f'_Static_assert(sizeof(void *) == 4, "{n} is compiled for 32-bit pointers");',
        "#endif",
    ]


def tensor_macros(spec: Spec, kind: str, tensors: Sequence[TensorSpec]) -> list[str]:
    """Types and sizes of the inputs or outputs."""
    upper = macro(spec.name)
    lines = [f"#define {upper}_{kind}_COUNT {len(tensors)}", ""]
    for i, (t, name) in enumerate(zip(tensors, unique_macros(tensors), strict=True)):
        prefix = f"{upper}_{kind}_{i}"
        dims = ", ".join(map(str, t.shape))
        half = ", the bits of an IEEE 754 binary16" if t.dtype == "float16" else ""
        lines.append(f"/* {kind.lower()} {i}: `{comment(t.name)}`, {t.dtype}[{dims}]{half} */")
        lines.append(f"typedef {C_TYPES[t.dtype]} {spec.name}_{kind.lower()}_{i}_t;")
        lines.append(f"#define {upper}_{kind}_INDEX_{name} {i}")
        lines.append(f"#define {prefix}_RANK {len(t.shape)}")
        if t.shape:
            lines.append(f"#define {prefix}_DIMS {{{dims}}}")
        lines.append(f"#define {prefix}_ELEMENTS {t.elements}")
        lines.append(f"#define {prefix}_BYTES {t.nbytes}")
        lines.append("")
    return lines


# ---------------------------------------------------------------- CPU features

_X86 = "#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))"
_ARM = "#if defined(__aarch64__) && defined(__linux__)"


def _cpu_includes(spec: Spec) -> list[str]:
    if any(f in _CPUID for f in spec.features):
        return ["#if defined(__x86_64__)", "#include <cpuid.h>", "#endif"]
    if any(f in _HWCAP for f in spec.features):
        return [_ARM, "#include <sys/auxv.h>", "#endif"]
    return []


def _cpu_check(spec: Spec) -> list[str]:
    """Body of NAME_cpu_supported: features it cannot test (none of ours) are left to the caller."""
    if not spec.features:
        return ["  return 1;"]
    arm = [f for f in spec.features if f in _HWCAP]
    if arm:
        return [
            _ARM,
            f"  return {_all(_hwcap_test(f) for f in arm)};",
            "#else",
            "  return 0;",
            "#endif",
        ]
    builtin = [f for f in spec.features if f in _BUILTIN]
    cpuid = [f for f in spec.features if f in _CPUID]
    lines = [_X86]
    if cpuid:
        lines.append("  unsigned a, b, c, d;")
    if builtin:
        tests = _all((f'__builtin_cpu_supports("{f}")' for f in builtin), " &&\n        ")
        lines += ["  __builtin_cpu_init();", f"  if (!({tests}))", "    return 0;"]
    for f in cpuid:
        leaf, subleaf, register, bit = _CPUID[f]
        lines.append(
            f"  if (!__get_cpuid_count({leaf:#x}u, {subleaf}u, &a, &b, &c, &d) || "
            f"!({register} >> {bit} & 1u)) /* {f} */"
        )
        lines.append("    return 0;")
    return [*lines, "  return 1;", "#else", "  return 0;", "#endif"]


def _hwcap_test(feature: str) -> str:
    entry, bit = _HWCAP[feature]
    return f"(getauxval({entry}) >> {bit} & 1)"


def _all(tests: Iterable[str], joint: str = " && ") -> str:
    return joint.join(tests)
