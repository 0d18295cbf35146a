"""The service as a process that is killed, and started again at the same address."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator, Mapping
from pathlib import Path

from bench.ports import LOWEST, free_port
from service import Process, serve_process

__all__ = ["LOWEST", "RestartableService", "free_port", "restartable"]


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
