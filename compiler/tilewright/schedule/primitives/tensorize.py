"""tensorize(var): a reduction of a few products becomes one dot product.

    for k in 4: t = fma(a(k), b(k), t)   ->   t = dot(k in 4: a(k), b(k), t)

The code generator knows which dot products are instructions of the target (`smlad`, `sdot`, ...) and
spells out the others, so this is legal for every loop of constant extent that is such a reduction and
nothing else.
"""

from __future__ import annotations

from dataclasses import replace

from tilewright.core.index import variables
from tilewright.errors import ScheduleError
from tilewright.loop.ir import Dot, Fma, For, Kernel, Load, Stmt, Store
from tilewright.loop.rewrite import map_block
from tilewright.schedule.legality import require_loop, require_serial

#: Longer ones would be spelled out at a length that no instruction covers.
MAX_EXTENT = 64


def tensorize(kernel: Kernel, var: str) -> Kernel:
    """Replace every loop called `var` by a dot product."""
    require_loop(kernel, var)
    require_serial(kernel, var)

    def rewrite(s: Stmt) -> Stmt:
        return _dot(s) if isinstance(s, For) and s.var == var else s

    return replace(kernel, body=map_block(kernel.body, stmt=rewrite))


def _dot(loop: For) -> Stmt:
    if not loop.extent.is_const or not 1 <= loop.extent.const <= MAX_EXTENT:
        raise ScheduleError(
            f"`{loop.var}` has {loop.extent} iterations: 1 to {MAX_EXTENT} are wanted"
        )
    match loop.body:
        case (Store(buffer, index, Fma(a, b, Load(same, at, _) as old)),) if (
            same == buffer and at == index and not any(loop.var in variables(i) for i in index)
        ):
            if not old.dtype.is_integer:
                raise ScheduleError(f"`{buffer}` is {old.dtype}: dot products are of integers")
            return Store(buffer, index, Dot(loop.var, loop.extent.const, a, b, old))
    raise ScheduleError(f"`{loop.var}` is not a sum of products and nothing else")
