"""What a subscriber that reads nothing costs on a hot shared source, against one that is idle; and that it is let go.

`python -m bench.stalled --clients 1000` starts the service once for each kind of subscriber. In each, one more client
reads the hot source, so that its history is full and its cost is in no figure. Exits 1 if a stalled subscriber costs
more than `--tolerance` beyond an idle one, or is still there after `send_timeout`.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import socket
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from dataclasses import asdict, dataclass
from pathlib import Path

from .process import ROOT, Served, raise_fd_limit, serving, socket_memory, surroundings
from .wire import Reader, connect, held, receive, request

KIB, MIB = 1024, 1024 * 1024
BATCH = 50  # connections that are opened at a time
HISTORY = 1_000  # events
IDLE, STALLED, REPLAYING = "idle", "stalled", "stalled in a replay"
KINDS = {IDLE: "/sse/quiet", STALLED: "/sse/hot", REPLAYING: "/sse/hot?since=earliest"}
SETTLE_SECONDS = 10.0  # beyond send_timeout, for a busy machine

CONFIG = """
sources:
  hot: {{use: steady, params: {{rate: {rate}, size: {size}}}, history: {{events: {history}}}}}
  quiet: {{}}
  held: {{}}
server: {{send_timeout: {send_timeout}}}
plugins: {{dir: {sources}}}
"""


@dataclass(frozen=True, slots=True)
class State:
    """The service at one moment. `rss`: bytes, after what is free was given back; `rss_raw`: before that.

    `sockets`: bytes that the kernel holds for TCP on the whole machine, None where it does not say. `last`: the number
    of the newest event of the hot source.
    """

    rss: int
    rss_raw: int
    fds: int
    sockets: int | None
    subscriptions: int
    history: int
    last: int


@dataclass
class Measured:
    """One kind of subscriber. `gone`: after the stalled were cut off, or the idle have left."""

    before: State
    there: State
    gone: State
    clients: int
    gone_after: float | None = None  # seconds; None if they are still there

    def per_client(self, name: str) -> float:
        """KiB."""
        return float(getattr(self.there, name) - getattr(self.before, name)) / self.clients / KIB

    @property
    def turned_over(self) -> float:
        return (self.there.last - self.before.last) / HISTORY


class Newest:
    """A client that reads the hot source all the time."""

    def __init__(self) -> None:
        self.last = 0
        self.history_is_full = asyncio.Event()

    async def read(self, port: int) -> None:
        connection = await connect(port, request("/sse/hot"))
        reader = Reader()
        with connection:
            while (data := await receive(connection, 60)) != b"":
                for block in reader.feed(data or b""):
                    self.last = block.data["n"] if block.event in {"item", "third"} else self.last
                if self.last >= HISTORY:
                    self.history_is_full.set()


async def _state(served: Served, newest: Newest) -> State:
    raw = served.rss()
    found = await held(served.port, trim=True)
    await asyncio.sleep(0.2)  # until that connection is closed, so that it is in no count of files
    memory = socket_memory()
    return State(
        rss=served.rss(),
        rss_raw=raw,
        fds=served.fds(),
        sockets=memory.used if memory else None,
        subscriptions=found["counts"]["Subscription"],
        history=found["history"],
        last=newest.last,
    )


@contextlib.asynccontextmanager
async def _subscribed(port: int, path: str, count: int, receive_buffer: int) -> AsyncIterator[None]:
    """So many clients that read nothing of what they have asked for."""
    connections: list[socket.socket] = []
    try:
        while len(connections) < count:
            size = min(BATCH, count - len(connections))
            asked = (connect(port, request(path), receive_buffer=receive_buffer) for _ in range(size))
            connections += await asyncio.gather(*asked)
            _check_kernel()
        yield
    finally:
        for connection in connections:
            connection.close()


def _check_kernel() -> None:
    """What the kernel holds for TCP is shared by all on this machine: stop before others are slowed down."""
    memory = socket_memory()
    if memory and memory.pressure and memory.used > memory.pressure * 0.8:
        raise RuntimeError(
            f"stopped: the kernel holds {memory.used / MIB:.0f} MiB for TCP, from {memory.pressure / MIB:.0f} on it "
            "slows down every connection of this machine; use fewer --clients, or a --send-buffer"
        )


async def _measure(served: Served, kind: str, options: argparse.Namespace) -> Measured:
    newest = Newest()
    reading = asyncio.create_task(newest.read(served.port))
    try:
        await held(served.port)  # the first request brings what is made only once
        async with asyncio.timeout(30):
            await newest.history_is_full.wait()  # so that it costs the same before and after
        before = await _state(served, newest)
        async with _subscribed(served.port, KINDS[kind], options.clients, options.receive_buffer):
            begin = time.monotonic()
            while time.monotonic() < begin + options.seconds:
                await asyncio.sleep(0.5)
                _check_kernel()
            there = await _state(served, newest)
            if kind != IDLE:
                gone_after = await _gone(served, before, begin, options.send_timeout + SETTLE_SECONDS)
                gone = await _state(served, newest)
        if kind == IDLE:
            gone_after = await _gone(served, before, time.monotonic(), SETTLE_SECONDS)
            gone = await _state(served, newest)
    finally:
        reading.cancel()
        await asyncio.wait({reading})
    return Measured(before, there, gone, options.clients, gone_after)


async def _gone(served: Served, before: State, begin: float, seconds: float) -> float | None:
    """Seconds from `begin` until the connections are closed; None if they are not, `seconds` after it."""
    while time.monotonic() < begin + seconds:
        await asyncio.sleep(0.5)
        if served.fds() <= before.fds:
            return time.monotonic() - begin
    return None


def judge(measured: dict[str, Measured], clients: int, tolerance: float) -> list[str]:
    """What is wrong, in words."""
    faults = []
    for kind, one in measured.items():
        more = one.per_client("rss") - measured[IDLE].per_client("rss") if IDLE in measured else 0.0
        if more > tolerance:
            faults.append(f"{kind}: a subscriber costs {more:.1f} KiB more than an idle one, allowed {tolerance:.1f}")
        found = one.there.subscriptions - one.before.subscriptions
        if found != clients:
            faults.append(f"{kind}: {found} of {clients} subscribers were there when it was measured")
        if one.gone_after is None:
            faults.append(f"{kind}: {one.gone.fds - one.before.fds} connections are still open in the service")
    return faults


def described(kind: str, measured: Measured, seconds: float) -> list[str]:
    """The figures, one line each: before the subscribers came, with them, when they were gone."""
    moments = (measured.before, measured.there, measured.gone)
    before, there, _ = moments
    rss = ", ".join(f"{state.rss / MIB:.1f}" for state in moments)
    raw = there.rss_raw / MIB
    rate = (there.last - before.last) / seconds
    lines = [
        f"{kind}, {measured.clients} subscribers (before, with, without them):",
        f"  RSS: {rss} MiB; with them {raw:.1f} until free memory was given back",
        f"  RSS a subscriber: {measured.per_client('rss'):.1f} KiB",
        f"  history: {there.history / KIB:.0f} KiB, turned over {measured.turned_over:.0f} times, {rate:.0f} events/s",
        f"  files: {', '.join(str(state.fds) for state in moments)}",
    ]
    if all(state.sockets is not None for state in moments):
        sockets = ", ".join(f"{(state.sockets or 0) / MIB:.1f}" for state in moments)
        lines.append(
            f"  in the kernel, both ends: {sockets} MiB; {measured.per_client('sockets'):.1f} KiB a subscriber"
        )
    if measured.gone_after is not None:
        since = "they had left" if kind == IDLE else "the last had connected"
        lines.append(f"  gone {measured.gone_after:.1f} s after {since}")
    return lines


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.stalled", description=__doc__)
    parser.add_argument("--clients", type=int, default=1_000)
    parser.add_argument("--rate", type=float, default=2_000.0, help="events a second")
    parser.add_argument("--size", type=int, default=200, help="bytes of padding in an event")
    parser.add_argument("--seconds", type=float, default=20.0, help="from the last connection to the measurement")
    parser.add_argument("--send-timeout", type=float, default=30.0, help="must be over after the measurement")
    parser.add_argument("--send-buffer", type=int, default=0, help="SO_SNDBUF of the service's sockets; 0: its own")
    parser.add_argument("--receive-buffer", type=int, default=4_096, help="SO_RCVBUF of the clients' sockets")
    parser.add_argument("--tolerance", type=float, default=24.0, help="KiB that a stalled subscriber may cost more")
    parser.add_argument("--json", type=Path, help="write everything here, for a program to read")
    options = parser.parse_args(arguments)
    raise_fd_limit(options.clients + 200)
    about = surroundings()
    print(json.dumps(about))
    measured: dict[str, Measured] = {}
    faults: list[str] = []
    with tempfile.TemporaryDirectory() as name:
        config = Path(name) / "plugins.yaml"
        config.write_text(CONFIG.format(**vars(options), history=HISTORY, sources=ROOT / "bench" / "local"))
        for kind in KINDS:
            try:
                with serving(config, Path(name), send_buffer=options.send_buffer) as served:
                    measured[kind] = asyncio.run(_measure(served, kind, options))
            except RuntimeError as error:
                faults.append(f"{kind}: {error}")
                continue
            print("\n".join(described(kind, measured[kind], options.seconds)), flush=True)
    faults += judge(measured, options.clients, options.tolerance)
    print("\n".join([*(f"FAULT: {fault}" for fault in faults), "FAILED" if faults else "passed"]))
    if options.json:
        kinds = {kind: asdict(one) for kind, one in measured.items()}
        everything = {"options": vars(options), "surroundings": about, "measured": kinds, "faults": faults}
        options.json.write_text(json.dumps(everything, indent=1, default=str))
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
