"""Small kernels and helpers that the loop, schedule and code generation tests share."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import numpy.typing as npt

from tilewright.codegen.kernel import parallel_extent
from tilewright.codegen.llvm import Jit
from tilewright.codegen.module import CallSite, ModulePlan, Place, emit_module
from tilewright.core.dtypes import F32, DType
from tilewright.loop import interp
from tilewright.loop.builder import KernelBuilder, const
from tilewright.loop.ir import Fma, Kernel, Load, Param, Store, dense
from tilewright.loop.pack import pack_array
from tilewright.loop.passes.expand_math import expand_math
from tilewright.runtime.model import aligned_bytes
from tilewright.schedule.target import Target

Arrays = dict[str, npt.NDArray[Any]]


def matmul(m: int, n: int, k: int, dtype: DType = F32) -> Kernel:
    """C[m, n] = sum of A[m, k] * B[k, n], B constant, as an operator file writes it."""
    b = KernelBuilder()
    with b.loop("m", m) as i, b.loop("n", n) as j:
        acc = b.local("acc", dtype)
        b.set(acc, const(0, dtype))
        with b.loop("k", k) as kk:
            b.set(acc, Fma(Load("A", (i, kk), dtype), Load("B", (kk, j), dtype), acc()))
        b.stmt(Store("C", b.simplify((i, j)), acc()))
    params = (
        Param(dense("A", dtype, (m, k)), "in"),
        Param(dense("B", dtype, (k, n), "const"), "const"),
        Param(dense("C", dtype, (m, n)), "out"),
    )
    return Kernel("matmul", params, b.finish())


def integers(kernel: Kernel, seed: int = 0) -> Arrays:
    """Small non-zero integers for every input (sums stay exact in f32), zeros for outputs."""
    rng = np.random.default_rng(seed)
    out: Arrays = {}
    for p in kernel.params:
        values = rng.integers(1, 8, p.buffer.shape)
        signs = rng.choice([-1, 1], p.buffer.shape) if p.buffer.dtype.kind != "uint" else 1
        kind = p.buffer.dtype.numpy
        out[p.buffer.name] = (
            np.zeros(p.buffer.shape, kind) if p.role == "out" else (values * signs).astype(kind)
        )
    return out


def packed(kernel: Kernel, arrays: Arrays) -> Arrays:
    """The same arrays with constants packed as `kernel` wants them."""
    packs = {p.buffer: p for p in kernel.packs}
    return {n: pack_array(a, packs[n]) if n in packs else a.copy() for n, a in arrays.items()}


def interpret(kernel: Kernel, arrays: Arrays) -> Arrays:
    """Run in the interpreter on copies; returns all arrays."""
    mine = packed(kernel, arrays)
    interp.run(kernel, mine)
    return mine


def native(kernel: Kernel, arrays: Arrays, target: Target) -> Arrays:
    """Compile, run in this process on copies; returns all arrays."""
    mine = packed(kernel, arrays)
    places = tuple(Place("input", 0, i) for i in range(len(kernel.params)))
    call = CallSite(kernel.name, places, parallel_extent(kernel), False)
    plan = ModulePlan("m", target, (expand_math(kernel),), (call,), 0)
    jit = Jit(emit_module(plan, with_weights=False), target)
    main = ctypes.CFUNCTYPE(ctypes.c_int32, *[ctypes.c_void_p] * 5)(jit.address("m_main"))
    order = [mine[p.buffer.name] for p in kernel.params]
    pointers = (ctypes.c_void_p * len(order))(*[a.ctypes.data for a in order])
    assert main(ctypes.addressof(pointers), None, aligned_bytes(64).ctypes.data, None, None) == 0
    return mine
