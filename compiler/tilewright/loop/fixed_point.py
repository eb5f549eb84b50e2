"""Products with fixed-point factors as expressions: `core.fixed_point` in loop IR.

In: i32 expressions. Out: i32 expressions. Several operator files share these.
Invariant: 64 bits hold every product; one right shift by 32 takes its high half, which is one instruction
on many machines.
"""

from __future__ import annotations

from tilewright.core.dtypes import I32, I64
from tilewright.loop.builder import KernelBuilder, add, binary, cast, const, select, sub
from tilewright.loop.ir import Binary, Const, Expr


def high_product(
    x: Expr, multiplier: Expr, shift: int, wide: bool = False, rounded: bool = True, plus: int = 0
) -> Expr:
    """(x * 2^shift * multiplier + 2^31) / 2^32, rounded down, + `plus`; without the 2^31 if not `rounded`.

    `wide` where x * 2^shift does not fit into 32 bits.
    """
    value: Expr = cast(x, I64) if wide else x
    if shift:
        value = binary("shl", value, const(shift, value.dtype))
    product: Expr = binary("mul", cast(value, I64), cast(multiplier, I64))
    if rounded:
        product = add(product, const(1 << 31, I64))
    high: Expr = binary("shr", product, const(32, I64))
    if plus:
        high = add(high, const(plus, I64))
    return cast(high, I32)


def half_up(x: Expr, places: Expr) -> Expr:
    """x / 2^(places + 1) for places >= 0, half up."""
    return binary("shr", add(binary("shr", x, places), const(1, I32)), const(1, I32))


def halved(k: KernelBuilder, x: Expr, places: Expr) -> Expr:
    """x / 2^(places + 1) for places >= 0, half away from zero.

    A negative x less 1 is rounded half up to what x is rounded half down to.
    """
    x = k.let("h", x)
    below = add(x, binary("shr", x, const(31, I32)))
    return binary("shr", add(binary("shr", below, places), const(1, I32)), const(1, I32))


def divided(k: KernelBuilder, x: Expr, places: Expr, least: int) -> Expr:
    """Like `halved`; x itself where places is -1. `least` is the least of them all."""
    if least >= 0:
        return halved(k, x, places)
    x = k.let("h", x)
    zero = const(0, I32)
    some = binary("ge", places, zero)
    return select(some, halved(k, x, select(some, places, zero)), x)


def plus(x: Expr, number: int) -> Expr:
    """x + number; what `halved` and `half_up` end with takes the number before its last shift, for free."""
    match x:
        case Binary("shr", Binary("add", inner, Const(1)), Const(1)):
            return binary("shr", add(inner, const(1 + 2 * number, I32)), const(1, I32))
        case _:
            return add(x, const(number, I32))


def raised(x: Expr, places: Expr) -> Expr:
    """x * 2^(-1 - places) where places is below -1, else x."""
    zero = const(0, I32)
    left = sub(const(-1, I32), places)
    return binary("shl", x, select(binary("gt", left, zero), left, zero))
