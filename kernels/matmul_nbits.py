"""Matrix product with weights of 2, 4 or 8 bits, unpacked inside the kernel:

y[.., m, n] = bias[n] + sum over k of x[.., m, k] * (q[k, n] - zeros[k // block, n]) * scales[k // block, n]

Row r of `w` (u8) holds q of the 8 / bits elements k = r * 8 / bits + i of every column n, element i in bits
i * bits and up: weights are read once, as they are stored, in vectors along the columns. A block is `block`
elements of k. What ONNX calls MatMulNBits, and what `graph.passes.pack_weights` makes of products with
dequantized constants.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np

from tilewright.core.attributes import integer
from tilewright.core.dtypes import F32, I32, U8
from tilewright.errors import ModelError
from tilewright.graph.ir import Array, Attrs, TensorType
from tilewright.loop.builder import KernelBuilder, add, binary, cast, const, fma, mul, sub
from tilewright.loop.ir import Expr, Kernel
from tilewright.loop.rewrite import loops
from tilewright.registry import ImportNode, Operator, Sample
from tilewright.schedule.target import Target
from tilewright.schedule.templates import contraction
from tilewright.schedule.trace import Trace


def _infer(types: Sequence[TensorType | None], attrs: Attrs) -> list[TensorType]:
    x, w, scales, zeros, bias = (*types, None, None)[:5]
    assert x is not None and w is not None and scales is not None and zeros is not None
    bits, block = integer(attrs, "bits"), integer(attrs, "block")
    per = 8 // bits if bits in (2, 4, 8) else 0
    fits = per > 0 and block > 0 and block % per == 0 and x.rank >= 2 and w.rank == 2
    if not fits or not x.dtype.is_float or w.dtype is not U8 or w.shape[0] * per != x.shape[-1]:
        raise ModelError(f"`matmul_nbits` of {x} and {w} of {bits} bits: the shapes do not fit")
    wanted = (x.shape[-1] // block, w.shape[1])
    number = all(t.dtype.is_float for t in (scales, zeros))
    if (
        not number
        or x.shape[-1] % block
        or scales.shape != wanted
        or zeros.shape not in ((), wanted)
    ):
        raise ModelError(
            f"`matmul_nbits`: scales {scales} and zero points {zeros} do not fit {x} in blocks of {block}"
        )
    if bias is not None and bias.shape != w.shape[1:]:
        raise ModelError(f"`matmul_nbits`: bias {bias} does not fit {w.shape[1]} columns")
    return [TensorType(x.dtype, (*x.shape[:-1], w.shape[1]))]


def _unpacked(w: Array, bits: int) -> Array:
    """[k, n] integers."""
    parts = [(w >> (i * bits)) & ((1 << bits) - 1) for i in range(8 // bits)]
    return np.stack(parts, axis=1).reshape(-1, w.shape[1])


def _reference(inputs: Sequence[Any], attrs: Attrs) -> list[Array]:
    x, w, scales, zeros, bias = (*inputs, None, None)[:5]
    block = integer(attrs, "block")
    q = _unpacked(w, integer(attrs, "bits")).astype(np.float32)
    s = np.repeat(scales.astype(np.float32), block, axis=0)
    z = zeros.astype(np.float32)
    z = np.repeat(z, block, axis=0) if z.ndim else z
    y = x.astype(np.float64) @ ((q - z) * s).astype(np.float64)
    return [(y if bias is None else y + bias.astype(np.float64)).astype(x.dtype)]


def _lower(k: KernelBuilder, attrs: Attrs) -> None:
    x, w, scales, zeros, bias = (*k.inputs, None, None)[:5]
    assert x is not None and w is not None and scales is not None and zeros is not None
    bits, block = integer(attrs, "bits"), integer(attrs, "block")
    per, mask = 8 // bits, const((1 << bits) - 1, I32)
    with ExitStack() as nest:
        batch = [nest.enter_context(k.loop(f"b{i}", n)) for i, n in enumerate(k.out_shape[:-2])]
        m = nest.enter_context(k.loop("m", k.out_shape[-2]))
        n = nest.enter_context(k.loop("n", k.out_shape[-1]))
        acc = k.local("acc", k.out_dtype)
        k.set(acc, const(0, k.out_dtype))
        with k.loop("block", x.shape[-1] // block) as b, k.loop("r", block // per) as r:
            row = b * (block // per) + r
            total: Expr = acc()
            packed = cast(w(row, n), I32)
            for i in range(per):
                moved = binary("shr", packed, const(i * bits, I32)) if i else packed
                q = binary("and", moved, mask) if i + 1 < per else moved
                zero = zeros(b, n) if zeros.shape else zeros()
                weight = mul(sub(cast(q, F32), cast(zero, F32)), cast(scales(b, n), F32))
                value = x(*batch, m, row * per + i)
                total = fma(value, cast(weight, value.dtype), total)
            k.set(acc, total)
        k.emit((*batch, m, n), acc() if bias is None else add(acc(), cast(bias(n), k.out_dtype)))


def _schedule(kernel: Kernel, target: Target) -> Trace:
    """A register-tiled product, whose panels of constant weights follow one another in memory."""
    if target.family != "simd" or "n" not in loops(kernel.body):
        return ()
    constants = [p.buffer for p in kernel.params if p.role == "const"]
    packed = next((b for b in constants if b.dtype is U8 and len(b.shape) == 2), None)
    weights = None if packed is None else (packed.name, 1, [0])
    return contraction(kernel, target, ["m"], "n", ["block", "r"], weights)


def _flops(types: Sequence[TensorType | None], attrs: Attrs) -> int:
    assert types[0] is not None
    return 2 * _infer(types, attrs)[0].size * types[0].shape[-1]


# ---------------------------------------------------------------- importer


def _import(node: ImportNode) -> Sequence[str]:
    """com.microsoft MatMulNBits(x, weights [N, blocks, bytes], scales, zero points?, g_idx?, bias?)."""
    x, bits = node.type(0), int(node.attr("bits", 4))
    depth, columns, block = (int(node.attr(n, 0)) for n in ("K", "N", "block_size"))
    if bits not in (2, 4, 8) or block < 16 or block & (block - 1):
        raise node.fail(f"{bits} bits in blocks of {block} are not supported: use 2, 4 or 8 bits")
    blocks = -(-depth // block)
    blob = block * bits // 8
    w = node.need_const(1, "the weights")
    if w.dtype != np.uint8 or w.size != columns * blocks * blob or x.shape[-1:] != (depth,):
        raise node.fail(f"weights {node.type(1)} do not fit {x}, K {depth} and N {columns}: repair")
    if node.has(4):
        order = node.need_const(4, "g_idx")
        if not np.array_equal(order, np.arange(depth) // block):
            raise node.fail(
                "g_idx in another order than that of the blocks is not supported: leave it out"
            )
    rows = np.ascontiguousarray(w.reshape(columns, blocks * blob).T)
    names = [node.constant(rows, "weights"), _per_block(node, 2, columns, blocks)]
    names.append(_zeros(node, columns, blocks, bits))
    if node.has(5):
        names.append(node.inputs[5])
    source, shape = node.inputs[0], x.shape
    if x.rank == 1:
        (source,) = node.add("reshape", [source], {"shape": (1, depth)})
    rest = blocks * block - depth
    if rest:  # the last block is filled up: with zeros it adds nothing
        rank = node.type_of(source).rank
        attrs: Attrs = {
            "before": (0,) * rank, "after": (*(0,) * (rank - 1), rest), "mode": "constant", "value": 0.0
        }  # fmt: skip
        (source,) = node.add("pad", [source], attrs)
    (y,) = node.add("matmul_nbits", [source, *names], {"bits": bits, "block": block})
    return node.add("reshape", [y], {"shape": (columns,)}) if len(shape) == 1 else [y]


def _per_block(node: ImportNode, i: int, columns: int, blocks: int) -> str:
    """Numbers given column by column as [blocks, columns]."""
    values = node.need_const(i, "the scales" if i == 2 else "the zero points")
    if values.size != columns * blocks:
        raise node.fail(f"input {i} has {values.size} numbers, not {columns} * {blocks}: repair it")
    return node.constant(np.ascontiguousarray(values.reshape(columns, blocks).T), "scale")


def _zeros(node: ImportNode, columns: int, blocks: int, bits: int) -> str:
    """Zero points: packed like the weights, or numbers; the middle of the range without."""
    if not node.has(3):
        return node.constant(np.asarray(float(1 << (bits - 1)), np.float32), "zero")
    if node.type(3).dtype is not U8:
        return _per_block(node, 3, columns, blocks)
    packed = node.need_const(3, "the zero points").reshape(columns, -1)
    values = _unpacked(np.ascontiguousarray(packed.T), bits)[:blocks]
    if values.shape != (blocks, columns):
        raise node.fail(
            f"zero points {node.type(3)} do not fit {columns} columns: repair the model"
        )
    return node.constant(values.astype(np.float32), "zero")


# ---------------------------------------------------------------- samples


def _samples(rng: np.random.Generator) -> Iterator[Sample]:
    for bits in (4, 8, 2):
        for lead, depth, columns, block in (
            ((1,), 64, 33, 16),
            ((3,), 32, 64, 32),
            ((2, 5), 32, 17, 8),
        ):
            x = rng.standard_normal((*lead, depth)).astype(np.float32)
            w = rng.integers(0, 256, (depth * bits // 8, columns)).astype(np.uint8)
            scales = (rng.random((depth // block, columns)) + 0.1).astype(np.float32)
            zeros = rng.integers(0, 1 << bits, scales.shape).astype(np.float32)
            attrs: Attrs = {"bits": bits, "block": block}
            bias = rng.standard_normal(columns).astype(np.float32)
            yield Sample((x, w, scales, zeros, bias), attrs)
            yield Sample((x, w, scales, np.asarray(8, np.float32)), attrs)


OPERATORS = [
    Operator(
        name="matmul_nbits", trait="contraction", infer=_infer, reference=_reference,
        attrs={"bits": int, "block": int}, lower=_lower, schedule=_schedule, samples=_samples,
        flops=_flops, depth=lambda types, attrs: types[0].shape[-1] if types[0] else 1,
        onnx={"MatMulNBits": _import},
        doc="matrix product with weights of 2, 4 or 8 bits that are unpacked on the way",
    )
]  # fmt: skip
