"""Products on tensor cores: fragments as PTX wants them, whole operators, the code that comes out."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from gpu_cases import OPERATORS, SM80, TF32, product, random
from ptx_values import isa_a, isa_b, isa_c

from tilewright.codegen.ptxas import find_ptxas
from tilewright.core.dtypes import F16, F32, I8, U8, DType
from tilewright.core.index import Ix, evaluate, ix
from tilewright.emulate import Emulator
from tilewright.errors import IRError, TargetError
from tilewright.gpu import generate_gpu, gpu_assembly
from tilewright.graph.ir import Array, Graph
from tilewright.loop import interp, mma, simt
from tilewright.loop.ir import Mma
from tilewright.loop.parse import parse
from tilewright.loop.rewrite import walk
from tilewright.loop.text import to_text
from tilewright.loop.verify import verify
from tilewright.pipeline import build
from tilewright.program import Program
from tilewright.registry import operator
from tilewright.schedule.target import load_target
from tilewright.tune.identity import target_hash

# ---------------------------------------------------------------- fragments


@pytest.mark.parametrize("operand", [F16, F32, I8, U8], ids=str)
def test_fragments_are_those_of_the_isa(operand: DType) -> None:
    per = mma.WORD // operand.bytes
    for extent in mma.depths(operand):
        for lane in range(mma.LANES):
            for rows, isa in ((mma.ROWS, isa_a), (mma.COLS, isa_b)):
                found = mma.registers(lane, extent, operand, rows)
                assert len(found) * mma.LANES * per == rows * extent
                for n, (row, k) in enumerate(found):
                    for j in range(per):
                        mine = evaluate(row, {}), evaluate(k, {}) + j
                        theirs = isa(lane, n * per + j, operand.bytes)
                        assert mine == (theirs if isa is isa_a else theirs[::-1])
            for i in range(mma.HELD):
                row, col = mma.position(lane, i)
                assert (evaluate(row, {}), evaluate(col, {})) == isa_c(lane, i)


def test_tf32_rounds_to_nearest_ties_away() -> None:
    one = np.float32(1)
    ulp = np.float32(2**-10)
    given = np.array([1 + 2**-11, -(1 + 2**-11), 1 + 2**-12, 3.5, np.inf, np.nan], np.float32)
    wanted = np.array([one + ulp, -(one + ulp), one, 3.5, np.inf, np.nan], np.float32)
    np.testing.assert_array_equal(mma.rounded_tf32(given), wanted)


# ---------------------------------------------------------------- the statement

WARP = """\
kernel warp(a: {a}[16, {k}], b: {b}[8, {k}], out c: {c}[16, 8])
  alloc s: {c}[32, 4] in register
  thread lane in 32:
    unroll held in 4:
      s[lane, held] = {zero}
    mma lane (r, n, k in {k}): s[lane] += a[r, k]:{a} * b[n, k]:{b}
    unroll held in 4:
      c[(lane) // 4 + (held) // 2*8, (lane) % 4*2 + (held) % 2] = s[lane, held]:{c}
"""
KINDS = [
    (F16, F16, 16), (F16, F16, 8), (F32, F32, 8), (F32, F32, 4), (I8, I8, 32), (I8, I8, 16),
    (U8, U8, 32), (U8, I8, 32), (I8, U8, 16),
]  # fmt: skip
NAMES = {"f16": "f16", "f32": "tf32", "i8": "s8", "u8": "u8"}


def _warp(a: DType, b: DType, k: int) -> str:
    c = mma.sum_type(a, b)
    assert c is not None
    zero = f"0.0:{c}" if c.is_float else f"0:{c}"
    return WARP.format(a=a, b=b, c=c, k=k, zero=zero)


@pytest.mark.parametrize(("a", "b", "k"), KINDS)
def test_one_product(a: DType, b: DType, k: int) -> None:
    """Text, verifier, both interpreters, code: for every type and length that tensor cores have."""
    kernel = parse(_warp(a, b, k))
    verify(kernel)
    assert parse(to_text(kernel)) == kernel
    x, y = random(a.numpy, 16, k), random(b.numpy, 8, k)
    total = mma.sum_type(a, b)
    assert total is not None
    results = []
    for run in (interp.run, simt.run):
        c = np.zeros((16, 8), total.numpy)
        run(kernel, {"a": x, "b": y, "c": c})
        results.append(c)
    if a is F32:
        x, y = mma.rounded_tf32(x), mma.rounded_tf32(y)
    wanted = x.astype(np.float64) @ y.astype(np.float64).T
    np.testing.assert_array_equal(results[0], results[1])
    np.testing.assert_allclose(results[0], wanted, rtol=1e-6, atol=1e-6)
    program = _program_of(_warp(a, b, k))
    ptx = gpu_assembly(program)
    sums = "f32.{}.{}.f32" if total is F32 else "s32.{}.{}.s32"
    form = sums.format(NAMES[str(a)], NAMES[str(b)])
    assert f"mma.sync.aligned.m16n8k{k}.row.col.{form}" in ptx
    if a is F32:
        assert "cvt.rna.tf32.f32" in ptx


def _program_of(text: str) -> Program:
    """A program with the kernel of a text, for its code."""
    model = build(product(np.float32, 8, 8, 8), SM80)
    kernel = replace(parse(text), name=model.kernels[0].name)
    return replace(model, kernels=(kernel,))


REFUSED = {
    "a `mma` by": ("mma lane (", "mma 0 ("),
    "innermost 32 threads": ("thread lane in 32:", "thread lane in 16:"),
    "three new names": ("(r, n, k in 16)", "(r, r, k in 16)"),
    "adds up 4 products": ("k in 16)", "k in 4)"),
    "indexed by row and k": ("a[r, k]", "a[n, k]"),
    "does not hold 4 sums": ("s: f32[32, 4]", "s: f32[32, 5]"),
}


@pytest.mark.parametrize("why", REFUSED)
def test_what_is_no_product_of_a_warp_is_refused(why: str) -> None:
    text = _warp(F16, F16, 16)
    verify(parse(text))
    with pytest.raises(IRError, match=why):
        verify(parse(text.replace(*REFUSED[why])))


@pytest.mark.parametrize(
    "around", ["if (index(lane):i32 < 16:i32):", "for i in lane:", "vector i in 4:"]
)
def test_a_warp_that_takes_two_ways_is_refused(around: str) -> None:
    text = _warp(F16, F16, 16)
    lines = text.splitlines()
    at = next(i for i, s in enumerate(lines) if s.strip().startswith("mma"))
    lines[at : at + 1] = [f"    {around}", "  " + lines[at]]
    with pytest.raises(IRError, match="all of them"):
        verify(parse("\n".join(lines) + "\n"))


def test_a_race_with_tensor_cores_is_found() -> None:
    """A warp reads what its own threads have just written, without waiting."""
    race = parse("""\
kernel warp(a: f16[16, 16], b: f16[8, 16], out c: f32[32, 4])
  block one in 1:
    alloc t: f16[16, 16] in shared
    alloc s: f32[32, 4] in register
    thread lane in 32:
      unroll held in 4:
        s[lane, held] = 0.0:f32
      unroll j in 8:
        t[(lane) // 2, (lane) % 2*8 + j] = a[(lane) // 2, (lane) % 2*8 + j]:f16
      mma lane (r, n, k in 16): s[lane] += t[r, k]:f16 * b[n, k]:f16
      unroll held in 4:
        c[lane, held] = s[lane, held]:f32
""")
    verify(race)
    arrays = {"a": random(np.float16, 16, 16), "b": random(np.float16, 8, 16)}
    with pytest.raises(IRError, match="race"):
        simt.run(race, {**arrays, "c": np.zeros((32, 4), np.float32)})


# ---------------------------------------------------------------- operators


def _references(g: Graph, inputs: list[Array]) -> Array:
    """The graph's output by the operators' own NumPy semantics."""
    known: dict[str, Array] = {**dict(zip(g.inputs, inputs, strict=True)), **g.constants}
    for node in g.nodes:
        made = operator(node.op).reference([known[i] for i in node.inputs], node.attrs)
        known.update(zip(node.outputs, made, strict=True))
    return known[g.outputs[0]]


@pytest.mark.parametrize("name", OPERATORS)
def test_operators(name: str) -> None:
    """In the interpreter of threads: the reference's results, races refused; tensor cores in the code."""
    graph, target, error = OPERATORS[name]
    program = build(graph, target, name="m")
    inputs = [random(t.type.dtype.numpy, *t.type.shape) for t in program.inputs]
    there = Emulator(program)
    there.set_inputs(inputs)
    (got,) = there.run()
    wanted = _references(graph, inputs).astype(np.float64)
    worst = float(np.abs(got.astype(np.float64) - wanted).max())
    assert worst <= error * float(np.abs(wanted).max())
    assert any(isinstance(s, Mma) for k in program.kernels for s in walk(k.body))
    assert "mma.sync.aligned" in gpu_assembly(program)


@pytest.mark.skipif(find_ptxas() is None, reason="no ptxas: pip install 'tilewright[cuda]'")
@pytest.mark.parametrize("sm", ["cuda-sm80", "cuda-sm87", "cuda-sm90"])
@pytest.mark.parametrize("name", ["matmul-f16", "conv-f16-stride", "conv-i8-requantised"])
def test_assembles(name: str, sm: str) -> None:
    """No spills, no local memory: fragments and sums stay in registers."""
    for r in generate_gpu(build(OPERATORS[name][0], sm, name="m")).reports:
        assert (r.spill_bytes, r.stack_bytes) == (0, 0), r


@pytest.mark.skipif(find_ptxas() is None, reason="no ptxas: pip install 'tilewright[cuda]'")
def test_tf32_assembles() -> None:
    for r in generate_gpu(build(OPERATORS["conv-tf32"][0], TF32, name="m")).reports:
        assert (r.spill_bytes, r.stack_bytes) == (0, 0), r


@pytest.mark.parametrize("target", ["cuda-sm80", "cuda-sm90"])
def test_f32_is_not_rounded_unasked(target: str) -> None:
    program = build(product(np.float32, 64, 64, 64), target, name="m")
    assert not any(isinstance(s, Mma) for k in program.kernels for s in walk(k.body))


@pytest.mark.parametrize("name", ["cuda-sm75+tf32", "x86-64-v3+tf32"])
def test_tf32_wants_tensor_cores_that_take_it(name: str) -> None:
    with pytest.raises(TargetError, match=r"leave out `\+tf32`"):
        load_target(name)


def test_tf32_is_a_target_of_its_own() -> None:
    """Its code is another one, so logs and artifacts must tell it apart."""
    assert TF32.name == "cuda-sm80+tf32" and target_hash(TF32) != target_hash(SM80)
    assert load_target("cuda-sm90+tf32").gpu != load_target("cuda-sm90").gpu


def test_registers_are_filled_by_whole_words() -> None:
    """Packed weights and rows of the sum lie side by side: no register is put together from pieces."""
    for name in ("matmul-f16", "conv-f16", "conv-i8"):
        graph, target, _ = OPERATORS[name]
        ptx = gpu_assembly(build(graph, target, name="m"))
        inside = ptx[ptx.rindex(".visible .entry") :]
        assert "ld.shared.b16" not in inside and "ld.shared.b8" not in inside
        assert "ld.shared.u8" not in inside and "prmt" not in inside.split("mma.sync")[1]


def test_lanes_by_hand() -> None:
    """Lane 5 of 32 holds rows 1 and 9, columns 2 and 3."""
    found = [mma.position(ix(5), Ix(i)) for i in range(mma.HELD)]
    assert [(evaluate(r, {}), evaluate(c, {})) for r, c in found] == [
        (1, 2),
        (1, 3),
        (9, 2),
        (9, 3),
    ]
