"""What this machine can do at most: one core's multiply-add rate and cache bandwidth.

In: a target. Out: measured FLOP/s and bytes/s.
The multiply-add rate is that of a loop of independent fused multiply-adds on registers, written in
loop IR and compiled like any kernel, so it is the roof for the target's own instructions. The
bandwidth is that of a copy inside the second-level cache.
"""

from __future__ import annotations

import ctypes
import time
from dataclasses import dataclass

import numpy as np

from tilewright.codegen.llvm import Jit
from tilewright.codegen.module import CallSite, ModulePlan, Place, emit_module
from tilewright.core.dtypes import F32
from tilewright.core.index import Ix, ix
from tilewright.graph.ir import Graph, Node, TensorType
from tilewright.loop.ir import Alloc, Const, Fma, For, Kernel, Load, Param, Store, dense
from tilewright.pipeline import build
from tilewright.runtime.model import aligned_bytes
from tilewright.schedule.target import Target
from tilewright.session import Session


@dataclass(frozen=True, slots=True)
class Roofline:
    """Floating-point operations and bytes per second of one core."""

    flops: float
    bandwidth: float


def peak_kernel(target: Target, steps: int) -> tuple[Kernel, int]:
    """Independent multiply-adds on registers, and how many operations a run does."""
    lanes = target.lanes(4)
    chains = min(target.registers - 4, 3 * target.fma_latency * target.fma_per_cycle)
    acc = dense("acc", F32, (chains, lanes), "register")
    at = (ix("c"), ix("l"))
    start = Store("acc", at, Const(1.0, F32))
    step = Store(
        "acc", at, Fma(Load("acc", at, F32), Load("x", (Ix(0),), F32), Load("x", (Ix(1),), F32))
    )
    finish = Store("y", at, Load("acc", at, F32))

    def tile(body: Store) -> For:
        return For("c", Ix(chains), (For("l", Ix(lanes), (body,), "vector"),), "unroll")

    body = (Alloc(acc), tile(start), For("k", Ix(steps), (tile(step),)), tile(finish))
    params = (Param(dense("x", F32, (2,)), "in"), Param(dense("y", F32, (chains, lanes)), "out"))
    return Kernel("peak", params, body), 2 * steps * chains * lanes


def fma_peak(target: Target, seconds: float = 0.3) -> float:
    """Measured multiply-add rate of one core in FLOP/s."""
    kernel, operations = peak_kernel(target, 20_000)
    call = CallSite("peak", (Place("input", 0), Place("output", 0)), 1, False)
    jit = Jit(emit_module(ModulePlan("peak_m", target, (kernel,), (call,), 0), False), target)
    main = ctypes.CFUNCTYPE(ctypes.c_int32, *[ctypes.c_void_p] * 5)(jit.address("peak_m_main"))
    x = np.array([0.999, 0.001], np.float32)
    y = np.empty(kernel.params[1].buffer.shape, np.float32)
    inputs, outputs = (ctypes.c_void_p * 1)(x.ctypes.data), (ctypes.c_void_p * 1)(y.ctypes.data)
    arguments = (
        ctypes.addressof(inputs),
        ctypes.addressof(outputs),
        aligned_bytes(64).ctypes.data,
        None,
        None,
    )
    best, begin = float("inf"), time.perf_counter()
    while time.perf_counter() - begin < seconds:
        start = time.perf_counter()
        main(*arguments)
        best = min(best, time.perf_counter() - start)
    return operations / best


def matmul_rate(target: Target, m: int, n: int, k: int, seconds: float = 0.5) -> float:
    """FLOP/s of our default C = A B with constant B, one thread."""
    b = np.random.default_rng(0).standard_normal((k, n)).astype(np.float32)
    g = Graph("roofline", ["a"], ["c"])
    g.types = {"a": TensorType(F32, (m, k)), "c": TensorType(F32, (m, n))}
    g.nodes.append(Node("matmul", "matmul", ("a", g.add_constant("b", b)), ("c",)))
    session = Session(build(g, target))
    best, begin = float("inf"), time.perf_counter()
    while time.perf_counter() - begin < seconds:
        best = min(best, session.time_step(0, 3))
    return 2 * m * n * k / best


def bandwidth(target: Target) -> float:
    """Bytes read and written per second by a copy inside the second-level cache."""
    source = np.zeros(target.l2_bytes // 4, np.uint8)
    sink = np.empty_like(source)
    best = float("inf")
    for _ in range(200):
        start = time.perf_counter()
        np.copyto(sink, source)
        best = min(best, time.perf_counter() - start)
    return 2 * source.nbytes / best


def measure(target: Target) -> Roofline:
    """Measure this machine with code for `target`."""
    return Roofline(fma_peak(target), bandwidth(target))
