"""How workers share connections that come at once: `python -m bench.accept --redis redis://127.0.0.1:6379/0`.

All workers are stopped, the clients connect and ask for a stream, and the workers go on: as after a restart of the
service, when everybody comes back. `--at-once` is what a worker accepts in one go before it turns to something else.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from .process import raise_fd_limit

PATIENCE = 60.0  # seconds
COMMAND = (
    "from eventmux.web import acceptor; acceptor.AT_ONCE = {at_once}; "
    "from eventmux.cli import main; main(prog_name='eventmux')"
)
REQUEST = b"GET /sse/clock HTTP/1.1\r\nHost: 127.0.0.1\r\nAccept: text/event-stream\r\n\r\n"


@contextlib.contextmanager
def serving(redis: str, workers: int, at_once: int) -> Iterator[tuple[str, list[int]]]:
    """The URL, and the pids of the workers."""
    with tempfile.TemporaryDirectory() as place, Path(place, "log").open("w+") as log:
        settings = f"store: {{url: '{redis}', prefix: bench-{os.getpid()}}}\nlimits: {{new_streams: 1000000}}\n"
        Path(place, "plugins.yaml").write_text(settings, "utf-8")
        command = [sys.executable, "-c", COMMAND.format(at_once=at_once)]
        process = subprocess.Popen(
            [*command, "serve", "--port", "0", "--workers", str(workers)],
            cwd=place,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        try:
            until = time.monotonic() + PATIENCE
            while not (found := re.search(r" at (http://[^,\s]+),", Path(log.name).read_text("utf-8"))):
                if process.poll() is not None or time.monotonic() > until:
                    sys.exit(Path(log.name).read_text("utf-8"))
                time.sleep(0.05)
            pids = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text("utf-8").split()
            yield found[1], [int(pid) for pid in pids]
        finally:
            process.terminate()
            process.wait(PATIENCE)


def shares(url: str) -> list[int]:
    """Streams that were opened, worker by worker."""
    with urllib.request.urlopen(f"{url}/metrics", timeout=PATIENCE) as answer:  # noqa: S310 - our own
        text = answer.read().decode()
    return [
        int(float(n)) for n in re.findall(r'^eventmux_streams_opened_total\{worker="\d+"\} (\S+)', text, re.MULTILINE)
    ]


def storm(url: str, pids: list[int], clients: int) -> list[int]:
    """What each worker got of so many that came while all stood still."""
    before, port = shares(url), int(url.rpartition(":")[2])
    with contextlib.ExitStack() as stack:
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        for _ in range(clients):
            client = stack.enter_context(socket.create_connection(("127.0.0.1", port), PATIENCE))
            client.sendall(REQUEST)
        for pid in pids:
            os.kill(pid, signal.SIGCONT)
        until = time.monotonic() + PATIENCE
        while sum(now := shares(url)) < sum(before) + clients:
            if time.monotonic() > until:
                sys.exit(f"{sum(now) - sum(before)} of {clients} have a stream after {PATIENCE:g} seconds")
            time.sleep(0.05)
    return [after - earlier for after, earlier in zip(now, before, strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.accept", description=__doc__)
    parser.add_argument("--redis", required=True, help="its keys that begin with bench- are written")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--at-once", type=int, default=1)
    given = parser.parse_args()
    raise_fd_limit(given.clients)
    with serving(given.redis, given.workers, given.at_once) as (url, pids):
        for _ in range(given.rounds):
            print("of", given.clients, "clients:", *storm(url, pids, given.clients), flush=True)


if __name__ == "__main__":
    main()
