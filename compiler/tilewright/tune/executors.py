"""Other machines: a Dask cluster as an executor (extra `dask`).

In: a scheduler's address. Out: an executor with the interface of `concurrent.futures`.
Invariant: a job that was under way on a worker that died is run again elsewhere; candidates run in a
process of their own on the worker (see `workers.isolated`), so they cannot end it.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Any

from tilewright.errors import ToolchainError


def dask_executor(address: str, resource: str = "") -> tuple[Executor, int, Callable[[], None]]:
    """An executor on the cluster at `address`, how many jobs it runs at a time, and how to close it.

    With `resource` a job takes one unit of that resource of its worker (`dask worker --resources
    "BOARD=1"`), so that a device measures one job at a time; without, a job takes one thread.
    """
    if importlib.util.find_spec("distributed") is None:
        raise ToolchainError("Dask is not installed: pip install 'tilewright[dask]'")
    distributed: Any = importlib.import_module("distributed")
    try:
        client = distributed.Client(address, timeout="5s", set_as_default=False)
    except (OSError, ValueError, TimeoutError) as err:
        raise ToolchainError(f"no Dask scheduler answers at {address}: {err}") from None
    executor, slots = client_executor(client, resource)
    if not slots:
        client.close()
        what = f"with the resource {resource}" if resource else "at all"
        raise ToolchainError(f"the Dask cluster at {address} has no workers {what}")
    return executor, slots, client.close


def client_executor(client: Any, resource: str = "") -> tuple[Executor, int]:
    """An executor on an open Dask client, and how many jobs it can run at a time."""
    workers = client.scheduler_info(n_workers=-1)["workers"].values()
    if resource:
        slots = int(sum(w.get("resources", {}).get(resource, 0) for w in workers))
        wanted: dict[str, Any] = {"resources": {resource: 1}}
    else:
        slots, wanted = len(workers), {}
    executor: Executor = client.get_executor(pure=False, retries=2, **wanted)
    return executor, slots
