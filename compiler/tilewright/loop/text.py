"""The loop IR's text form.

In: a `Kernel`. Out: text a person can read; `parse` reads it back.
"""

from __future__ import annotations

from tilewright.core.index import to_text as index_text
from tilewright.loop.ir import (
    Alloc,
    Binary,
    Bitcast,
    Block,
    Buffer,
    Cast,
    Const,
    Dot,
    Expr,
    Fma,
    For,
    FromIndex,
    If,
    Kernel,
    Let,
    Load,
    Pack,
    PackDim,
    Ref,
    Select,
    Store,
    Unary,
    dense_strides,
)

INFIX = {
    "add": "+", "sub": "-", "mul": "*", "div": "/", "mod": "%", "lt": "<", "le": "<=", "eq": "==",
    "ne": "!=", "gt": ">", "ge": ">=", "and": "&", "or": "|", "xor": "^", "shl": "<<", "shr": ">>",
}  # fmt: skip


def to_text(kernel: Kernel) -> str:
    """Text of a kernel."""
    params = ", ".join(
        f"{'' if p.role == 'in' else p.role + ' '}{p.buffer.name}: {buffer_text(p.buffer)}"
        for p in kernel.params
    )
    lines = [f"kernel {kernel.name}({params})"]
    lines += [f"  pack {p.buffer} -> {list(p.shape)} = {_pack(p)}" for p in kernel.packs]
    lines += _block(kernel.body, "  ")
    return "\n".join(lines) + "\n"


def buffer_text(b: Buffer) -> str:
    """Type of a buffer; strides only where they are not dense."""
    shape = ", ".join(map(str, b.shape))
    strides = (
        "" if b.strides == dense_strides(b.shape) else "{" + ", ".join(map(str, b.strides)) + "}"
    )
    space = "" if b.space in ("global", "const") else f" in {b.space}"
    return f"{b.dtype}[{shape}]{strides}{space}"


def _pack(p: Pack) -> str:
    return "[" + ", ".join(_pack_dim(d) for d in p.dims) + "]"


def _pack_dim(d: PackDim) -> str:
    if d.part == "whole":
        return f"d{d.source}"
    return f"d{d.source}{'/' if d.part == 'outer' else '%'}{d.tile}"


def _index(index: tuple[object, ...]) -> str:
    return "[" + ", ".join(map(str, index)) + "]"


def _block(block: Block, pad: str) -> list[str]:
    out: list[str] = []
    for s in block:
        match s:
            case For(var, extent, body, kind):
                word = "for" if kind == "serial" else kind
                out.append(f"{pad}{word} {var} in {index_text(extent)}:")
                out += _block(body, pad + "  ")
            case Store(buffer, index, value):
                out.append(f"{pad}{buffer}{_index(index)} = {expr_text(value)}")
            case Let(name, value, bound):
                within = f" in {bound[0]}..{bound[1]}" if bound else ""
                out.append(f"{pad}let {name}{within} = {expr_text(value)}")
            case If(cond, then, orelse):
                out.append(f"{pad}if {expr_text(cond)}:")
                out += _block(then, pad + "  ")
                if orelse:
                    out.append(f"{pad}else:")
                    out += _block(orelse, pad + "  ")
            case Alloc(buffer):
                out.append(f"{pad}alloc {buffer.name}: {buffer_text(buffer)}")
    return out


def expr_text(e: Expr) -> str:
    """Text of an expression; every leaf carries its type."""
    match e:
        case Const(value, dtype):
            if dtype.is_float:
                return f"{float(value)!r}:{dtype}"
            return f"{int(value)}:{dtype}"
        case FromIndex(index, dtype):
            return f"index({index_text(index)}):{dtype}"
        case Ref(name, dtype):
            return f"{name}:{dtype}"
        case Load(buffer, index, dtype):
            return f"{buffer}{_index(index)}:{dtype}"
        case Unary(op, a):
            return f"{op}({expr_text(a)})"
        case Binary(op, a, b) if op in INFIX:
            return f"({expr_text(a)} {INFIX[op]} {expr_text(b)})"
        case Binary(op, a, b):
            return f"{op}({expr_text(a)}, {expr_text(b)})"
        case Fma(a, b, c):
            return f"fma({expr_text(a)}, {expr_text(b)}, {expr_text(c)})"
        case Dot(var, n, a, b, c):
            return f"dot({var} in {n}: {expr_text(a)}, {expr_text(b)}, {expr_text(c)})"
        case Select(cond, a, b):
            return f"select({expr_text(cond)}, {expr_text(a)}, {expr_text(b)})"
        case Cast(a, dtype):
            return f"cast({expr_text(a)}):{dtype}"
        case Bitcast(a, dtype):
            return f"bitcast({expr_text(a)}):{dtype}"
