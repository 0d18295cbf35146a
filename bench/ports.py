"""Ports for servers that come and go."""

from __future__ import annotations

import contextlib
import os
import random
import socket

LOWEST, HIGHEST = 20_000, 32_000


def free_port() -> int:
    """One that the kernel gives to nobody else while the service is down: Linux takes those for outgoing connections
    from 32768 on, and who tries again and again to connect to such a port may end up connected to itself. Each process
    of a test run has ports of its own, so that one is not taken while another's service is down.
    """
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    for port in random.sample(range(LOWEST + worker, HIGHEST, workers), 100):
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
    raise OSError(f"no free port from {LOWEST} to {HIGHEST}")
