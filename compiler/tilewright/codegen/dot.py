"""Integer dot products: which instruction of the target computes a `Dot`, if any.

In: a `Dot` at a point of a kernel. Out: its value, or None where the caller has to spell it out.
Invariant: the result is the wrapping sum that `loop.interp` defines; an instruction is only chosen where
it computes exactly that.
"""

from __future__ import annotations

from tilewright.codegen.addressing import Addressing, Slot
from tilewright.codegen.byte_runs import ByteRun, byte_run
from tilewright.codegen.dot_matrix import matrix_product
from tilewright.codegen.dot_x86 import TOP_BITS, dot_bytes
from tilewright.codegen.values import Value
from tilewright.core.dtypes import I8, I32, U8
from tilewright.core.index import Ix, bounds, coefficient, substitute, variables
from tilewright.loop.ir import Dot


def emit_dot(at: Addressing, e: Dot, c: Value, instructions: tuple[str, ...]) -> Value | None:
    """`e` by one of the target's dot-product `instructions`; `c` is the value of `e.c`."""
    a, b = byte_run(at, e.a, e.var), byte_run(at, e.b, e.var)
    if e.dtype is not I32 or a is None or b is None:
        return None
    if at.vector is not None and "madd" in instructions:
        return _x86(at, e, a, b, c, instructions)
    if a.raised or b.raised:
        return None  # the others multiply signed bytes
    if at.vector is not None:
        matrix = matrix_product(at, e, a, b, c) if "smmla" in instructions else None
        return matrix or _per_lane(at, e, a, b, c, instructions)
    if "mve" in instructions and e.extent in (4, 8, 16):
        return _vmladava(at, e, a, b, c)
    if "smlad" in instructions:
        return _smlad(at, e, a, b, c)
    if "dp4a" in instructions and e.extent % 4 == 0:
        return _dp4a(at, e, a, b, c)
    return None


# ---------------------------------------------------------------- CUDA: four products of two words


def _dp4a(at: Addressing, e: Dot, a: ByteRun, b: ByteRun, c: Value) -> Value | None:
    """GPUs read words from multiples of four bytes only: None where that is not proved."""
    if any((at.alignment(at.slots[r.buffer], r.offset) or 1) % 4 for r in (a, b)):
        return None
    kinds = ".".join("s" if r.dtype is I8 else "u" for r in (a, b))
    at.declare(f"declare i32 @llvm.nvvm.idp4a.{kinds}(i32, i32, i32)")
    total = c.ssa
    for k in range(0, e.extent, 4):
        words = [at.address(at.slots[r.buffer], r.offset + k) for r in (a, b)]
        x, y = (at.op(f"load i32, ptr {w}, align 4") for w in words)
        total = at.op(f"call i32 @llvm.nvvm.idp4a.{kinds}(i32 {x}, i32 {y}, i32 {total})")
    return Value(total, I32, 1)


# ---------------------------------------------------------------- AArch64: four products per lane


#: Types of the bytes -> the instruction, and its name in `Target.dot`.
_LANE_DOTS = {(I8, I8): ("sdot", "sdot"), (U8, U8): ("udot", "sdot"), (U8, I8): ("usdot", "usdot")}


def _per_lane(
    at: Addressing, e: Dot, a: ByteRun, b: ByteRun, c: Value, instructions: tuple[str, ...]
) -> Value | None:
    """`sdot` and its kin: four bytes that all lanes share times four bytes of each lane.

    Shared words that lie in one vector of the operand are loaded with it and named by their lane.
    """
    vec = at.vector
    assert vec is not None
    mixed = a.dtype is not b.dtype
    name, feature = _LANE_DOTS[(U8, I8) if mixed else (a.dtype, a.dtype)]
    if e.extent % 4 or vec.lanes % 4 or vec.active != vec.lanes or feature not in instructions:
        return None
    first = _first_lane(at, e, a, b, vec.var)
    if first is None:
        return None
    call = f"llvm.aarch64.neon.{name}.v4i32.v16i8"
    at.declare(f"declare <4 x i32> @{call}(<4 x i32>, <16 x i8>, <16 x i8>)")
    total = at.splat(c, vec.lanes).ssa
    parts: list[str] = []
    for part in range(0, vec.lanes, 4):
        acc = total if vec.lanes == 4 else _slice(at, total, vec.lanes, part)
        for k in range(0, e.extent, 4):
            shared = at.op(f"bitcast <4 x i32> {_shared_word(at, a, k)} to <16 x i8>")
            own = _lane_bytes(at, b.buffer, first + part * e.extent, e.extent, k)
            x, y = (shared, own) if mixed and a.dtype is U8 else (own, shared)
            acc = at.op(f"call <4 x i32> @{call}(<4 x i32> {acc}, <16 x i8> {x}, <16 x i8> {y})")
        parts.append(acc)
    return Value(_joined(at, parts), I32, vec.lanes)


def _x86(
    at: Addressing, e: Dot, a: ByteRun, b: ByteRun, c: Value, instructions: tuple[str, ...]
) -> Value | None:
    """Four bytes that all lanes share times four bytes of each lane, which lie side by side."""
    vec = at.vector
    assert vec is not None
    if e.extent != 4 or vec.lanes not in (4, 8, 16) or b.raised:
        return None
    first = _first_lane(at, e, a, b, vec.var)
    slot = at.slots[b.buffer]
    if first is None:
        return None
    if vec.active != vec.lanes and not _holds(at, slot, first, 4 * vec.lanes):
        return None  # lanes that do not count must have bytes to read all the same
    words = f"<{vec.lanes} x i32>"
    own = at.op(f"load {words}, ptr {at.address(slot, first)}, align 1")
    word = _word(at, a, 0)
    if a.raised:
        word = at.op(f"xor i32 {word}, {TOP_BITS}")
    shared = at.splat(Value(word, I32, 1), vec.lanes).ssa
    total, kinds = at.splat(c, vec.lanes).ssa, (U8 if a.raised else a.dtype, b.dtype)
    vnni = "vnni" in instructions
    return Value(dot_bytes(at, total, shared, own, kinds, vec.lanes, vnni), I32, vec.lanes)


def _first_lane(at: Addressing, e: Dot, a: ByteRun, b: ByteRun, var: str) -> Ix | None:
    """Where the bytes of lane 0 begin, if lanes along `var` share `a` and have runs of `b` side by side."""
    step = coefficient(b.offset, var)
    if var in variables(a.offset) or step != e.extent or at.lane_names(b.offset) != {var}:
        return None
    return substitute(b.offset, {var: Ix(0)})


def _holds(at: Addressing, slot: Slot, first: Ix, count: int) -> bool:
    """Whether `count` bytes from `first` on are proved to lie in a buffer."""
    _, top = bounds(first, at.scope.ranges)
    end = sum((n - 1) * s for n, s in zip(slot.buffer.shape, slot.strides, strict=True))
    return top is not None and top + count - 1 <= end


def _shared_word(at: Addressing, run: ByteRun, k: int) -> str:
    """Bytes k .. k + 3 of an operand in all four lanes."""
    slot = at.slots[run.buffer]
    lane, rest = divmod((run.offset.const + k) % 16, 4)
    whole = run.offset + (k - 4 * lane)
    aligned = rest == 0 and all(factor % 16 == 0 for _, factor in whole.terms)
    if not aligned or not _holds(at, slot, whole, 16):
        return at.splat(Value(_word(at, run, k), I32, 1), 4).ssa
    four = at.op(f"load <4 x i32>, ptr {at.address(slot, whole)}, align 1")
    picks = ", ".join([f"i32 {lane}"] * 4)
    return at.op(f"shufflevector <4 x i32> {four}, <4 x i32> poison, <4 x i32> <{picks}>")


def _lane_bytes(at: Addressing, buffer: str, first: Ix, stride: int, k: int) -> str:
    """Bytes k .. k + 3 of four lanes that lie `stride` bytes apart."""
    slot = at.slots[buffer]
    if stride == 4:
        return at.op(f"load <16 x i8>, ptr {at.address(slot, first)}, align 1")
    words = "poison"
    for lane in range(4):
        ptr = at.address(slot, first + lane * stride + k)
        word = at.op(f"load i32, ptr {ptr}, align 1")
        words = at.op(f"insertelement <4 x i32> {words}, i32 {word}, i32 {lane}")
    return at.op(f"bitcast <4 x i32> {words} to <16 x i8>")


def _slice(at: Addressing, vector: str, lanes: int, start: int) -> str:
    picks = ", ".join(f"i32 {start + i}" for i in range(4))
    kind = f"<{lanes} x i32>"
    return at.op(f"shufflevector {kind} {vector}, {kind} poison, <4 x i32> <{picks}>")


def _joined(at: Addressing, parts: list[str]) -> str:
    """Vectors of four as one."""
    lanes = 4
    while len(parts) > 1:
        picks = ", ".join(f"i32 {i}" for i in range(2 * lanes))
        kind = f"<{lanes} x i32>"
        parts = [
            at.op(f"shufflevector {kind} {x}, {kind} {y}, <{2 * lanes} x i32> <{picks}>")
            for x, y in zip(parts[::2], parts[1::2], strict=True)
        ]
        lanes *= 2
    return parts[0]


# ---------------------------------------------------------------- Armv7E-M: two 16-bit products


def _smlad(at: Addressing, e: Dot, a: ByteRun, b: ByteRun, c: Value) -> Value:
    """Four products from two words: even and odd bytes are widened to pairs of 16 bits.

    `sxtb16` takes bytes 0 and 2 of a word, or 1 and 3 after a rotation that the instruction does by
    itself; both operands are cut in the same way, so the products meet.
    """
    total = c.ssa
    at.declare("declare i32 @llvm.arm.smlad(i32, i32, i32)")
    for start in range(0, e.extent - 3, 4):
        x, y = (_word(at, r, start) for r in (a, b))
        for odd in (False, True):
            xs, ys = _pairs(at, a, x, odd), _pairs(at, b, y, odd)
            total = at.op(f"call i32 @llvm.arm.smlad(i32 {xs}, i32 {ys}, i32 {total})")
    for k in range(e.extent - e.extent % 4, e.extent):
        x, y = (_widened(at, r, k) for r in (a, b))
        total = at.op(f"add i32 {at.op(f'mul i32 {x}, {y}')}, {total}")
    return Value(total, I32, 1)


def _word(at: Addressing, run: ByteRun, start: int) -> str:
    """Four bytes as one word. M-profile cores load words from any address."""
    ptr = at.address(at.slots[run.buffer], run.offset + start)
    return at.op(f"load i32, ptr {ptr}, align 1")


def _pairs(at: Addressing, run: ByteRun, word: str, odd: bool) -> str:
    name = "llvm.arm.sxtb16" if run.dtype is I8 else "llvm.arm.uxtb16"
    at.declare(f"declare i32 @{name}(i32)")
    if odd:
        at.declare("declare i32 @llvm.fshl.i32(i32, i32, i32)")
        word = at.op(f"call i32 @llvm.fshl.i32(i32 {word}, i32 {word}, i32 24)")
    return at.op(f"call i32 @{name}(i32 {word})")


def _widened(at: Addressing, run: ByteRun, k: int) -> str:
    ptr = at.address(at.slots[run.buffer], run.offset + k)
    byte = at.op(f"load i8, ptr {ptr}, align 1")
    return at.op(f"{'sext' if run.dtype is I8 else 'zext'} i8 {byte} to i32")


# ---------------------------------------------------------------- Armv8.1-M: sums across a vector


def _vmladava(at: Addressing, e: Dot, a: ByteRun, b: ByteRun, c: Value) -> Value:
    """Helium adds the products of a whole vector to a general register.

    Sixteen bytes are multiplied as bytes where both have the same sign; fewer, and mixed ones, are
    widened by the loads.
    """
    n = e.extent
    if n == 16 and a.dtype is not b.dtype:
        total = c
        for start in (0, 8):
            total = _vmladava_part(at, a, b, total, start, 8)
        return total
    return _vmladava_part(at, a, b, c, 0, n)


def _vmladava_part(at: Addressing, a: ByteRun, b: ByteRun, c: Value, start: int, n: int) -> Value:
    bits = 128 // n
    kind = f"<{n} x i{bits}>"
    lanes = [_vector(at, r, start, n, bits) for r in (a, b)]
    name = f"llvm.arm.mve.vmldava.v{n}i{bits}"
    unsigned = 1 if bits == 8 and a.dtype is U8 else 0
    at.declare(f"declare i32 @{name}(i32, i32, i32, i32, {kind}, {kind})")
    out = at.op(
        f"call i32 @{name}(i32 {unsigned}, i32 0, i32 0, i32 {c.ssa}, {kind} {lanes[0]}, "
        f"{kind} {lanes[1]})"
    )
    return Value(out, I32, 1)


def _vector(at: Addressing, run: ByteRun, start: int, n: int, bits: int) -> str:
    ptr = at.address(at.slots[run.buffer], run.offset + start)
    raw = at.op(f"load <{n} x i8>, ptr {ptr}, align 1")
    if bits == 8:
        return raw
    widen = "sext" if run.dtype is I8 else "zext"
    return at.op(f"{widen} <{n} x i8> {raw} to <{n} x i{bits}>")
