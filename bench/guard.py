"""Whether eventmux still is what it is for: faster than the obvious way. `python -m bench.guard`, for CI.

The product and sse-starlette do the same short work by turns, and their CPU per event is compared, by a margin that is
far from what is usual. Each one's best turn counts: what else the machine does can only make a turn dearer. Exits 1 if
a ratio is beyond its margin. Needs no compiler; figures to quote are made by `python -m bench`.
"""

from __future__ import annotations

import argparse
import contextlib
import selectors
import socket
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from .peers.shape import Shape
from .process import raise_fd_limit
from .servers import Running, running
from .work import PRODUCT, Work

NAIVE = "naive"
PATIENCE = 10.0  # seconds until all have their first event
MARK = b"@"  # one in each event, and none elsewhere in a stream


@dataclass(frozen=True, slots=True)
class Case:
    """`margin`: the product's CPU per event may be at most so much of the other's."""

    work: Work
    margin: float


def cases(fanout: float, private: float) -> list[Case]:
    servers = (PRODUCT, NAIVE)
    # 50 events/s: enough of them in a second to count, and far from what would overload a slow machine.
    shared = Work("fan-out", "200 subscribers of one source", Shape("shared", rate=50), 200, (), servers)
    own = Work("private", "50 private sources", Shape("private", rate=0), 50, (), servers)
    return [Case(shared, fanout), Case(own, private)]


def cpu_seconds(pid: int) -> float:
    """What the threads of a process have used until now."""
    spent = 0.0
    for thread in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(OSError):  # it has ended just now
            spent += int((thread / "schedstat").read_text().split()[0]) / 1e9
    return spent


@contextlib.contextmanager
def subscribers(one: Running, count: int) -> Iterator[selectors.BaseSelector]:
    """So many connections that have asked for the stream."""
    path = next(option for option in one.load if option.startswith("--path=")).partition("=")[2]
    request = f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nAccept: text/event-stream\r\n\r\n".encode()
    with contextlib.ExitStack() as stack:
        selector = stack.enter_context(selectors.DefaultSelector())
        for _ in range(count):
            connection = stack.enter_context(socket.create_connection(("127.0.0.1", one.port), timeout=PATIENCE))
            connection.sendall(request)
            connection.setblocking(False)
            selector.register(connection, selectors.EVENT_READ)
        yield selector


def receive(selector: selectors.BaseSelector, seconds: float, *, until_all: bool = False) -> int:
    """Events that come within so many seconds; with `until_all`, until every subscriber has had one."""
    events = 0
    waiting = {key.fd for key in selector.get_map().values()} if until_all else set()
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0 and (waiting or not until_all):
        for key, _ in selector.select(left):
            connection = key.fileobj
            assert isinstance(connection, socket.socket)  # noqa: S101 - for the type
            data = connection.recv(262_144)
            if not data:
                raise RuntimeError("a server has closed a connection")
            found = data.count(MARK)
            events += found
            if found:
                waiting.discard(key.fd)
    if waiting:
        raise RuntimeError(f"{len(waiting)} subscribers have no event after {seconds:g} s")
    return events


def cost(one: Running, clients: int, seconds: float) -> float:
    """CPU microseconds per event that was delivered."""
    with subscribers(one, clients) as selector:
        receive(selector, PATIENCE, until_all=True)
        before = cpu_seconds(one.pid)
        events = receive(selector, seconds)
        return (cpu_seconds(one.pid) - before) * 1e6 / max(1, events)


def best_costs(work: Work, turns: int, seconds: float) -> dict[str, float]:
    """Of each server, by its name. Both run all the time; the one that nobody asks has nothing to do."""
    costs: dict[str, list[float]] = {name: [] for name in work.servers}
    with contextlib.ExitStack() as stack:
        servers: dict[str, Running] = {}
        for name in work.servers:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            servers[name] = stack.enter_context(running(name, work, folder, None))
        for _ in range(turns):
            for name, one in servers.items():
                costs[name].append(cost(one, work.clients, seconds))
    return {name: min(found) for name, found in costs.items()}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.guard", description=__doc__)
    parser.add_argument("--fanout", type=float, default=0.6, help="margin for one shared source; default 0.6")
    parser.add_argument("--private", type=float, default=0.9, help="margin for private sources; default 0.9")
    parser.add_argument("--turns", type=int, default=4, help="of each server")
    parser.add_argument("--seconds", type=float, default=0.6, help="of each turn")
    options = parser.parse_args(arguments)
    raise_fd_limit(1_000)
    is_well = True
    for case in cases(options.fanout, options.private):
        found = best_costs(case.work, options.turns, options.seconds)
        ratio = found[PRODUCT] / found[NAIVE]
        is_well &= ratio <= case.margin
        print(
            f"{case.work.name}, {case.work.says}: {found[PRODUCT]:.1f} us of CPU per event, "
            f"sse-starlette {found[NAIVE]:.1f} us: {ratio:.2f} of it, at most {case.margin:g}: "
            + ("passed" if ratio <= case.margin else "FAILED"),
            flush=True,
        )
    return 0 if is_well else 1


if __name__ == "__main__":
    sys.exit(main())
