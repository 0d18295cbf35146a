"""One of several replicas of a service: it is killed, frozen, ended and started again, at the same port."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .ports import free_port
from .process import PATIENCE, ROOT, Measured
from .wire import Reader, connect, receive, request


class Replica:
    """`eventmux serve` with its file and its log in `folder`; with more than one of `workers`, several processes."""

    def __init__(self, name: str, folder: Path, config: str, environ: Mapping[str, str], workers: int) -> None:
        self.name = name
        self.port = free_port()
        self.lives = 0
        self.said = ""
        self.workers = workers
        self.file = folder / f"{name}.yaml"
        self.log = folder / f"{name}.log"
        self.file.write_text(config, "utf-8")
        self._environ = {**os.environ, **environ}
        self._process: subprocess.Popen[bytes] | None = None

    async def start(self) -> None:
        """It answers when this returns."""
        command = [sys.executable, "-m", "eventmux", "serve", "--config", str(self.file), "--port", str(self.port)]
        command += ["--log-format", "json", "--workers", str(self.workers)]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(  # noqa: ASYNC220 - it returns at once
                command, cwd=ROOT, env=self._environ, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=log
            )
        self.lives += 1
        deadline = time.monotonic() + 2 * PATIENCE
        while await self.get("/healthz") is None:
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"replica {self.name} does not start: {self.log.read_text()[-2_000:]}")
            await asyncio.sleep(0.05)

    async def get(self, path: str, **headers: str) -> Any:
        """The JSON of an answer; None if there is none, and then `said` has what there was."""
        reader = Reader()
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(PATIENCE):
                connection = await connect(self.port, request(path, Connection="close", **headers))
                with connection:
                    while data := await receive(connection, PATIENCE):
                        reader.take(data)
        self.said = f"status {reader.status}, {len(reader.body)} bytes: {reader.body[:100]!r}"
        return json.loads(reader.body) if reader.is_complete and reader.status == 200 else None

    @property
    def is_up(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def serving(self) -> list[int]:
        """The processes that serve: the workers, where there are several."""
        pids = self.pids
        return pids[1:] if self.workers > 1 else pids

    @property
    def pids(self) -> list[int]:
        """The first is the one that was started."""
        if self._process is None:
            return []
        pid = self._process.pid
        with contextlib.suppress(OSError):
            return [pid, *map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())]
        return [pid]

    def measured(self) -> list[Measured]:
        return [Measured(pid) for pid in self.pids]

    async def kill(self) -> None:
        """SIGKILL, the parent first, so that it starts nobody."""
        for pid in self.pids:
            send(pid, signal.SIGKILL)
        await self.ended()

    async def end(self) -> int:
        """SIGTERM, to the parent as an operator would; its exit code, and -9 for one that did not end."""
        send(self.pids[0], signal.SIGTERM)
        return await self.ended()

    async def ended(self) -> int:
        process, self._process = self._process, None
        if process is None:
            return 0
        with contextlib.suppress(subprocess.TimeoutExpired):
            await asyncio.to_thread(process.wait, PATIENCE)
        if process.poll() is None:
            process.kill()
        return process.wait()

    def hang_up(self, config: str) -> None:
        """SIGHUP: read the file again, which is now this one."""
        self.file.write_text(config, "utf-8")
        send(self.pids[0], signal.SIGHUP)

    def close(self) -> None:
        """However it is."""
        for pid in self.pids:
            send(pid, signal.SIGKILL)
        if self._process:
            self._process.wait()


def send(pid: int, sig: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, sig)
