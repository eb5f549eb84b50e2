"""Every kernel of every model of the zoo: assembled for three GPUs, and some of its blocks run.

A kernel that several models have is looked at once in a session. For each new one of `cuda-sm80`, blocks from the
first to the last run on the memory that x86-64 code of the unscheduled loops leaves before that step: in the
interpreter of threads, whose results must be those of that code, and as PTX in a machine that knows the PTX ISA, whose
results must be the interpreter's, bit by bit.
"""

from __future__ import annotations

import pytest
from gpu_helpers import checked, turns
from gpu_zoo import assembled, identities, met, ptx_of, reference

from tilewright.bench.zoo import ZooError, fetch, zoo
from tilewright.frontend.models import load_model
from tilewright.schedule.grid import one_block

MET = {name: met(name) for name in ("cuda-sm80", "cuda-sm87", "cuda-sm90")}
#: The target whose kernels are run.
RUN = "cuda-sm80"
#: Blocks of every kernel, from the first to the last one, that are run.
BLOCKS = 3


@pytest.mark.slow
@pytest.mark.parametrize("name", list(zoo()))
def test_every_kernel(name: str) -> None:
    try:
        graph = load_model(fetch(zoo()[name]), zoo()[name].shapes)
    except ZooError as err:
        pytest.skip(str(err))
    line, worst = [name], 0.0
    for target, m in MET.items():
        program = m.program(graph)
        alone = {k.name: why for k in program.kernels if (why := one_block(k))}
        assert not alone, alone
        known = identities(program)
        new = {n for n, i in known.items() if i not in m.right}
        line.append(f"{target}: {len(known)} kernels, {len(new)} new")
        if not new:
            continue
        ptx = ptx_of(program, new)
        gpu = program.target.gpu
        assert gpu is not None
        for r in assembled(program, new, ptx):
            assert 0 < r.registers <= gpu.registers_thread, r
            assert r.spill_bytes == 0 == r.stack_bytes, r
            assert 0 < r.threads <= gpu.threads_block and r.shared_bytes <= gpu.shared_block, r
            assert r.occupancy > 0, r
        for turn in turns(reference(program), program, new) if target == RUN else ():
            error = checked(turn, ptx, BLOCKS)
            assert error <= 1e-4, f"{turn.kernel.name} ({turn.step.label}): {error}"
            worst = max(worst, error)
        m.right |= {known[n] for n in new}
    print(f"{'; '.join(line)}; largest error {worst:.1e}")
