"""Typed LLVM values and the instructions that combine them, as text.

In: operations on scalars or vectors of one dtype. Out: lines of LLVM IR.
Invariant: no fast-math flags and no undefined results (divisions are guarded, conversions saturate),
so that a kernel's result does not depend on what the optimiser makes of it.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from tilewright.codegen import partial
from tilewright.core.dtypes import BOOL, I16, I32, I64, DType
from tilewright.errors import IRError
from tilewright.loop.ir import Block
from tilewright.loop.rewrite import expressions, loads

#: How many lanes of a vector count: a number, or a mask that is known when the code runs.
Active = int | str


@dataclass(frozen=True, slots=True)
class Value:
    """An SSA name or literal of `dtype`; `lanes` > 1 is a vector."""

    ssa: str
    dtype: DType
    lanes: int

    @property
    def type(self) -> str:
        return llvm_type(self.dtype, self.lanes)


def scalar_type(dtype: DType) -> str:
    """LLVM type of one value in a register (bool is i1)."""
    if dtype.is_float:
        return {16: "half", 32: "float", 64: "double"}[dtype.bits]
    return "i1" if dtype is BOOL else f"i{dtype.bits}"


def memory_type(dtype: DType) -> str:
    """LLVM type of one element in memory (bool is a byte)."""
    return "i8" if dtype is BOOL else scalar_type(dtype)


def llvm_type(dtype: DType, lanes: int) -> str:
    """LLVM type of a value with `lanes` lanes."""
    return scalar_type(dtype) if lanes == 1 else f"<{lanes} x {scalar_type(dtype)}>"


def round_up(n: int, k: int) -> int:
    return -(-n // k) * k


def scratch_shape(shape: tuple[int, ...], lanes: int) -> tuple[int, ...]:
    """The shape of scratch as it lies on the stack: whole vectors may be read and written in the last row."""
    return (*shape[:-1], round_up(shape[-1], lanes)) if shape and shape[-1] > 1 else shape


def next_power_of_two(n: int) -> int:
    return 1 << (n - 1).bit_length()


def literal(value: float | int | bool, dtype: DType) -> str:
    """A constant in LLVM syntax; floats are written as the exact bits of the rounded value."""
    if dtype is BOOL:
        return "true" if value else "false"
    if dtype.is_integer:
        return str(int(value))
    if dtype.bits == 16:
        return f"0xH{struct.unpack('<H', struct.pack('<e', float(value)))[0]:04X}"
    v = float(value)
    if dtype.bits == 32:
        try:
            v = struct.unpack("<f", struct.pack("<f", v))[0]
        except OverflowError:
            v = float("inf") if v > 0 else float("-inf")
    return f"0x{struct.unpack('<Q', struct.pack('<d', v))[0]:016X}"


def loaded_buffers(stmts: Block) -> set[str]:
    """Names of all buffers that a block reads."""
    return {load.buffer for e in expressions(stmts) for load in loads(e)}


_INTRINSIC = {
    "sqrt": "sqrt", "abs": "fabs", "floor": "floor", "ceil": "ceil", "round": "roundeven",
    "trunc": "trunc", "exp": "exp", "log": "log", "sin": "sin", "cos": "cos",
}  # fmt: skip
_FLOAT_OP = {"add": "fadd", "sub": "fsub", "mul": "fmul", "div": "fdiv"}
_INT_OP = {
    "add": "add",
    "sub": "sub",
    "mul": "mul",
    "and": "and",
    "or": "or",
    "xor": "xor",
    "shl": "shl",
}
_FCMP = {"lt": "olt", "le": "ole", "eq": "oeq", "ne": "une", "gt": "ogt", "ge": "oge"}


class Builder:
    """Appends instructions; `lines` is the text so far, `declarations` what it calls."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.declarations: dict[str, None] = {}
        self.has_round = True
        """Whether the target rounds floats by an instruction."""
        self.masked = True
        """Whether the target has loads and stores of some lanes only."""
        self.helium = False
        """Whether LLVM makes Helium code, where vectors need two detours: `x < 0` becomes `vcmp lt`, the
        inverse of `ge`, which holds for NaN; and an integer made a float and scaled by 2^-n becomes a
        fixed-point conversion that LLVM 22 cannot encode."""
        self._count = 0

    # ---- text

    def fresh(self, hint: str) -> str:
        self._count += 1
        return f"%{hint}.{self._count}"

    def label(self, hint: str) -> str:
        self._count += 1
        return f"{hint}.{self._count}"

    def emit(self, line: str) -> None:
        self.lines.append(f"  {line}")

    def begin(self, label: str) -> None:
        self.lines.append(f"{label}:")

    def op(self, instruction: str) -> str:
        name = self.fresh("t")
        self.lines.append(f"  {name} = {instruction}")
        return name

    def declare(self, text: str) -> None:
        self.declarations[text] = None

    def call(self, name: str, result: str, *args: Value) -> str:
        self.declare(f"declare {result} @{name}({', '.join(a.type for a in args)})")
        return self.op(f"call {result} @{name}({', '.join(f'{a.type} {a.ssa}' for a in args)})")

    # ---- lanes

    def constant(self, v: float | int | bool, dtype: DType) -> Value:
        return Value(literal(v, dtype), dtype, 1)

    def splat(self, v: Value, lanes: int) -> Value:
        """The same scalar in every lane."""
        if v.lanes == lanes:
            return v
        if v.lanes != 1:
            raise IRError(f"cannot widen {v.lanes} lanes to {lanes}")
        wide = llvm_type(v.dtype, lanes)
        if not v.ssa.startswith("%"):
            return Value(f"splat ({v.type} {v.ssa})", v.dtype, lanes)
        one = self.op(f"insertelement {wide} poison, {v.type} {v.ssa}, i32 0")
        out = self.op(f"shufflevector {wide} {one}, {wide} poison, <{lanes} x i32> zeroinitializer")
        return Value(out, v.dtype, lanes)

    def align(self, *vs: Value) -> tuple[Value, ...]:
        """Bring operands to the same number of lanes."""
        lanes = max(v.lanes for v in vs)
        return tuple(self.splat(v, lanes) for v in vs)

    def pack_lanes(self, parts: list[Value], lanes: int) -> Value:
        """A vector from scalars; missing lanes repeat the last one (harmless, never stored)."""
        dtype = parts[0].dtype
        wide = llvm_type(dtype, lanes)
        out = "poison"
        for i in range(lanes):
            p = parts[min(i, len(parts) - 1)]
            out = self.op(f"insertelement {wide} {out}, {p.type} {p.ssa}, i32 {i}")
        return Value(out, dtype, lanes)

    def extract(self, v: Value, lane: int) -> Value:
        if v.lanes == 1:
            return v
        return Value(self.op(f"extractelement {v.type} {v.ssa}, i32 {lane}"), v.dtype, 1)

    def blend(self, old: Value, new: Value, active: Active) -> Value:
        """The first `active` lanes of `new`, the rest of `old`."""
        if isinstance(active, str):
            return self.select(Value(active, BOOL, new.lanes), new, old)
        picks = ", ".join(f"i32 {i + (new.lanes if i < active else 0)}" for i in range(new.lanes))
        pair = f"{old.type} {old.ssa}, {new.type} {new.ssa}"
        return Value(
            self.op(f"shufflevector {pair}, <{new.lanes} x i32> <{picks}>"), new.dtype, new.lanes
        )

    # ---- memory

    def _mask(self, lanes: int, active: Active) -> str:
        if isinstance(active, str):
            return active
        return (
            "<" + ", ".join(f"i1 {'true' if i < active else 'false'}" for i in range(lanes)) + ">"
        )

    def load_vector(
        self, ptr: str, dtype: DType, lanes: int, active: Active | None, align: int = 0
    ) -> Value:
        """Load `lanes` elements, or only the first `active`; `align` is 0 or more than an element's."""
        element = memory_type(dtype)
        kind = element if lanes == 1 else f"<{lanes} x {element}>"
        if active is None:
            raw = self.op(f"load {kind}, ptr {ptr}, align {align or dtype.bytes}")
        elif not self.masked and isinstance(active, int):
            raw = partial.load_pieces(self, ptr, dtype, lanes, active)
        else:
            name = f"llvm.masked.load.v{lanes}{_suffix(dtype, memory=True)}.p0"
            mask = f"<{lanes} x i1>"
            self.declare(f"declare {kind} @{name}(ptr, {mask}, {kind})")
            raw = self.op(
                f"call {kind} @{name}(ptr align {dtype.bytes} {ptr}, "
                f"{mask} {self._mask(lanes, active)}, {kind} zeroinitializer)"
            )
        if dtype is BOOL:
            raw = self.op(f"trunc {kind} {raw} to {llvm_type(BOOL, lanes)}")
        return Value(raw, dtype, lanes)

    def store_vector(self, ptr: str, v: Value, active: Active | None, align: int = 0) -> None:
        """Store all lanes, or only the first `active`; `align` as in `load_vector`."""
        element = memory_type(v.dtype)
        kind = element if v.lanes == 1 else f"<{v.lanes} x {element}>"
        ssa = v.ssa
        if v.dtype is BOOL:
            ssa = self.op(f"zext {v.type} {ssa} to {kind}")
        if active is None:
            self.emit(f"store {kind} {ssa}, ptr {ptr}, align {align or v.dtype.bytes}")
            return
        if not self.masked and isinstance(active, int):
            partial.store_pieces(self, ptr, ssa, v.dtype, v.lanes, active)
            return
        name = f"llvm.masked.store.v{v.lanes}{_suffix(v.dtype, memory=True)}.p0"
        mask = f"<{v.lanes} x i1>"
        self.declare(f"declare void @{name}({kind}, ptr, {mask})")
        self.emit(
            f"call void @{name}({kind} {ssa}, ptr align {v.dtype.bytes} {ptr}, "
            f"{mask} {self._mask(v.lanes, active)})"
        )

    # ---- arithmetic

    def unary(self, op: str, a: Value) -> Value:
        if op == "not":
            return Value(self.op(f"xor {a.type} {a.ssa}, {self._all(a, True)}"), BOOL, a.lanes)
        if op == "isnan":
            if not a.dtype.is_float:
                return self.splat(self.constant(False, BOOL), a.lanes)
            return self._unordered(a)
        if not a.dtype.is_float:
            return self._int_unary(op, a)
        if op == "neg":
            return Value(self.op(f"fneg {a.type} {a.ssa}"), a.dtype, a.lanes)
        if op in ("rsqrt", "sign"):
            return self._float_composite(op, a)
        if op in ("round", "floor", "ceil", "trunc") and not self.has_round:
            return self._whole(op, a)
        if op not in _INTRINSIC:
            raise IRError(f"`{op}` on {a.dtype} must be expanded before code generation")
        out = self.call(f"llvm.{_INTRINSIC[op]}{_vsuffix(a)}", a.type, a)
        return Value(out, a.dtype, a.lanes)

    def _whole(self, op: str, a: Value) -> Value:
        """A whole number near `a` without an instruction for it; zeros keep their sign.

        The nearest, ties to even, comes of adding and taking away 2^(bits of the mantissa); the others
        are it or its neighbour.
        """
        if op == "trunc":
            return self._signed(self._whole("floor", self.unary("abs", a)), a)
        top = self.splat(
            self.constant(2.0 ** {16: 10, 32: 23, 64: 52}[a.dtype.bits], a.dtype), a.lanes
        )
        shift = self._signed(top, a)
        near = self.binary("sub", self.binary("add", a, shift), shift)
        if op != "round":
            one = self.splat(self.constant(1.0, a.dtype), a.lanes)
            past, back = ("gt", "sub") if op == "floor" else ("lt", "add")
            near = self.select(self.binary(past, near, a), self.binary(back, near, one), near)
        small = self.binary("lt", self.unary("abs", a), top)  # larger ones are whole already
        return self.select(small, self._signed(near, a), a)

    def _signed(self, v: Value, a: Value) -> Value:
        """`v` with the sign of `a`."""
        return Value(self.call(f"llvm.copysign{_vsuffix(a)}", a.type, v, a), a.dtype, a.lanes)

    def _float_composite(self, op: str, a: Value) -> Value:
        one = self.splat(self.constant(1.0, a.dtype), a.lanes)
        if op == "rsqrt":
            return self.binary("div", one, self.unary("sqrt", a))
        zero = self.splat(self.constant(0.0, a.dtype), a.lanes)
        signed = Value(self.call(f"llvm.copysign{_vsuffix(a)}", a.type, one, a), a.dtype, a.lanes)
        if not self.helium or a.lanes == 1:
            same = Value(self.op(f"fcmp ueq {a.type} {a.ssa}, {zero.ssa}"), BOOL, a.lanes)
        else:
            equal, nan = self.binary("eq", a, zero), self._unordered(a)
            same = Value(self.op(f"or {equal.type} {equal.ssa}, {nan.ssa}"), BOOL, a.lanes)
        return self.select(same, a, signed)  # ±0 and NaN map to themselves

    def _int_unary(self, op: str, a: Value) -> Value:
        zero = self.splat(self.constant(0, a.dtype), a.lanes)
        match op:
            case "neg":
                return self.binary("sub", zero, a)
            case "abs":
                if a.dtype.kind == "uint":
                    return a
                return self.select(self.binary("lt", a, zero), self.binary("sub", zero, a), a)
            case "sign":
                one = self.splat(self.constant(1, a.dtype), a.lanes)
                pos = self.select(self.binary("gt", a, zero), one, zero)
                if a.dtype.kind == "uint":
                    return pos
                minus = self.splat(self.constant(-1, a.dtype), a.lanes)
                return self.select(self.binary("lt", a, zero), minus, pos)
            case "floor" | "ceil" | "round" | "trunc":
                return a
            case _:
                raise IRError(f"`{op}` is not defined on {a.dtype}")

    def binary(self, op: str, a: Value, b: Value) -> Value:
        if op in _FCMP:
            return self._compare(op, a, b)
        if op in ("min", "max"):
            return self._extremum(op, a, b)
        if a.dtype.is_float:
            if op not in _FLOAT_OP:
                raise IRError(f"`{op}` on {a.dtype} must be expanded before code generation")
            return Value(self.op(f"{_FLOAT_OP[op]} {a.type} {a.ssa}, {b.ssa}"), a.dtype, a.lanes)
        if op in ("div", "mod"):
            return self._int_division(op, a, b)
        if op == "shr":
            kind = "ashr" if a.dtype.kind == "int" else "lshr"
            return Value(self.op(f"{kind} {a.type} {a.ssa}, {b.ssa}"), a.dtype, a.lanes)
        if op not in _INT_OP:
            raise IRError(f"`{op}` on {a.dtype} must be expanded before code generation")
        return Value(self.op(f"{_INT_OP[op]} {a.type} {a.ssa}, {b.ssa}"), a.dtype, a.lanes)

    def _compare(self, op: str, a: Value, b: Value) -> Value:
        if a.dtype.is_float:
            out = self.op(f"fcmp {_FCMP[op]} {a.type} {a.ssa}, {b.ssa}")
            if self.helium and a.lanes > 1 and op in ("lt", "le", "gt", "ge"):
                for v in (a, b):  # against a literal, which is where it goes wrong
                    if _is_literal(a) != _is_literal(b) and not _is_literal(v):
                        nan = self._unordered(v)
                        number = self.op(f"xor {nan.type} {nan.ssa}, {self._all(nan, True)}")
                        out = self.op(f"and {nan.type} {out}, {number}")
        else:
            sign = "s" if a.dtype.kind == "int" else "u"
            pred = op if op in ("eq", "ne") else sign + op
            out = self.op(f"icmp {pred} {a.type} {a.ssa}, {b.ssa}")
        return Value(out, BOOL, a.lanes)

    def _extremum(self, op: str, a: Value, b: Value) -> Value:
        """min/max that propagates NaN, in the form x86 and ARM select as one instruction.

        `x > y ? x : y` gives y when either is NaN: enough when x is a literal, else x is checked too.
        """
        if not a.dtype.is_float:
            pick = self._compare("lt" if op == "min" else "gt", a, b)
            return self.select(pick, a, b)
        if _is_literal(b):
            a, b = b, a
        out = self.select(self._compare("lt" if op == "min" else "gt", a, b), a, b)
        if _is_literal(a):
            return out
        return self.select(self._unordered(a), a, out)

    def _unordered(self, a: Value) -> Value:
        """Lanes that are NaN; by their bits where LLVM gets the comparison wrong."""
        if not self.helium or a.lanes == 1:
            return Value(self.op(f"fcmp uno {a.type} {a.ssa}, {a.ssa}"), BOOL, a.lanes)
        bits = {16: I16, 32: I32, 64: I64}[a.dtype.bits]
        inf = {16: 0x7C00, 32: 0x7F800000, 64: 0x7FF0000000000000}[a.dtype.bits]
        whole = llvm_type(bits, a.lanes)
        raw = Value(self.op(f"bitcast {a.type} {a.ssa} to {whole}"), bits, a.lanes)
        size = self.splat(self.constant((1 << (a.dtype.bits - 1)) - 1, bits), a.lanes)
        top = self.splat(self.constant(inf, bits), a.lanes)
        plain = self.op(f"and {whole} {raw.ssa}, {size.ssa}")
        return Value(self.op(f"icmp sgt {whole} {plain}, {top.ssa}"), BOOL, a.lanes)

    def _int_division(self, op: str, a: Value, b: Value) -> Value:
        """C semantics; a zero divisor gives 0 and INT_MIN / -1 wraps, instead of a trap."""
        zero = self.splat(self.constant(0, a.dtype), a.lanes)
        one = self.splat(self.constant(1, a.dtype), a.lanes)
        none = self.binary("eq", b, zero)
        safe = self.select(none, one, b)
        if a.dtype.kind == "int":
            minus = self.binary("eq", b, self.splat(self.constant(-1, a.dtype), a.lanes))
            safe = self.select(minus, one, safe)
        sign = "s" if a.dtype.kind == "int" else "u"
        ins = f"{sign}{'div' if op == 'div' else 'rem'}"
        out = Value(self.op(f"{ins} {a.type} {a.ssa}, {safe.ssa}"), a.dtype, a.lanes)
        if a.dtype.kind == "int":
            negated = self.binary("sub", zero, a) if op == "div" else zero
            out = self.select(minus, negated, out)
        return self.select(none, zero, out)

    def fma(self, a: Value, b: Value, c: Value) -> Value:
        if c.dtype.is_float:
            return Value(self.call(f"llvm.fma{_vsuffix(c)}", c.type, a, b, c), c.dtype, c.lanes)
        return self.binary("add", self.binary("mul", a, b), c)

    def select(self, cond: Value, a: Value, b: Value) -> Value:
        out = self.op(f"select {cond.type} {cond.ssa}, {a.type} {a.ssa}, {b.type} {b.ssa}")
        return Value(out, a.dtype, a.lanes)

    def _all(self, v: Value, value: bool) -> str:
        word = "true" if value else "false"
        return word if v.lanes == 1 else f"splat (i1 {word})"

    def cast(self, v: Value, dtype: DType) -> Value:
        src = v.dtype
        if src is dtype:
            return v
        to = llvm_type(dtype, v.lanes)
        if dtype is BOOL:
            return self.binary("ne", v, self.splat(self.constant(0, src), v.lanes))
        signed = src.kind == "int"
        if src.is_float and dtype.is_float:
            ins = "fpext" if dtype.bits > src.bits else "fptrunc"
        elif src.is_float:
            kind = "fptosi" if dtype.kind == "int" else "fptoui"
            suffix = f".{_tsuffix(dtype, v.lanes)}.{_tsuffix(src, v.lanes)}"
            return Value(self.call(f"llvm.{kind}.sat{suffix}", to, v), dtype, v.lanes)
        elif dtype.is_float:
            ins = "sitofp" if signed else "uitofp"
        elif dtype.bits == src.bits and src is not BOOL:
            return Value(v.ssa, dtype, v.lanes)
        elif dtype.bits > src.bits or src is BOOL:
            ins = "sext" if signed else "zext"
        else:
            ins = "trunc"
        out = Value(self.op(f"{ins} {v.type} {v.ssa} to {to}"), dtype, v.lanes)
        if self.helium and v.lanes > 1 and dtype.is_float and not src.is_float:
            fenced = self.call(f"llvm.arithmetic.fence{_vsuffix(out)}", to, out)
            return Value(fenced, dtype, v.lanes)
        return out


def _is_literal(v: Value) -> bool:
    return not v.ssa.startswith("%")


def _suffix(dtype: DType, memory: bool = False) -> str:
    if dtype.is_float:
        return f"f{dtype.bits}"
    return "i1" if dtype is BOOL and not memory else f"i{dtype.bits}"


def _tsuffix(dtype: DType, lanes: int) -> str:
    return _suffix(dtype) if lanes == 1 else f"v{lanes}{_suffix(dtype)}"


def _vsuffix(v: Value) -> str:
    return f".{_tsuffix(v.dtype, v.lanes)}"
