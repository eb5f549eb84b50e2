"""Property tests of kernels, schedules, models and files, for our own tests and for users.

    from tilewright import testing
    testing.check("matmul")                      # 50 schedules of an operator, by every oracle
    @testing.prop("matmul", target="cortex-a76")  # a property of every schedule, for pytest
    def test_it(case): ...

Needs the extra `test`: pip install 'tilewright[test]'. The guide is docs/testing.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tilewright.testing.api import check, prop
    from tilewright.testing.case import Case, Failure
    from tilewright.testing.oracles import judge

__all__ = ["Case", "Failure", "check", "judge", "prop"]

#: Public name -> module that defines it: replaying a case must not need Hypothesis.
_HOME = {"check": "api", "prop": "api", "Case": "case", "Failure": "case", "judge": "oracles"}


def __getattr__(name: str) -> Any:
    import importlib

    if name not in _HOME:
        raise AttributeError(f"module {__name__} has no attribute {name}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
