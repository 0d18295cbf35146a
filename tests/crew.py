"""`eventmux serve --workers` as a user starts it, and the processes that it is made of."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import ssl
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
from prometheus_client.parser import text_string_to_metric_families as parse_text

from eventsource import PATIENCE, TRUST, EventSource, wait_until
from redis_server import Redis
from service import Client, Process, serve_process

MANY = 100  # streams, of which every worker has some

# `numbers` goes on where it was. What has closed stands in the file `closed`: a generator takes its time for that,
# which one does not have that is hurried.
PLUGIN = """
import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path
from eventmux import Context, Event, source

class Note(Event):
    n: int
    pid: int

async def close(name: str) -> None:
    await asyncio.sleep(0.8)
    with Path("closed").open("a") as file:
        file.write(f"{name} {os.getpid()}\\n")

@source(shared=True)
async def numbers(ctx: Context) -> AsyncIterator[Note]:
    n = ctx.last.n if ctx.last else 0
    try:
        while True:
            n += 1
            yield Note(n=n, pid=os.getpid())
            await asyncio.sleep(0.03)
    finally:
        await close("numbers")

@source
async def own() -> AsyncIterator[Note]:
    n = 0
    try:
        while True:
            n += 1
            yield Note(n=n, pid=os.getpid())
            await asyncio.sleep(0.03)
    finally:
        await close("own")
"""


class Crew(Client):
    """The service, which serves. `directory`: where its sockets are. `trust`: whose certificates are believed."""

    def __init__(self, process: Process, directory: Path, trust: ssl.SSLContext) -> None:
        wait_until(lambda: "worker 0 serves" in process.log.read_text(), "the first worker, which the others wait for")
        super().__init__(process.wait_for_url())
        self.process = process
        self.directory = directory
        self._trust = trust

    def open(self, path: str, **options: object) -> EventSource:
        return super().open(path, client={"verify": self._trust}, **options)

    def request(self, method: str, path: str, **options: object) -> httpx2.Response:
        return super().request(method, path, verify=self._trust, **options)

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    @property
    def pids(self) -> dict[int, int]:
        """Of the workers that are there now, by their numbers."""
        found = {}
        for pid in children(self.process.process.pid):
            with contextlib.suppress(OSError):
                environ = Path(f"/proc/{pid}/environ").read_bytes().decode()
                found |= {int(number): pid for number in re.findall(r"\bEVENTMUX_WORKER=(\d+)", environ)}
        return found

    @property
    def log(self) -> str:
        return self.process.log.read_text()

    def readiness(self) -> tuple[int, list[str]]:
        """The status, and what is said of each worker."""
        answer = self.get("/readyz")
        told = answer.json()["workers"]
        assert [worker["worker"] for worker in told] == list(range(len(told)))
        return answer.status_code, [worker["status"] for worker in told]

    def metrics(self, **options: Any) -> dict[str, dict[str, float]]:
        """By their names; each by the worker, and by the source where there is one: `0`, `0 numbers`."""
        found: dict[str, dict[str, float]] = {}
        for family in parse_text(self.get("/metrics", **options).text):
            for sample in family.samples:
                labels = [sample.labels["worker"], *filter(None, [sample.labels.get("source")])]
                found.setdefault(sample.name, {})[" ".join(labels)] = sample.value
        return found

    def streams_on_all(self, stack: contextlib.ExitStack, path: str, **options: Any) -> list[EventSource]:
        """So many streams that every worker has one."""
        streams: list[EventSource] = []
        while not all(self.metrics(**options)["eventmux_streams_open"].values()):
            assert len(streams) < MANY, "a worker gets no stream"
            streams.append(stack.enter_context(self.open(path, **options)))
        return streams

    def send(self, sig: int) -> None:
        self.process.process.send_signal(sig)

    def send_all(self, sig: int) -> None:
        """To the workers."""
        for pid in self.pids.values():
            os.kill(pid, sig)

    def wait(self) -> int:
        """Until all is over: the exit code."""
        code = self.process.process.wait(2 * PATIENCE)
        assert "Traceback" not in self.log
        return code


@contextlib.contextmanager
def crew(
    place: Path, *words: str, trust: ssl.SSLContext = TRUST, prepare: Callable[[], None] | None = None
) -> Iterator[Crew]:
    """On leaving, all are killed that are still there. `prepare` is called in the parent, before it is eventmux."""
    directory = Path(tempfile.mkdtemp(prefix="crew-"))  # pytest's has too long a name for sockets
    try:
        with serve_process(
            "--workers", "2", *words, cwd=place, environ={"TMPDIR": str(directory)}, prepare=prepare
        ) as process:
            yield Crew(process, directory, trust)
    finally:
        for pid in _of(directory):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        shutil.rmtree(directory)


def _of(directory: Path) -> Iterator[int]:
    """Processes that were told of it, whoever their parent is now."""
    for environ in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if bytes(directory) in environ.read_bytes():
                yield int(environ.parent.name)


def settle(place: Path, redis: Redis, *, server: str = "", store: str = "", more: str = "") -> None:
    """A plugins.yaml with the sources of PLUGIN."""
    (place / "local").mkdir(exist_ok=True)
    (place / "local" / "plugin.py").write_text(PLUGIN)
    (place / "plugins.yaml").write_text(
        "plugins: {dir: local}\n"
        "sources: {numbers: {linger: 30}, own: {linger: 30}}\n"
        f"server: {{retry: 100, spread: 1, {server}}}\n"
        f"store: {{url: '{redis.url}', prefix: '{redis.prefix}', lease: 1, {store}}}\n" + more
    )


def closed(place: Path) -> set[tuple[str, int]]:
    """Sources whose generators have closed, each with the pid of its worker."""
    file = place / "closed"
    lines = file.read_text().splitlines() if file.exists() else []
    return {(name, int(pid)) for name, _, pid in (line.partition(" ") for line in lines)}


def children(pid: int) -> list[int]:
    """None, of one that is over."""
    try:
        return [int(found) for found in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []


def is_there(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
