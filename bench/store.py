"""A Redis of a measurement's own: started, asked what it has done, and ended. What the service keeps there is not known
here.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import redis

from .process import end, free_port

OWN = ("info", "scan", "hget", "ping", "client|setinfo")  # commands of this module, which the service does not use
PROGRAMS = ("redis-server", "valkey-server")
PATIENCE = 10.0  # seconds for it to start, or to end


class NoStoreError(Exception):
    """There is no program that could be started; says what to install."""


@dataclass(frozen=True, slots=True)
class Done:
    """What it has done until now. `cpu_us`: as it accounts itself; `calls`: of each command, by clients and by scripts;
    `sent`, `received`: bytes.
    """

    cpu_us: float
    calls: Mapping[str, int]
    sent: int
    received: int

    def __sub__(self, before: Done) -> Done:
        calls = {name: count - before.calls.get(name, 0) for name, count in self.calls.items()}
        return Done(self.cpu_us - before.cpu_us, calls, self.sent - before.sent, self.received - before.received)


class Store:
    """One that runs. `url`: for the service."""

    def __init__(self, port: int, pid: int, client: redis.Redis) -> None:
        self.url = f"redis://127.0.0.1:{port}/0"
        self.pid = pid
        self._client = client

    @property
    def version(self) -> str:
        return str(self._info("server")["redis_version"])

    def done(self) -> Done:
        """Without what is asked here."""
        cpu, stats = self._info("cpu"), self._info("stats")
        calls = {name.removeprefix("cmdstat_"): int(one["calls"]) for name, one in self._info("commandstats").items()}
        spent = float(cpu["used_cpu_user"]) + float(cpu["used_cpu_sys"])
        return Done(
            spent * 1e6,
            {name: count for name, count in calls.items() if name not in OWN},
            int(stats["total_net_output_bytes"]),
            int(stats["total_net_input_bytes"]),
        )

    def appended(self) -> int:
        """Events of all logs that there are, those that were let go too."""
        heads = list(self._client.scan_iter("*:h", count=1000))
        lasts = self._client.pipeline(transaction=False)
        for head in heads:
            lasts.hget(head, "l")
        return sum(int(last or 0) for last in lasts.execute())

    def memory(self) -> int:
        """Bytes that are in use."""
        return int(self._info("memory")["used_memory"])

    def usage(self, pattern: str) -> list[int]:
        """Bytes of each key that matches a glob pattern."""
        keys = list(self._client.scan_iter(pattern, count=1000))
        return [int(self._client.execute_command("MEMORY", "USAGE", key, "SAMPLES", 0)) for key in keys]

    def _info(self, section: str) -> dict[str, Any]:
        return dict(self._client.info(section))


def program() -> str:
    """The machine's own, else one that a package has put beside Python. Raises NoStoreError."""
    own = str(Path(sys.executable).parent)
    places = [*os.get_exec_path(), "/usr/sbin", "/usr/local/sbin"]
    for folder in [*(place for place in places if place != own), own]:
        for name in PROGRAMS:
            if found := shutil.which(name, path=folder):
                return found
    raise NoStoreError(f"no Redis: install {' or '.join(PROGRAMS)}")


@contextlib.contextmanager
def store(folder: Path, *, core: int | None, options: tuple[str, ...] = ()) -> Iterator[Store]:
    """It answers, on 127.0.0.1 and on its core; it writes nothing to disk unless `options` say so."""
    port = free_port()
    words = ["--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder), "--save", "", *options]
    with (folder / "redis.log").open("wb") as log:
        process = subprocess.Popen([program(), *words], stdout=log, stderr=subprocess.STDOUT)
    try:
        if core is not None:
            os.sched_setaffinity(process.pid, {core})
        client = redis.Redis(port=port, socket_timeout=PATIENCE)
        _wait_until_it_answers(process, client, folder / "redis.log")
        with contextlib.closing(client):
            yield Store(port, process.pid, client)
    finally:
        end(process, PATIENCE)


def _wait_until_it_answers(process: subprocess.Popen[bytes], client: redis.Redis, log: Path) -> None:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(redis.ConnectionError):
            client.ping()
            return
        time.sleep(0.02)
    raise NoStoreError(f"Redis did not start: {log.read_text(errors='replace').strip()[-500:]}")
