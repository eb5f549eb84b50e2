"""Where tuning logs lie.

In: the environment. Out: folders, each with one folder per target. Imports no part of the compiler.
"""

from __future__ import annotations

import os
from importlib import resources
from pathlib import Path


def user_folder() -> Path:
    """Where this user's logs go: $TILEWRIGHT_LOGS, or the cache directory."""
    given = os.environ.get("TILEWRIGHT_LOGS")
    if given:
        return Path(given)
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "tilewright" / "tuning_logs"


def shipped_folder() -> Path:
    """The logs that come with the package."""
    return Path(str(resources.files("tilewright.tuning_logs")))
