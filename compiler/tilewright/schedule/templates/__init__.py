"""Analytic default schedules, shared by operator files of one kind.

In: an unscheduled kernel and a `Target`. Out: a trace. Invariant: every number is derived from the
target file and the kernel's own extents; a default is always legal, whatever the shapes.
"""

from tilewright.schedule.templates.channelwise import channelwise, depthwise
from tilewright.schedule.templates.contraction import contraction, convolution, phases, product
from tilewright.schedule.templates.injective import injective
from tilewright.schedule.templates.rows import column_reduction, passes, reduction, row_reduction

__all__ = [
    "channelwise",
    "column_reduction",
    "contraction",
    "convolution",
    "depthwise",
    "injective",
    "passes",
    "phases",
    "product",
    "reduction",
    "row_reduction",
]
