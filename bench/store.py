"""A Redis of a measurement's own, and what it has done. What the service keeps there is not known here."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from .ports import free_port
from .process import PATIENCE
from .redis_process import RedisProcess
from .redis_program import NAMES, program

OWN = ("info", "scan", "hget", "ping", "client|setinfo")  # commands of this module, which the service does not use


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


class Store(RedisProcess):
    """On a port of 127.0.0.1 of its own; `lines` of its configuration say more. `url`: for the service. Raises
    NoStoreError where no program is installed.
    """

    def __init__(self, path: Path, lines: Mapping[str, str]) -> None:
        found = program()
        if found is None:
            raise NoStoreError(f"no Redis: install {' or '.join(NAMES)}")
        super().__init__(found, path)
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        own = {"bind": "127.0.0.1", "port": str(self.port), "dir": str(path), "logfile": str(self.log)}
        self.write_config({**own, **lines})

    def answers(self) -> bool:
        with self.client() as client, contextlib.suppress(redis.RedisError):
            return bool(client.ping())
        return False

    @contextlib.contextmanager
    def client(self, socket_timeout: float = PATIENCE) -> Iterator[redis.Redis]:
        """One that does not try again, and that is closed afterwards."""
        client = redis.Redis(port=self.port, retry=Retry(NoBackoff(), 0), socket_timeout=socket_timeout)
        with contextlib.closing(client):
            yield client

    def version(self) -> str:
        return str(self.info("server")["redis_version"])

    def info(self, section: str) -> dict[str, Any]:
        with self.client() as client:
            return dict(client.info(section))

    def done(self) -> Done:
        """Without what is asked here."""
        cpu, stats = self.info("cpu"), self.info("stats")
        calls = {name.removeprefix("cmdstat_"): int(one["calls"]) for name, one in self.info("commandstats").items()}
        spent = float(cpu["used_cpu_user"]) + float(cpu["used_cpu_sys"])
        return Done(
            spent * 1e6,
            {name: count for name, count in calls.items() if name not in OWN},
            int(stats["total_net_output_bytes"]),
            int(stats["total_net_input_bytes"]),
        )

    def appended(self) -> int:
        """Events of all logs that there are, those that were let go too."""
        with self.client() as client:
            lasts = client.pipeline(transaction=False)
            for head in client.scan_iter("*:h", count=1000):
                lasts.hget(head, "l")
            return sum(int(last or 0) for last in lasts.execute())

    def memory(self) -> int:
        """Bytes that are in use."""
        return int(self.info("memory")["used_memory"])

    def usage(self, pattern: str) -> list[int]:
        """Bytes of each key that matches a glob pattern."""
        with self.client() as client:
            keys = list(client.scan_iter(pattern, count=1000))
            return [int(client.execute_command("MEMORY", "USAGE", key, "SAMPLES", 0)) for key in keys]


@contextlib.contextmanager
def store(folder: Path, *, core: int | None) -> Iterator[Store]:
    """It answers, on its core; it writes nothing to disk."""
    with contextlib.closing(Store(folder, {"save": '""'})) as one:
        one.start()
        if core is not None:
            os.sched_setaffinity(one.pid, {core})
        yield one
