"""The living definition of the loop IR: a slow, bounds-checked interpreter.

In: a kernel and NumPy arrays for its parameters (logical buffer shapes; outputs are written in place).
Out: nothing; arrays changed. Invariant: every access is checked against its buffer, scratch that was
never written reads as an error, and loops of every kind run serially in order. Generated code is
tested against this file, not the other way round.
"""

from __future__ import annotations

import math
import operator
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from tilewright.core.dtypes import BOOL, DType
from tilewright.core.index import Ix, evaluate
from tilewright.errors import IRError
from tilewright.loop import mma
from tilewright.loop.ir import (
    Alloc,
    Binary,
    Bitcast,
    Block,
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
    Ref,
    Select,
    Store,
    Unary,
)

Value = Any  # a NumPy scalar of the expression's dtype
Arrays = dict[str, npt.NDArray[Any]]


def run(kernel: Kernel, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
    """Execute `kernel`; `arrays` maps parameter names to arrays of the parameters' shapes.

    Packed constants are given in their packed form (see `loop.pack`). Raises `IRError` naming buffer
    and index on an access outside a buffer or a read of scratch that was not written.
    """
    check_arguments(kernel, arrays)
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        Machine(dict(arrays)).block(kernel.body, {}, {})


def check_arguments(kernel: Kernel, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
    """Raise `IRError` unless there is an array of the right type for every parameter."""
    for p in kernel.params:
        got = arrays[p.buffer.name]
        if got.shape != p.buffer.shape or got.dtype != p.buffer.dtype.numpy:
            raise IRError(
                f"{kernel.name}: parameter {p.buffer.name} wants {p.buffer.dtype}{p.buffer.shape}, "
                f"got {got.dtype}{got.shape}"
            )


class Machine:
    """Executes statements; `loop.simt` runs threads on top of it."""

    def __init__(self, arrays: Arrays) -> None:
        self.arrays = arrays
        self.written: dict[str, npt.NDArray[np.bool_]] = {}

    # ---- statements

    def block(self, stmts: Block, env: dict[str, int], refs: dict[str, Value]) -> None:
        for stmt in stmts:
            match stmt:
                case For(var, extent, body, _):
                    for i in range(evaluate(extent, env)):
                        env[var] = i
                        self.block(body, env, dict(refs))
                case Store():
                    self.store(stmt, env, refs)
                case Mma():
                    self.mma(stmt, env)
                case Let(name, value, bound):
                    v = self.eval(value, env, refs)
                    refs[name] = v
                    if bound is not None:
                        if not bound[0] <= int(v) <= bound[1]:
                            raise IRError(f"{name} = {v} breaks its promised range {bound}")
                        env[name] = int(v)
                case If(cond, then, orelse):
                    taken = then if self.eval(cond, env, refs) else orelse
                    self.block(taken, env, dict(refs))
                case Alloc(buffer):
                    self.arrays[buffer.name] = np.zeros(buffer.shape, buffer.dtype.numpy)
                    self.written[buffer.name] = np.zeros(buffer.shape, np.bool_)
                case _:
                    raise IRError(f"the interpreter has no meaning for {stmt}")

    def store(self, s: Store, env: dict[str, int], refs: dict[str, Value]) -> None:
        at = self.locate(s.buffer, s.index, env)
        self.arrays[s.buffer][at] = self.eval(s.value, env, refs)
        if s.buffer in self.written:
            self.written[s.buffer][at] = True

    def mma(self, s: Mma, env: dict[str, int]) -> None:
        """The four elements of one thread: products in f64, rounded once; integers wrap."""
        lane = evaluate(s.lane, env)
        for i in range(mma.HELD):
            row, col = (evaluate(x, {}) for x in mma.position(lane, i))
            index = (*s.index, Ix(i))
            held = self.eval(Load(s.buffer, index, mma.sum_of(s)), env, {})
            total = held.astype(np.float64) if s.a.dtype.is_float else held
            for k in range(s.extent):
                inner = {**env, s.row: row, s.col: col, s.k: k}
                x, y = (mma.widened(self.eval(e, inner, {})) for e in (s.a, s.b))
                total = total + x * y
            self.arrays[s.buffer][self.locate(s.buffer, index, env)] = total.astype(held.dtype)

    def locate(self, buffer: str, index: tuple[Ix, ...], env: dict[str, int]) -> tuple[int, ...]:
        at = tuple([evaluate(i, env) for i in index])  # a list is quicker than a generator
        shape = self.arrays[buffer].shape
        inside = len(at) == len(shape)
        for i, n in zip(at, shape, strict=False):
            inside = inside and 0 <= i < n
        if not inside:
            raise IRError(f"{buffer}{list(at)} is outside its shape {list(shape)}")
        return at

    # ---- expressions

    def eval(self, e: Expr, env: dict[str, int], refs: dict[str, Value]) -> Value:
        match e:  # what is frequent comes first
            case Load(buffer, index, _):
                at = self.locate(buffer, index, env)
                if buffer in self.written and not self.written[buffer][at]:
                    raise IRError(f"{buffer}{list(at)} is read before it is written")
                return self.arrays[buffer][at]
            case Ref(name, _):
                return refs[name]
            case Binary(op, a, b):
                x, y = self.eval(a, env, refs), self.eval(b, env, refs)
                return _PLAIN[op](x, y) if op in _PLAIN else binary(op, x, y, a.dtype)
            case Fma(a, b, c):
                return fma(
                    self.eval(a, env, refs), self.eval(b, env, refs), self.eval(c, env, refs)
                )
            case Const(value, dtype):
                return dtype.numpy.type(value)
            case Cast(a, dtype):
                return cast(self.eval(a, env, refs), dtype)
            case Select(cond, a, b):
                return self.eval(a if self.eval(cond, env, refs) else b, env, refs)
            case Unary(op, a):
                return unary(op, self.eval(a, env, refs))
            case FromIndex(index, dtype):
                return cast(np.int64(evaluate(index, env)), dtype)
            case Dot(var, extent, a, b, c):
                total = self.eval(c, env, refs)
                for i in range(extent):
                    inner = {**env, var: i}
                    total = fma(self.eval(a, inner, refs), self.eval(b, inner, refs), total)
                return total
            case Bitcast(a, dtype):
                return self.eval(a, env, refs).view(dtype.numpy)


# ---------------------------------------------------------------- scalar semantics


def cast(v: Value, dtype: DType) -> Value:
    """Numeric conversion of a NumPy scalar."""
    if dtype is BOOL:
        return np.bool_(v != 0)
    if dtype.is_integer and isinstance(v, np.floating):
        if np.isnan(v):
            return dtype.numpy.type(0)
        info = np.iinfo(str(dtype.numpy))
        if v <= info.min or v >= info.max:  # saturates; infinities too
            return dtype.numpy.type(info.min if v <= info.min else info.max)
        return dtype.numpy.type(math.trunc(float(v)))
    return np.asarray(v).astype(dtype.numpy)[()]


_erf: Callable[[float], float] = math.erf

_UNARY: dict[str, Callable[[Value], Value]] = {
    "neg": np.negative,
    "abs": np.abs,
    "sign": np.sign,
    "sqrt": np.sqrt,
    "rsqrt": lambda v: 1 / np.sqrt(v),
    "exp": np.exp,
    "log": np.log,
    "tanh": np.tanh,
    "erf": lambda v: math.nan if np.isnan(v) else _erf(float(v)),
    "sigmoid": lambda v: 1 / (1 + np.exp(-v)),
    "sin": np.sin,
    "cos": np.cos,
    "floor": np.floor,
    "ceil": np.ceil,
    "round": np.rint,
    "trunc": np.trunc,
    "not": np.logical_not,
    "isnan": np.isnan,
}
_WIDE = frozenset({"rsqrt", "exp", "log", "tanh", "erf", "sigmoid", "sin", "cos"})


def unary(op: str, v: Value) -> Value:
    """One unary operation; transcendental ones are evaluated in float64 and rounded once."""
    if op in ("not", "isnan"):
        return _UNARY[op](v)
    wide = np.float64(v) if op in _WIDE else v
    return v.dtype.type(_UNARY[op](wide))


def unary_lanes(op: str, a: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """`unary` on all elements of an array (not `erf`)."""
    if op in ("not", "isnan"):
        return np.asarray(_UNARY[op](a))
    wide = a.astype(np.float64) if op in _WIDE else a
    return np.asarray(_UNARY[op](wide)).astype(a.dtype)


#: Operations that are the same for every type.
_PLAIN: dict[str, Callable[[Value, Value], Value]] = {
    "add": operator.add,  # on scalars quicker than np.add, and the same
    "sub": operator.sub,
    "mul": operator.mul,
    "min": np.minimum,
    "max": np.maximum,
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "xor": np.bitwise_xor,
    "shl": np.left_shift,
    "shr": np.right_shift,
    "lt": operator.lt,
    "le": operator.le,
    "eq": operator.eq,
    "ne": operator.ne,
    "gt": operator.gt,
    "ge": operator.ge,
}


def binary(op: str, a: Value, b: Value, dtype: DType) -> Value:
    """One binary operation on two scalars of `dtype`."""
    if op == "div":
        if dtype.is_float:
            return np.divide(a, b)
        quotient = 0 if b == 0 else _truncdiv(int(a), int(b))
        return np.array(quotient).astype(dtype.numpy)[()]  # INT_MIN / -1 wraps
    if op == "mod":
        if dtype.is_float:
            return np.fmod(a, b)
        return dtype.numpy.type(0 if b == 0 else int(a) - _truncdiv(int(a), int(b)) * int(b))
    if op == "pow":
        return dtype.numpy.type(0) if dtype.is_integer and b < 0 else np.power(a, b)
    return _PLAIN[op](a, b)


def _truncdiv(a: int, b: int) -> int:
    q = abs(a) // abs(b)
    return q if (a < 0) == (b < 0) else -q


def fma(a: Value, b: Value, c: Value) -> Value:
    """a*b + c with one rounding (exact for f32 because f64 holds the product exactly)."""
    if isinstance(a, np.float32):
        return np.float32(np.float64(a) * np.float64(b) + np.float64(c))
    return a * b + c
