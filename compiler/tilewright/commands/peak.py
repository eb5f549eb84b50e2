"""`tilewright peak`: this machine's multiply-add roof and how near our matrix product comes."""

from __future__ import annotations

import typer
from rich.table import Table

from tilewright.bench.roofline import bandwidth, fma_peak, matmul_rate
from tilewright.commands._common import TargetName, console
from tilewright.pipeline import resolve_target

NAME = "peak"

_SHAPES = ((512, 512, 512), (196, 512, 512), (49, 512, 2048), (3136, 64, 64), (128, 1536, 384))


def command(target: TargetName = "host", rounds: int = typer.Option(3, min=1)) -> None:
    """Measure one core: multiply-adds on registers, cache bandwidth, our packed matrix product."""
    machine = resolve_target(target)
    peak, rates = 0.0, dict.fromkeys(_SHAPES, 0.0)
    for _ in range(rounds):  # interleaved: a disturbance hits roof and kernels alike
        peak = max(peak, fma_peak(machine))
        for shape in _SHAPES:
            rates[shape] = max(rates[shape], matmul_rate(machine, *shape))
    table = Table(title=f"{machine.name}, one core", title_justify="left")
    table.add_column("kernel")
    table.add_column("GFLOP/s", justify="right")
    table.add_column("of the peak", justify="right")
    table.add_row("multiply-adds on registers", f"{peak / 1e9:.1f}", "100 %")
    for (m, n, k), rate in rates.items():
        table.add_row(f"matmul {m} x {n} x {k}", f"{rate / 1e9:.1f}", f"{rate / peak:.1%}")
    console.print(table)
    console.print(f"copy in the second-level cache: {bandwidth(machine) / 1e9:.0f} GB/s")
