"""The loop IR's text form.

In: a `Kernel`. Out: text a person can read; `parse` reads it back.
Invariant: a sub-expression object that one statement uses more than once is printed once, as a line
`%0 = ...` before the statement, so the text is never longer than the tree of objects.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

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
    Mma,
    Pack,
    PackDim,
    Ref,
    Select,
    Store,
    Unary,
    dense_strides,
)
from tilewright.loop.rewrite import children

INFIX = {
    "add": "+", "sub": "-", "mul": "*", "div": "/", "mod": "%", "lt": "<", "le": "<=", "eq": "==",
    "ne": "!=", "gt": ">", "ge": ">=", "and": "&", "or": "|", "xor": "^", "shl": "<<", "shr": ">>",
}  # fmt: skip


def to_text(kernel: Kernel, sharing: bool = True) -> str:
    """Text of a kernel. Without `sharing` shared sub-expressions are written out each time: that text
    depends on what is computed alone, not on which objects stand for it."""
    params = ", ".join(
        f"{'' if p.role == 'in' else p.role + ' '}{p.buffer.name}: {buffer_text(p.buffer)}"
        for p in kernel.params
    )
    lines = [f"kernel {kernel.name}({params})"]
    lines += [f"  pack {p.buffer} -> {list(p.shape)} = {_pack(p)}" for p in kernel.packs]
    lines += _block(kernel.body, "  ", sharing)
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


def _block(block: Block, pad: str, sharing: bool) -> list[str]:
    out: list[str] = []

    def text(e: Expr) -> str:
        """Text of a statement's expression, after lines for what it uses more than once."""
        names: dict[int, str] = {}
        for s in _shared(e) if sharing else ():
            line = f"{pad}%{len(names)} = {expr_text(s, names)}"
            names[id(s)] = f"%{len(names)}"
            out.append(line)
        return expr_text(e, names)

    for s in block:
        match s:
            case For(var, extent, body, kind):
                word = "for" if kind == "serial" else kind
                out.append(f"{pad}{word} {var} in {index_text(extent)}:")
                out += _block(body, pad + "  ", sharing)
            case Store(buffer, index, value):
                shown = text(value)
                out.append(f"{pad}{buffer}{_index(index)} = {shown}")
            case Let(name, value, bound):
                within = f" in {bound[0]}..{bound[1]}" if bound else ""
                shown = text(value)
                out.append(f"{pad}let {name}{within} = {shown}")
            case If(cond, then, orelse):
                shown = text(cond)
                out.append(f"{pad}if {shown}:")
                out += _block(then, pad + "  ", sharing)
                if orelse:
                    out.append(f"{pad}else:")
                    out += _block(orelse, pad + "  ", sharing)
            case Mma():
                names = f"{s.row}, {s.col}, {s.k} in {s.extent}"
                held = f"{s.buffer}{_index(s.index)}"
                product = f"{expr_text(s.a)} * {expr_text(s.b)}"
                out.append(f"{pad}mma {index_text(s.lane)} ({names}): {held} += {product}")
            case Alloc(buffer):
                out.append(f"{pad}alloc {buffer.name}: {buffer_text(buffer)}")
    return out


def _shared(e: Expr) -> list[Expr]:
    """Sub-expressions of `e` (no leaves) that it reaches in more than one way, operands first.

    Operands of a dot product stay inside it: they are about its own variable.
    """
    uses: dict[int, int] = {}
    order: list[Expr] = []
    todo: list[tuple[Expr, bool]] = [(e, False)]
    while todo:
        x, done = todo.pop()
        if done:
            order.append(x)
            continue
        uses[id(x)] = uses.get(id(x), 0) + 1
        if uses[id(x)] > 1:
            continue
        todo.append((x, True))
        below = (x.c,) if isinstance(x, Dot) else children(x)
        todo += [(c, False) for c in reversed(below)]
    return [x for x in order if uses[id(x)] > 1 and children(x)]


def expr_text(e: Expr, names: Mapping[int, str] = MappingProxyType({})) -> str:
    """Text of an expression; every leaf carries its type. `names`: what stands for objects, by identity."""
    if id(e) in names:
        return names[id(e)]

    def text(inner: Expr) -> str:
        return expr_text(inner, names)

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
            return f"{op}({text(a)})"
        case Binary(op, a, b) if op in INFIX:
            return f"({text(a)} {INFIX[op]} {text(b)})"
        case Binary(op, a, b):
            return f"{op}({text(a)}, {text(b)})"
        case Fma(a, b, c):
            return f"fma({text(a)}, {text(b)}, {text(c)})"
        case Dot(var, n, a, b, c):
            return f"dot({var} in {n}: {text(a)}, {text(b)}, {text(c)})"
        case Select(cond, a, b):
            return f"select({text(cond)}, {text(a)}, {text(b)})"
        case Cast(a, dtype):
            return f"cast({text(a)}):{dtype}"
        case Bitcast(a, dtype):
            return f"bitcast({text(a)}):{dtype}"
