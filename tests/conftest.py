"""For all tests: schedules come from the package alone, whatever this user has tuned before, and what is
compiled comes from no cache."""

from __future__ import annotations

import os

os.environ["TILEWRIGHT_LOGS"] = os.path.join(os.path.dirname(__file__), "no-user-logs")
os.environ["TILEWRIGHT_CACHE"] = "off"
