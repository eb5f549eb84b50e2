"""How far results of a schedule may be from exact ones: an interpreter that carries a bound with every value.

In: a scheduled kernel, inputs. Out: for each element of the outputs its value in float64 and a bound of the error.
Invariant: every operation adds at most half a unit in the last place to what its operands bring (Higham, "Accuracy and
Stability of Numerical Algorithms", 2002, model 2.4), functions what `expand_math` promises. The bound follows the
schedule's own order of sums, so nobody chooses a tolerance. Values are float64 themselves and round, too: what that
may add is part of the bound (it matters for kernels in float64). Where a bound says nothing (a comparison that rounding
may turn, an overflow) it is infinite.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from tilewright.core.dtypes import BOOL, DType
from tilewright.core.index import Ix, evaluate
from tilewright.errors import IRError
from tilewright.loop.interp import binary as exact_binary
from tilewright.loop.interp import cast as exact_cast
from tilewright.loop.interp import unary as exact_unary
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
    Ref,
    Select,
    Store,
    Unary,
)
from tilewright.loop.passes.expand_math import MAX_ABS, MAX_ULP, SMALLEST

Array = npt.NDArray[Any]
#: (value, bound): floats in float64; integers and bools as they are, bound 0 or infinity.
Pair = tuple[Any, float]

_INF = math.inf
#: Half a unit in the last place of float64, relative: what one operation of the reference itself adds at most; units
#: that NumPy's functions may be off (its documentation of SIMD accuracy: at most 4).
_OWN = float(np.finfo(np.float64).eps) / 2
_OWN_FUNCTIONS = 8 * _OWN


def bounded(kernel: Kernel, arrays: Mapping[str, Array]) -> dict[str, tuple[Array, Array]]:
    """(values, bounds) of each output, in float64 for floats; elements that nothing writes have an infinite bound."""
    machine = _Machine()
    for p in kernel.params:
        b = p.buffer
        if p.role == "out":
            machine.add(b.name, np.zeros(b.shape, _wide(b.dtype)), np.full(b.shape, _INF), b.dtype)
        else:
            values = np.asarray(arrays[b.name])
            machine.add(b.name, values.astype(_wide(b.dtype)), np.zeros(b.shape), b.dtype)
    with np.errstate(all="ignore"):
        machine.block(kernel.body, {}, {})
    outs = [p.buffer.name for p in kernel.params if p.role == "out"]
    return {n: (machine.values[n], machine.errors[n]) for n in outs}


def _wide(d: DType) -> Any:
    return np.float64 if d.is_float else d.numpy


class _Machine:
    def __init__(self) -> None:
        self.values: dict[str, Array] = {}
        self.errors: dict[str, Array] = {}
        self.dtypes: dict[str, DType] = {}

    def add(self, name: str, values: Array, errors: Array, dtype: DType) -> None:
        self.values[name], self.errors[name], self.dtypes[name] = values, errors, dtype

    def block(self, block: Block, env: dict[str, int], refs: dict[str, Pair]) -> None:
        for s in block:
            match s:
                case For(var, extent, body, _):
                    for i in range(evaluate(extent, env)):
                        env[var] = i
                        self.block(body, env, dict(refs))
                case Store(buffer, index, value):
                    v, e = self.eval(value, env, refs)
                    at = self.at(index, env)
                    self.values[buffer][at], self.errors[buffer][at] = v, e
                case Let(name, value, bound):
                    refs[name] = self.eval(value, env, refs)
                    if bound is not None:
                        if refs[name][1]:
                            raise IRError("an index depends on a rounded value")
                        env[name] = int(refs[name][0])
                case If(cond, then, orelse):
                    taken, e = self.eval(cond, env, refs)
                    if e:
                        raise IRError("a branch depends on a rounded value")
                    self.block(then if taken else orelse, env, dict(refs))
                case Alloc(b):
                    self.add(b.name, np.zeros(b.shape, _wide(b.dtype)), np.zeros(b.shape), b.dtype)
                case _:
                    raise IRError(f"no bound is known for {type(s).__name__}")

    def at(self, index: tuple[Ix, ...], env: dict[str, int]) -> tuple[int, ...]:
        return tuple(evaluate(i, env) for i in index)

    def eval(self, e: Expr, env: dict[str, int], refs: dict[str, Pair]) -> Pair:
        match e:
            case Const(value, dtype):
                if dtype.is_float:
                    return float(dtype.numpy.type(value)), 0.0
                return dtype.numpy.type(value), 0.0
            case FromIndex(index, dtype):
                n = evaluate(index, env)
                value = exact_cast(np.int64(n), dtype)
                return (float(value) if dtype.is_float else value), 0.0
            case Ref(name, _):
                return refs[name]
            case Load(buffer, index, _):
                at = self.at(index, env)
                return self.values[buffer][at], float(self.errors[buffer][at])
            case Unary(op, a):
                return self.unary(op, self.eval(a, env, refs), a.dtype)
            case Binary(op, a, b):
                return self.binary(op, self.eval(a, env, refs), self.eval(b, env, refs), a.dtype)
            case Fma(a, b, c):
                return self.fma(
                    self.eval(a, env, refs),
                    self.eval(b, env, refs),
                    self.eval(c, env, refs),
                    c.dtype,
                )
            case Dot(var, extent, a, b, c):
                total = self.eval(c, env, refs)
                for i in range(extent):
                    inner = {**env, var: i}
                    total = self.fma(
                        self.eval(a, inner, refs), self.eval(b, inner, refs), total, c.dtype
                    )
                return total
            case Select(cond, a, b):
                return self.select(e, cond, a, b, env, refs)
            case Cast(a, dtype):
                return self.cast(self.eval(a, env, refs), a.dtype, dtype)
            case Bitcast(a, dtype):
                v, err = self.eval(a, env, refs)
                bits = a.dtype.numpy.type(v).view(dtype.numpy)
                return (float(bits) if dtype.is_float else bits), _INF if err else 0.0

    def select(
        self, e: Select, cond: Expr, a: Expr, b: Expr, env: dict[str, int], refs: dict[str, Pair]
    ) -> Pair:
        taken, unsure = self.eval(cond, env, refs)
        if not unsure:
            return self.eval(a if taken else b, env, refs)
        x, y = self.eval(a, env, refs), self.eval(b, env, refs)
        if not e.dtype.is_float:
            return x[0], _INF if x[0] != y[0] else max(x[1], y[1])
        apart = abs(x[0] - y[0])
        return x[0], max(x[1], y[1] + (_INF if math.isnan(apart) else apart))

    # ---- operations

    def rounded(
        self, value: float, error: float, dtype: DType, ulps: float = 0.5, own: float = _OWN
    ) -> Pair:
        """A result of type `dtype` whose exact value is known but for `error` and what float64 left out (`own`)."""
        info: Any = np.finfo(np.dtype(dtype.numpy))
        if math.isnan(value) or math.isnan(error):
            return value, 0.0 if error == 0 else _INF
        if abs(value) + error > float(info.max):
            return value, 0.0 if math.isinf(value) and error == 0 else _INF
        step = (ulps * float(info.eps) + own) * abs(value) + float(info.smallest_subnormal)
        return value, error * (1 + float(info.eps)) + step

    def unary(self, op: str, x: Pair, dtype: DType) -> Pair:
        v, e = x
        if not dtype.is_float or op in ("not",):
            return exact_unary(op, v), e
        if op == "isnan":
            return np.bool_(np.isnan(v)), _INF if e else 0.0
        if op in ("neg", "abs"):
            return (-v if op == "neg" else abs(v)), e
        f = float(exact_unary(op, np.float64(v)))
        if op == "sign" and v == 0:
            f = v  # zeros map to themselves
        if e == 0 and op in ("sign", "floor", "ceil", "round", "trunc"):
            return f, 0.0
        if e == _INF:
            return f, _INF
        reach = max(e, float(np.spacing(abs(v))))  # less than that, v + e would be v
        ends = [float(exact_unary(op, np.float64(v + s))) for s in (-reach, reach)]
        spread = max((abs(y - f) for y in ends), default=0.0) if e else 0.0
        if math.isnan(spread):
            return f, _INF
        if op in ("sign", "floor", "ceil", "round", "trunc"):
            return f, spread
        extra = 0.0
        if op in ("sin", "cos"):
            spread = min(2.0, e)
            extra = MAX_ABS if abs(v) + e <= 10_000 else 2.0
        elif op in ("exp", "sigmoid"):
            extra = SMALLEST
        return self.rounded(f, spread + extra, dtype, MAX_ULP.get(op, 0.5) + 0.5, _OWN_FUNCTIONS)

    def binary(self, op: str, x: Pair, y: Pair, dtype: DType) -> Pair:
        (a, ea), (b, eb) = x, y
        if not dtype.is_float:
            return exact_binary(op, a, b, dtype), _INF if ea or eb else 0.0
        if op in ("lt", "le", "gt", "ge", "eq", "ne"):
            r = exact_binary(op, np.float64(a), np.float64(b), dtype)
            unsure = (ea or eb) and not abs(a - b) > ea + eb
            return r, _INF if unsure else 0.0
        r = float(exact_binary(op, np.float64(a), np.float64(b), dtype))
        match op:
            case "add" | "sub":
                return self.rounded(r, ea + eb, dtype)
            case "mul":
                return self.rounded(r, _product(a, ea, b, eb), dtype)
            case "div":
                room = abs(b) - eb
                if eb == 0:
                    wide = ea / abs(b) if b else (0.0 if ea == 0 else _INF)
                else:
                    wide = (ea + abs(r) * eb) / room if room > 0 else _INF
                return self.rounded(r, wide, dtype)
            case "min" | "max":
                if r == 0 and a == b and np.signbit(a) != np.signbit(b):
                    return r, SMALLEST  # either zero may come
                return r, (_INF if ea or eb else 0.0) if math.isnan(r) else max(ea, eb)
            case "pow" if not ea and not eb:
                return self.rounded(r, SMALLEST, dtype, MAX_ULP["pow"] + 0.5, _OWN_FUNCTIONS)
            case "mod" if not ea and not eb:
                return self.rounded(r, 0.0, dtype)
            case _:
                return r, _INF

    def fma(self, x: Pair, y: Pair, z: Pair, dtype: DType) -> Pair:
        (a, ea), (b, eb), (c, ec) = x, y, z
        if not dtype.is_float:
            wrap = exact_binary("add", exact_binary("mul", a, b, dtype), c, dtype)
            return wrap, _INF if ea or eb or ec else 0.0
        r = a * b + c
        own = _OWN * abs(a * b) if math.isfinite(r) else 0.0  # here the product rounds, too
        return self.rounded(r, _product(a, ea, b, eb) + ec + own, dtype)

    def cast(self, x: Pair, src: DType, dtype: DType) -> Pair:
        v, e = x
        if src.is_float and dtype.is_float:
            return (v, e) if dtype.bits >= src.bits else self.rounded(v, e, dtype)
        if dtype.is_float:
            return self.rounded(float(v), e, dtype)
        if dtype is BOOL:
            return np.bool_(v != 0), _INF if e and not abs(v) > e else 0.0
        if not src.is_float:
            return exact_cast(v, dtype), e
        out = exact_cast(np.float64(v), dtype)
        if e:
            ends = {int(exact_cast(np.float64(v + s), dtype)) for s in (-e, e)}
            return out, 0.0 if ends == {int(out)} else _INF
        return out, 0.0


def _product(a: float, ea: float, b: float, eb: float) -> float:
    """Bound of the error of a product: none where there is none, whatever infinities multiply."""
    total = 0.0
    if math.inf in (ea, eb):
        return _INF  # an infinity may be meant, which 0 makes NaN
    for size, error in ((abs(a), eb), (abs(b), ea), (ea, eb)):
        if error and size:
            total += size * error
    return _INF if math.isnan(total) else total
