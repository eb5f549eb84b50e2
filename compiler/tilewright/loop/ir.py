"""The loop IR: a closed grammar of buffers, loops and typed expressions.

In: operator files (through `loop.builder`) and schedule primitives. Out: `codegen` and `loop.interp`.
Invariant: loops run from 0 in steps of 1; a name is bound once on any path from the root; every index
lies inside its buffer (proved by `loop.verify`, checked at run time by `loop.interp`).

A kernel is a list of parameter buffers and a block of statements. The loop `kind` is a promise about
how iterations may be executed, never about what they compute: running every loop serially, in order,
is always the meaning of the program.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import copysign, isnan
from typing import Literal, Union

from tilewright.core.dtypes import BOOL, DType
from tilewright.core.index import Ix

Space = Literal["global", "const", "local", "register", "shared"]
LoopKind = Literal["serial", "parallel", "unroll", "vector", "block", "thread"]
Role = Literal["in", "out", "const"]

BinaryOp = Literal[
    "add", "sub", "mul", "div", "mod", "pow", "min", "max", "and", "or", "xor", "shl", "shr",
    "lt", "le", "eq", "ne", "gt", "ge",
]  # fmt: skip
UnaryOp = Literal[
    "neg", "abs", "sign", "sqrt", "rsqrt", "exp", "log", "tanh", "erf", "sigmoid", "sin", "cos",
    "floor", "ceil", "round", "trunc", "not", "isnan",
]  # fmt: skip

COMPARISONS = frozenset({"lt", "le", "eq", "ne", "gt", "ge"})


# ---------------------------------------------------------------- buffers


@dataclass(frozen=True, slots=True)
class Buffer:
    """A typed array. `strides` are in elements, one per dim of `shape`; `space` is where it lives.

    `global`: a kernel parameter in memory; `const`: a parameter known at compile time; `local`:
    scratch memory private to the kernel; `register`: scratch that must end up in registers (all its
    indices are constants once unrolled); `shared`: scratch shared by the threads of a GPU block.
    """

    name: str
    dtype: DType
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    space: Space = "global"


def dense_strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Row-major strides in elements."""
    out: list[int] = []
    step = 1
    for extent in reversed(shape):
        out.append(step)
        step *= extent
    return tuple(reversed(out))


def span(buffer: Buffer) -> int:
    """Elements from the first to the last one of a buffer in memory, strides counted."""
    return 1 + sum((n - 1) * s for n, s in zip(buffer.shape, buffer.strides, strict=True))


def dense(name: str, dtype: DType, shape: tuple[int, ...], space: Space = "global") -> Buffer:
    """A row-major buffer."""
    return Buffer(name, dtype, shape, dense_strides(shape), space)


# ---------------------------------------------------------------- expressions


@dataclass(frozen=True, slots=True, eq=False)
class Const:
    """A literal of type `dtype`; equal to another if no computation could tell them apart: NaN equals NaN,
    0.0 does not equal -0.0."""

    value: float | int | bool
    dtype: DType

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Const):
            return NotImplemented
        a, b = self.value, other.value
        same = copysign(1, a) == copysign(1, b) if a == b else isnan(a) and isnan(b)
        return same and self.dtype == other.dtype

    def __hash__(self) -> int:
        v = self.value
        return hash((0 if isnan(v) else v, self.dtype))


@dataclass(frozen=True, slots=True)
class FromIndex:
    """An index form used as a value of type `dtype`."""

    index: Ix
    dtype: DType


@dataclass(frozen=True, slots=True)
class Ref:
    """The value of the `Let` that binds `name`."""

    name: str
    dtype: DType


@dataclass(frozen=True, slots=True)
class Load:
    """Element `index` of the buffer called `buffer`."""

    buffer: str
    index: tuple[Ix, ...]
    dtype: DType


@dataclass(frozen=True, slots=True)
class Unary:
    """`op` applied to `a`; the result has the type of `a` (`not`, `isnan`: bool)."""

    op: UnaryOp
    a: Expr

    @property
    def dtype(self) -> DType:
        return BOOL if self.op in ("not", "isnan") else self.a.dtype


@dataclass(frozen=True, slots=True)
class Binary:
    """`op` applied to two operands of one type; comparisons give bool.

    Integer `div` truncates towards zero and `mod` has the sign of the dividend (as in C); float
    `min`/`max` propagate NaN.
    """

    op: BinaryOp
    a: Expr
    b: Expr

    @property
    def dtype(self) -> DType:
        return BOOL if self.op in COMPARISONS else self.a.dtype


@dataclass(frozen=True, slots=True)
class Fma:
    """`a * b + c` rounded once for floats; wrapping for integers."""

    a: Expr
    b: Expr
    c: Expr

    @property
    def dtype(self) -> DType:
        return self.c.dtype


@dataclass(frozen=True, slots=True)
class Dot:
    """`c` plus the sum of `a * b` for `var` in 0 .. `extent` - 1, in order; `var` is bound in `a` and `b`.

    All three have one type. This is what dot-product instructions compute (`tensorize` makes it).
    """

    var: str
    extent: int
    a: Expr
    b: Expr
    c: Expr

    @property
    def dtype(self) -> DType:
        return self.c.dtype


@dataclass(frozen=True, slots=True)
class Select:
    """`a` where `cond` holds, else `b`. Both sides are evaluated unless they hold an unsafe load:
    a load under a `Select` is only performed where its side is taken."""

    cond: Expr
    a: Expr
    b: Expr

    @property
    def dtype(self) -> DType:
        return self.a.dtype


@dataclass(frozen=True, slots=True)
class Cast:
    """Numeric conversion: float to integer truncates and saturates (NaN is 0), integer to integer
    wraps, to bool is `!= 0`."""

    a: Expr
    dtype: DType


@dataclass(frozen=True, slots=True)
class Bitcast:
    """The same bits read as `dtype` (of equal size)."""

    a: Expr
    dtype: DType


Expr = Union[Const, FromIndex, Ref, Load, Unary, Binary, Fma, Dot, Select, Cast, Bitcast]


# ---------------------------------------------------------------- statements


@dataclass(frozen=True, slots=True)
class For:
    """Run `body` for `var` in 0 .. `extent` - 1."""

    var: str
    extent: Ix
    body: Block
    kind: LoopKind = "serial"


@dataclass(frozen=True, slots=True)
class Store:
    """Write `value` to element `index` of `buffer`."""

    buffer: str
    index: tuple[Ix, ...]
    value: Expr


@dataclass(frozen=True, slots=True)
class Let:
    """Bind `name` to `value` until the end of the enclosing block.

    With `range` (inclusive) the value is an i64 that may be used as an index variable; the range is
    a promise that the interpreter checks.
    """

    name: str
    value: Expr
    range: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class If:
    """Run `then` if `cond` holds, else `orelse`."""

    cond: Expr
    then: Block
    orelse: Block = ()


@dataclass(frozen=True, slots=True)
class Alloc:
    """Scratch buffer, undefined on entry, alive until the end of the enclosing block."""

    buffer: Buffer


@dataclass(frozen=True, slots=True)
class Mma:
    """The part of thread `lane` (0 .. 31) in a warp's product of two tiles on tensor cores.

    A warp holds a tile of 16 rows and 8 columns, each thread four elements: they are the last dim of
    `buffer`, of which `index` gives the others. Element i is in row lane // 4 + 8 * (i // 2) and column
    lane % 4 * 2 + i % 2. To it the sum of `a` * `b` over `k` in 0 .. `extent` - 1 is added, where `row` and
    `k` are bound in `a`, `k` and `col` in `b`. Types are those of `loop.mma.sum_type`; f32 operands are
    rounded to tf32 (10 bits after the point, ties away from zero). Floats are added in any order.
    """

    lane: Ix
    row: str
    col: str
    k: str
    extent: int
    buffer: str
    index: tuple[Ix, ...]
    a: Load
    b: Load


Stmt = Union[For, Store, Let, If, Alloc, Mma]
Block = tuple[Stmt, ...]


# ---------------------------------------------------------------- kernels


@dataclass(frozen=True, slots=True)
class Param:
    """A kernel parameter: a buffer and what the kernel does with it."""

    buffer: Buffer
    role: Role


@dataclass(frozen=True, slots=True)
class PackDim:
    """One dim of a packed constant: dim `source` of the original, split by `tile` if not 0.

    `part` picks the outer (`index // tile`) or inner (`index % tile`) piece of a split dim.
    """

    source: int
    tile: int = 0
    part: Literal["whole", "outer", "inner"] = "whole"


@dataclass(frozen=True, slots=True)
class Pack:
    """How a constant parameter is re-laid out at compile time; padding is zero."""

    buffer: str
    shape: tuple[int, ...]
    dims: tuple[PackDim, ...]


@dataclass(frozen=True, slots=True)
class Kernel:
    """A named function over buffers; `packs` tell how constants must be stored for it."""

    name: str
    params: tuple[Param, ...]
    body: Block
    packs: tuple[Pack, ...] = ()
