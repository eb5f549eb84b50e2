"""Signed bytes moved up to unsigned ones: x + 128, which flips one bit.

In: loads of bytes. Out: the expressions that operators, schedules and code generation agree on.
Invariant: `shared_byte` knows exactly what `raised` makes.

Dot products of x86-64 multiply unsigned by signed bytes: an operator with the attribute `raised` counts its
pixels so, and whoever sets it (`graph.passes.raise_bytes`) takes 128 times the weights off the bias.
"""

from __future__ import annotations

from tilewright.core.dtypes import I8, U8
from tilewright.loop.builder import binary, cast, const
from tilewright.loop.ir import Binary, Cast, Const, Expr, Load

_TOP_BIT = const(-128, I8)


def raised(x: Expr) -> Expr:
    """The i8 `x` as the u8 x + 128."""
    return cast(binary("xor", x, _TOP_BIT), U8)


def shared_byte(e: Expr) -> tuple[Load, bool] | None:
    """The load that an operand of a product widens, and whether it is raised; None if it is anything else."""
    match e:
        case Cast(Load() as load):
            return load, False
        case Cast(Cast(Binary("xor", Load() as load, Const(-128)), to)) if to is U8:
            return load, load.dtype is I8
    return None
