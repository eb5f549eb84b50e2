"""How much memory compiled models take: arenas against the lower bound, processes against what they must hold."""

from __future__ import annotations

import random
import shutil
import subprocess
from pathlib import Path

import pytest

import tilewright
from tilewright.bench.zoo import ZooError, fetch, suite, zoo
from tilewright.graph.plan import Allocation, plan_memory
from tilewright.pipeline import build

DATA = Path(__file__).resolve().parent / "data"
#: The arena may be this much larger than the largest sum of values alive at the same time.
MOST = 1.2
#: What a process may take beyond weights, arena, inputs and outputs: code, C library, stack.
OVERHEAD = 4 << 20

PROGRAM = """\
#include "m.h"
#include <stdio.h>
#include <string.h>
static _Alignas(M_ARENA_ALIGN) unsigned char arena[M_ARENA_BYTES];
static m_input_0_t in[M_INPUT_0_ELEMENTS];
static m_output_0_t out[M_OUTPUT_0_ELEMENTS];
int main(void) {
  const void *inputs[] = {in};
  void *outputs[] = {out};
  for (int i = 0; i < 3; i++)
    if (m_run(inputs, outputs, arena) != 0) return 1;
  char line[256];
  FILE *status = fopen("/proc/self/status", "r");
  while (fgets(line, sizeof line, status))
    if (!strncmp(line, "VmHWM:", 6)) fputs(line + 6, stdout);
  return 0;
}
"""


@pytest.mark.parametrize("seed", range(24))
def test_plans_of_made_up_models(seed: int) -> None:
    """Sizes and lives as models have them, and worse."""
    r = random.Random(seed)
    n = r.choice([10, 40, 100])
    size = [
        lambda: r.randint(1, 1 << 20),
        lambda: r.choice([1, 2, 4, 8, 16]) << 16,
        lambda: int(64 * 2 ** r.uniform(0, 14)),
        lambda: r.randint(1, 100) << 10,
    ][seed % 4]
    life = [lambda: int(r.expovariate(0.3)) + 1, lambda: r.choice([1, 1, 2, 3, n // 2])][seed % 2]
    wanted = [Allocation(f"v{i}", size(), i, i + life()) for i in range(n)]
    plan = plan_memory(wanted)
    assert plan.lower_bound <= plan.size <= MOST * plan.lower_bound
    for i, a in enumerate(wanted):
        assert plan.offsets[a.name] + a.size <= plan.size
        for b in wanted[:i]:
            apart = a.start > b.end or b.start > a.end
            at, other = plan.offsets[a.name], plan.offsets[b.name]
            assert apart or at >= other + b.size or other >= at + a.size


@pytest.mark.parametrize("path", sorted(DATA.glob("mlperftiny_*")), ids=lambda p: p.name)
def test_arena_of_small_models(path: Path) -> None:
    program = build(path, "x86-64-v3")
    assert 0 < program.arena_bytes <= MOST * program.arena_lower_bound


@pytest.mark.slow
@pytest.mark.parametrize("name", [m.name for s in ("edge", "int8") for m in suite(s)])
def test_arena_of_the_zoo(name: str) -> None:
    try:
        path = fetch(zoo()[name])
    except ZooError as err:
        pytest.skip(str(err))
    program = build(path, "x86-64-v4", zoo()[name].shapes)
    assert 0 < program.arena_bytes <= MOST * program.arena_lower_bound


@pytest.mark.skipif(shutil.which("gcc") is None, reason="no gcc on the PATH")
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no /proc")
@pytest.mark.parametrize(
    "name",
    [
        "mlperftiny_resnet8_ic_fp32_randw",
        "mlperftiny_mobilenetv1_025_vww_fp32_randw",
        pytest.param("onnx_light_resnet50", marks=pytest.mark.slow),
    ],
)
def test_resident_memory_of_a_process(name: str, tmp_path: Path) -> None:
    """Weights lie in read-only data and are not copied; nothing is allocated."""
    try:
        path = fetch(zoo()[name])
    except ZooError as err:
        pytest.skip(str(err))
    model = tilewright.compile(path)
    assert isinstance(model, tilewright.CompiledModel)
    written = model.save(tmp_path)
    made = written.directory / f"{model.name}.o"
    source = PROGRAM.replace("m_", f"{model.name}_").replace("M_", f"{model.name.upper()}_")
    (tmp_path / "main.c").write_text(source.replace('"m.h"', f'"{model.name}.h"'))
    subprocess.run(["gcc", "-O2", "main.c", made.name, "-o", "main"], cwd=tmp_path, check=True)
    done = subprocess.run([tmp_path / "main"], check=True, capture_output=True, text=True)
    resident = int(done.stdout.split()[0]) << 10
    spec = model.spec
    assert resident < spec.weights_bytes + spec.arena_bytes + OVERHEAD
