"""GPU code: barriers, races, wide accesses, dot products, from hand-written loop IR."""

from __future__ import annotations

import re

import numpy as np
import pytest
from gpu_cases import PRODUCT

from tilewright.codegen.cuda import emit_cuda, launch_of
from tilewright.codegen.llvm import to_assembly
from tilewright.codegen.ptxas import assemble, find_ptxas, occupancy
from tilewright.errors import IRError
from tilewright.loop import simt
from tilewright.loop.barriers import barriers
from tilewright.loop.ir import For, Kernel, Stmt
from tilewright.loop.parse import parse
from tilewright.loop.rewrite import walk
from tilewright.schedule.target import load_target

TARGET = load_target("cuda-sm80")


def _ptx(kernel: Kernel, align: int = 16) -> str:
    aligned = {kernel.name: [align] * len(kernel.params)}
    return to_assembly(emit_cuda([kernel], TARGET, aligned), TARGET)


def _waiting(kernel: Kernel) -> list[str]:
    """Variables of the loops that have a barrier before them."""
    found = barriers(kernel)
    stmts: list[Stmt] = [s for s in walk(kernel.body) if id(s) in found]
    return [s.var for s in stmts if isinstance(s, For)]


def test_product_in_the_interpreter() -> None:
    kernel = parse(PRODUCT)
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal((32, 32)).astype(np.float32) for _ in range(2))
    c = np.zeros((32, 32), np.float32)
    simt.run(kernel, {"a": a, "b": b, "c": c})
    np.testing.assert_allclose(c, a @ b, rtol=1e-5, atol=1e-5)


def test_product_waits_twice_per_piece() -> None:
    """Before a tile is filled again and before it is read; steps of filling touch different elements."""
    kernel = parse(PRODUCT)
    assert _waiting(kernel) == ["a_at", "mt"]


def test_product_as_ptx() -> None:
    kernel = parse(PRODUCT)
    launch = launch_of(kernel)
    assert (launch.blocks, launch.threads, launch.shared_bytes) == (4, 64, 2048)
    ptx = _ptx(kernel)
    assert ".maxntid 64" in ptx and ".visible .entry product" in ptx
    assert ptx.count("fma.rn.f32") == 4 and ".local" not in ptx
    assert "ld.shared.v2.b32" in ptx and "st.global.v2.b32" in ptx
    assert len(re.findall(r"bar\.sync", ptx)) == 2
    assert "st.global.v2" not in _ptx(kernel, align=4), "not proved, yet used"
    gpu = TARGET.gpu
    assert gpu is not None
    if find_ptxas() is not None:
        made = assemble(ptx, gpu, {"product": launch})
        assert made is not None and made.kernels[0].spill_bytes == 0
        assert made.kernels[0].shared_bytes == 2048


TWO_NESTS = """\
kernel k(a: f32[64], out c: f32[64])
  block b in 1:
    alloc s: f32[64] in shared
    thread t in 64:
      s[t] = a[t]:f32
    thread u in {count}:
      c[u] = s[{index}]:f32
"""


def test_one_barrier_between_nests() -> None:
    kernel = parse(TWO_NESTS.format(count=64, index="63 - u"))
    assert _waiting(kernel) == ["u"]
    assert _ptx(kernel).count("bar.sync") == 1


def test_a_narrow_nest_is_guarded_and_its_barrier_is_not() -> None:
    ptx = _ptx(parse(TWO_NESTS.format(count=10, index="u")))
    before, after = ptx.split("bar.sync")
    assert "bra" not in before and "setp" in after


def test_iterations_that_meet_wait() -> None:
    """Each turn reads what a neighbour wrote in the turn before."""
    kernel = parse("""\
kernel k(a: f32[64], out c: f32[64])
  block b in 1:
    alloc s: f32[64] in shared
    thread t in 64:
      s[t] = a[t]:f32
    for i in 3:
      thread u in 64:
        c[u] = s[63 - u]:f32
      thread v in 64:
        s[v] = c[v]:f32
""")
    assert _waiting(kernel) == ["u", "v"]


def test_races_are_found() -> None:
    race = parse("""\
kernel k(a: f32[64], out c: f32[64])
  block b in 1:
    alloc s: f32[64] in shared
    thread t in 64:
      s[t] = a[t]:f32
      c[t] = s[63 - t]:f32
""")
    with pytest.raises(IRError, match="k: "):
        simt.run(race, {"a": np.ones(64, np.float32), "c": np.zeros(64, np.float32)})


@pytest.mark.parametrize("missing", [0, 1])
def test_a_barrier_that_code_lacks_is_a_race(missing: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter's threads wait where generated code has them wait, and nowhere else."""
    kernel = parse(PRODUCT)
    found = barriers(kernel)
    loops = [s for s in walk(kernel.body) if id(s) in found]
    monkeypatch.setattr(simt, "barriers", lambda k: found - {id(loops[missing])})
    arrays = {n: np.ones((32, 32), np.float32) for n in ("a", "b", "c")}
    with pytest.raises(IRError, match="a race"):
        simt.run(kernel, arrays)


def test_what_no_thread_executes_is_done_once() -> None:
    """A sum beside a nest of threads: the first thread alone adds it up, and the others see it."""
    kernel = parse("""\
kernel k(a: f32[64], out c: f32[64])
  block b in 1:
    alloc s: f32[1] in shared
    s[0] = 0.0:f32
    for i in 64:
      s[0] = (s[0]:f32 + a[i]:f32)
    thread u in 64:
      c[u] = s[0]:f32
""")
    c = np.zeros(64, np.float32)
    simt.run(kernel, {"a": np.arange(64, dtype=np.float32), "c": c})
    assert (c == 2016).all()
    before, after = _ptx(kernel).split("bar.sync")
    assert re.search(r"setp\.\w+\.\w+\s+%p1, %r\d+, 0", before), "not guarded"
    assert "add.rn.f32" in before and "add.rn.f32" not in after


def test_scratch_of_one_thread_is_not_read_by_others() -> None:
    """Neither by another thread nor by all of them together."""
    text = """\
kernel k(a: f32[64], out c: f32[64])
  block b in 1:
    alloc s: f32[64] in register
    thread t in 64:
      s[t] = a[t]:f32
    thread u in 64:
      c[u] = s[{index}]:f32
"""
    arrays = {n: np.ones(64, np.float32) for n in ("a", "c")}
    simt.run(parse(text.format(index="u")), arrays)
    with pytest.raises(IRError, match="has not written it itself"):
        simt.run(parse(text.format(index="63 - u")), arrays)


def test_all_threads_compute_from_what_all_have() -> None:
    """A name that threads use is computed by each of them: not from scratch that the first one wrote."""
    kernel = parse("""\
kernel k(a: f32[64], out c: f32[64])
  block b in 1:
    alloc s: f32[1] in register
    s[0] = a[0]:f32
    let v = s[0]:f32
    thread u in 64:
      c[u] = v:f32
""")
    arrays = {n: np.ones(64, np.float32) for n in ("a", "c")}
    with pytest.raises(IRError, match="each has its own"):
        simt.run(kernel, arrays)
    with pytest.raises(IRError, match="each has its own"):
        _ptx(kernel)


def test_a_name_read_from_memory_may_meet() -> None:
    """Iterations touch elements that nobody can tell apart: they wait."""
    kernel = parse("""\
kernel k(a: f32[4], where: i64[64], out c: f32[64])
  block b in 1:
    alloc s: f32[128] in shared
    for i in 4:
      thread t in 64:
        let at in 0..63 = where[t]:i64
        s[at + i] = a[i]:f32
    thread u in 64:
      c[u] = s[u]:f32
""")
    assert _waiting(kernel) == ["t", "u"]


def test_blocks_may_not_meet() -> None:
    race = parse("""\
kernel k(a: f32[64], out c: f32[1])
  block b in 2:
    c[0] = a[b]:f32
""")
    with pytest.raises(IRError, match="k: "):
        simt.run(race, {"a": np.ones(64, np.float32), "c": np.zeros(1, np.float32)})


@pytest.mark.parametrize(("align", "count"), [(4, 2), (1, 0)])
def test_dot_products_of_words(align: int, count: int) -> None:
    """dp4a where words are known to lie at multiples of four bytes, spelled out elsewhere."""
    kernel = parse("""\
kernel k(a: i8[8], const b: u8[64, 8], out c: i32[64])
  thread t in 64:
    c[t] = dot(k in 8: cast(a[k]:i8):i32, cast(b[t, k]:u8):i32, 7:i32)
""")
    assert _ptx(kernel, align).count("dp4a.s32.u32") == count


def test_occupancy() -> None:
    """By hand: 32 blocks of 64 threads fill 2048; 128 registers a thread leave room for 8 blocks of 32."""
    gpu = TARGET.gpu
    assert gpu is not None
    launch = launch_of(parse(PRODUCT))
    assert occupancy(gpu, launch, 32) == 1.0
    assert occupancy(gpu, launch, 128) == 0.25
