"""The service as a process that is killed, and started again at the same address."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path

from service import Process, serve_process

LOWEST, HIGHEST = 20_000, 32_000  # ports


class RestartableService:
    """`eventmux serve` on one port for as long as a test lasts."""

    def __init__(self, config: Path, environ: Mapping[str, str]) -> None:
        self.url = ""
        self._port = free_port()
        self._config = config
        self._environ = environ
        self._processes = contextlib.ExitStack()
        self._process: Process

    def start(self) -> None:
        serving = serve_process(
            "--config", str(self._config), "--port", str(self._port), cwd=self._config.parent, environ=self._environ
        )
        self._process = self._processes.enter_context(serving)
        self.url = self._process.wait_for_url()

    def kill(self) -> None:
        """SIGKILL: nothing is drained, nothing is said, the kernel closes the connections."""
        assert self._process.stop(signal.SIGKILL) == -signal.SIGKILL

    def close(self) -> None:
        self._processes.close()


@contextlib.contextmanager
def restartable(config: str, path: Path, environ: Mapping[str, str] | None = None) -> Iterator[RestartableService]:
    """The service as a process, from a plugins.yaml with this text; it runs."""
    file = path / "plugins.yaml"
    file.write_text(config, "utf-8")
    service = RestartableService(file, environ or {})
    try:
        service.start()
        yield service
    finally:
        service.close()


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
    raise AssertionError("no free port")
