"""For all tests: schedules come from the package alone, whatever this user has tuned before."""

from __future__ import annotations

import os

os.environ["TILEWRIGHT_LOGS"] = os.path.join(os.path.dirname(__file__), "no-user-logs")
