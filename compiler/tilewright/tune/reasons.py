"""Why a kernel has its schedule, in words that reports tell apart.

In: nothing. Out: the default's words, and the test for them. Imports nothing: reports from a manifest use it.
"""

from __future__ import annotations

DEFAULT_RULE = "default rule"


def is_default(reason: str) -> bool:
    """Whether `reason` says that no tuning log had anything."""
    return reason.startswith("default")
