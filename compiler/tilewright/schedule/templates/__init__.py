"""Analytic default schedules, shared by operator files of one kind.

In: an unscheduled kernel and a `Target`. Out: a trace. Invariant: every number is derived from the
target file and the kernel's own extents; a default is always legal, whatever the shapes.
"""

from tilewright.schedule.templates.channelwise import channelwise, depthwise, depthwise_space
from tilewright.schedule.templates.contraction import (
    contraction,
    phases,
    product,
    product_space,
)
from tilewright.schedule.templates.gpu_space import gpu_space
from tilewright.schedule.templates.injective import injective, injective_space
from tilewright.schedule.templates.planes import convolution, convolution_space
from tilewright.schedule.templates.recurrence import recurrence
from tilewright.schedule.templates.rows import (
    column_reduction,
    passes,
    reduction,
    reduction_space,
    row_reduction,
    rows_space,
)

__all__ = [
    "channelwise",
    "column_reduction",
    "contraction",
    "convolution",
    "convolution_space",
    "depthwise",
    "depthwise_space",
    "gpu_space",
    "injective",
    "injective_space",
    "passes",
    "phases",
    "product",
    "product_space",
    "recurrence",
    "reduction",
    "reduction_space",
    "row_reduction",
    "rows_space",
]
