"""Schedule spaces for GPUs: the parameters of the templates in `gpu` and `tensor_cores`.

In: an unscheduled kernel and a target with `[gpu]`. Out: a space whose default is the default schedule.
Invariant: what cannot be launched (threads, shared memory) or would spill (registers) has an infinite cost,
so that it is never made; other costs come from the data sheet (`gpu_parts.modelled`).
"""

from __future__ import annotations

import math

from tilewright.errors import ScheduleError
from tilewright.loop import mma
from tilewright.loop.ir import Kernel
from tilewright.schedule.space import Choice, Space, Value
from tilewright.schedule.target import Gpu, Target
from tilewright.schedule.templates import gpu as defaults
from tilewright.schedule.templates.draft import Draft
from tilewright.schedule.templates.gpu_parts import powers, shared_bytes
from tilewright.schedule.templates.gpu_tiles import MOST, Tile, tile_cost
from tilewright.schedule.templates.tensor_cores import (
    Plan,
    default_plan,
    patches,
    plan_cost,
    plan_draft,
    tensor_cores,
)
from tilewright.schedule.trace import Trace

#: Sizes of blocks of kernels that share nothing.
BLOCKS = (32, 64, 128, 256, 512)


def gpu_space(kernel: Kernel, target: Target) -> Space | None:
    """The schedules of the template that the default comes from."""
    if target.gpu is None:
        return None
    if tensor_cores(kernel, target) is not None:
        return _tensor_space(kernel, target, target.gpu)
    if defaults.tiled(kernel, target) is not None:
        return _tiled_space(kernel, target, target.gpu)
    if defaults.rows(kernel, target) is not None:
        return _rows_space(kernel, target)
    return Space(
        "gpu-outputs", {"threads": BLOCKS}, {"threads": MOST},
        lambda c: defaults.outputs(kernel, target, int(c["threads"])),
    )  # fmt: skip


def _rows_space(kernel: Kernel, target: Target) -> Space:
    def build(c: Choice) -> Trace:
        made = defaults.rows(kernel, target, int(c["threads"]))
        if made is None:
            raise ScheduleError("rows cannot be shared by so many threads")
        return made

    return Space("gpu-rows", {"threads": BLOCKS}, {"threads": MOST // 2}, build)


# ---------------------------------------------------------------- tiles


def _tiled_space(kernel: Kernel, target: Target, gpu: Gpu) -> Space:
    found = defaults.default_tiling(kernel, target)
    assert found is not None
    p, tile, piece = found
    d = Draft(kernel)
    length = d.extent(p.sums[-1])
    params: dict[str, tuple[Value, ...]] = {}
    default: dict[str, Value] = {"piece": piece}
    for v in (*p.rows, p.cols):
        n = d.extent(v)
        default |= {f"{v}_each": tile.each[v], f"{v}_threads": tile.threads[v]}
        params[f"{v}_each"] = _values(n, 8, tile.each[v])
        params[f"{v}_threads"] = _values(n, 64, tile.threads[v])
    params["piece"] = tuple(n for n in (1, 2, 4, 8, 16, 32) if length % n == 0 or n == piece)

    def tile_of(c: Choice) -> Tile:
        names = (*p.rows, p.cols)
        return Tile(
            {v: int(c[f"{v}_each"]) for v in names}, {v: int(c[f"{v}_threads"]) for v in names}
        )

    def build(c: Choice) -> Trace:
        if not math.isfinite(cost(c)):
            raise ScheduleError("the tile does not fit the output, the registers or shared memory")
        made = defaults.tile_draft(kernel, p, tile_of(c), int(c["piece"]))
        return _fitting(made, gpu)

    def cost(c: Choice) -> float:
        return tile_cost(d, p, tile_of(c), int(c["piece"]), gpu)

    return Space("gpu-tiled", params, default, build, cost)


def _values(n: int, most: int, own: int) -> tuple[Value, ...]:
    """Powers of two up to a bound and the loop's length, and the default's value."""
    return tuple(sorted({*powers(min(n, most)), own}))


def _fitting(made: Draft, gpu: Gpu) -> Trace:
    if shared_bytes(made.kernel) > gpu.shared_block:
        raise ScheduleError("the operands of a block do not fit shared memory")
    return made.trace


# ---------------------------------------------------------------- tensor cores


def _tensor_space(kernel: Kernel, target: Target, gpu: Gpu) -> Space:
    found = default_plan(kernel, target)
    assert found is not None
    p, plan = found
    d = Draft(kernel)
    length = d.extent(p.sums[-1])
    shapes = {"x".join(map(str, s)): s for s in patches(tuple(d.extent(v) for v in p.rows))}
    default: dict[str, Value] = {
        "patch": "x".join(map(str, plan.patch)), "cols": plan.cols, "depth": plan.depth, "piece": plan.piece,
    }  # fmt: skip
    params: dict[str, tuple[Value, ...]] = {
        "patch": tuple(shapes),
        "cols": tuple(sorted(powers(min(d.extent(p.cols), 256), mma.COLS))),
        "depth": tuple(n for n in mma.depths(p.a.dtype) if length % n == 0),
        "piece": tuple(sorted(n for n in powers(128 // p.a.dtype.bytes, 2) if length % n == 0)),
    }
    for v, n in zip(p.rows, plan.tiles, strict=True):
        default[f"{v}_tiles"] = n
        params[f"{v}_tiles"] = tuple(sorted(powers(min(8, d.extent(v)))))

    def plan_of(c: Choice) -> Plan:
        return Plan(
            shapes[str(c["patch"])], tuple(int(c[f"{v}_tiles"]) for v in p.rows), int(c["cols"]),
            int(c["depth"]), int(c["piece"]),
        )  # fmt: skip

    def build(c: Choice) -> Trace:
        if not math.isfinite(cost(c)):
            raise ScheduleError("the tile does not fit the output, the registers or shared memory")
        return _fitting(plan_draft(kernel, p, plan_of(c)), gpu)

    def cost(c: Choice) -> float:
        return plan_cost(d, p, plan_of(c), gpu)

    return Space("gpu-tensor-cores", params, default, build, cost)
