"""What tests know of the ssh server that they start on the loopback interface."""

from __future__ import annotations

import socket
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Server:
    """A running server: its address, and the directory with its files."""

    url: str
    folder: Path


def answers(port: int, daemon: subprocess.Popen[bytes]) -> bool:
    """Wait until the daemon listens; False if it ends instead."""
    for _ in range(100):
        if daemon.poll() is not None:
            return False
        with socket.socket() as s:
            if s.connect_ex(("127.0.0.1", port)) == 0:
                return True
        time.sleep(0.1)
    return False
