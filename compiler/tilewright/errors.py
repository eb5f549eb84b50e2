"""Every error tilewright raises on purpose.

An error carries *where* (node, file, line of IR), *why* and *what to do next* in one sentence; the
command line prints exactly that sentence and exits with code 1. Anything else that escapes is a bug.
"""

from __future__ import annotations


class TilewrightError(Exception):
    """Base class: a clear one-sentence message, no traceback on the command line."""


class ModelError(TilewrightError):
    """The model file is broken, unsupported or inconsistent (names the node)."""


class UnsupportedError(ModelError):
    """One or more nodes cannot be compiled; `problems` lists every one of them."""

    def __init__(self, problems: list[str]) -> None:
        self.problems = list(problems)
        more = (
            f" (and {len(problems) - 1} more: run `tilewright check`)" if len(problems) > 1 else ""
        )
        super().__init__(f"{problems[0]}{more}")


class IRError(TilewrightError):
    """An IR is malformed: raised by the verifiers and the text parsers."""


class ScheduleError(TilewrightError):
    """A schedule primitive was refused because applying it would not be legal."""


class TargetError(TilewrightError):
    """Unknown target, or the target cannot do what was asked of it."""


class ToolchainError(TilewrightError):
    """A compiler, linker or emulator is missing or failed."""


class AccessError(TilewrightError, RuntimeError):
    """Checked code met an index outside its buffer, and stopped before the access."""


class ArtifactError(TilewrightError):
    """A compiled artifact is damaged, or was built for another machine."""
