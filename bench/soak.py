"""Subscribers that come, read, stall, go and return, for minutes; each checks that nothing is lost without a word.

`python -m bench.soak --seconds 300 --clients 200` starts a service of its own and exits 1 if a promise is broken, if
its memory grows, or if tasks, files or runs are left when all clients are gone.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from .clients import LINGER, Totals, crowd
from .process import Served, raise_fd_limit, serving, surroundings
from .wire import held

CONFIG = Path(__file__).parent / "soak.yaml"
MIB = 1024 * 1024
ROW_SECONDS = 10.0
SETTLE_SECONDS = LINGER + 5.0 + 2.0  # linger, the time a generator has to close, and some for a busy machine
MEMORY_SECONDS = 60.0  # a shorter run says nothing about memory
GROWTH, SLACK = 1.05, 4 * MIB  # the end may have so much more than the time after warm-up
UNHEARD = re.compile(r"never retrieved|was destroyed but it is pending|never awaited|Exception in ")
COLUMNS = (
    "s",
    "clients",
    "events/s",
    "MiB/s",
    "RSS MiB",
    "CPU %",
    "fds",
    "tasks",
    "subscr.",
    "runs",
    "hist. MiB",
    "bad",
)


@dataclass
class Sample:
    """The service at one moment; the rates are since the one before."""

    seconds: float
    clients: int
    events_per_second: float
    mib_per_second: float
    rss: int
    cpu: float
    fds: int
    held: dict[str, Any]
    violations: int

    def row(self) -> tuple[str, ...]:
        counts = self.held["counts"]
        numbers = (self.rss / MIB, self.cpu * 100, self.fds, self.held["tasks"], counts["Subscription"], counts["Run"])
        rates = (self.events_per_second, self.mib_per_second)
        shown = [f"{self.seconds:.0f}", str(self.clients), f"{rates[0]:.0f}", f"{rates[1]:.1f}", f"{numbers[0]:.1f}"]
        shown += [f"{number:.0f}" for number in numbers[1:]]
        return (*shown, f"{self.held['history'] / MIB:.1f}", str(self.violations))


@dataclass
class Result:
    """`faults`: what is wrong, in words; empty if the promises held."""

    options: dict[str, Any]
    surroundings: dict[str, Any]
    totals: Totals = field(default_factory=Totals)
    samples: list[Sample] = field(default_factory=list)
    before: dict[str, Any] = field(default_factory=dict)
    after: dict[str, Any] = field(default_factory=dict)
    rss_warm: int = 0
    rss_end: int = 0
    exit_code: int | None = None
    faults: list[str] = field(default_factory=list)


class Soak:
    """One run: a base line, the crowd, and what is left of it."""

    def __init__(self, served: Served, result: Result) -> None:
        self._served = served
        self._result = result
        self._begin = time.monotonic()

    async def run(self, clients: int, seed: str, seconds: float) -> None:
        result, served = self._result, self._served
        await held(served.port)  # the first request brings what is made only once
        result.before = await self._state()
        print("  ".join(f"{name:>9}" for name in COLUMNS))
        self._begin = time.monotonic()
        working = asyncio.create_task(crowd(clients, seed, served.port, result.totals, seconds))
        sampling = asyncio.create_task(self._sample(min(ROW_SECONDS, max(1.0, seconds / 5))))
        await working
        sampling.cancel()
        await asyncio.wait({sampling})
        if not sampling.cancelled() and (error := sampling.exception()):
            raise error
        gone = time.monotonic()
        while time.monotonic() < gone + SETTLE_SECONDS:
            await asyncio.sleep(0.5)
            result.after = {**await self._state(), "settled": time.monotonic() - gone}
            if not leftovers(result.before, result.after):
                break

    async def _state(self) -> dict[str, Any]:
        """After a request that is over, so that this one's own connection counts alike each time."""
        await asyncio.sleep(0.2)
        found = await held(self._served.port, trim=True)
        await asyncio.sleep(0.1)
        return {**found, "fds": self._served.fds(), "rss": self._served.rss()}

    async def _sample(self, every: float) -> None:
        served, totals = self._served, self._result.totals
        at, cpu, events, size = self._begin, served.cpu(), 0, 0
        while True:
            await asyncio.sleep(max(0.0, at + every - time.monotonic()))
            now = time.monotonic()
            passed, used = now - at, served.cpu()
            sample = Sample(
                seconds=now - self._begin,
                clients=totals.connected,
                events_per_second=(totals.events - events) / passed,
                mib_per_second=(totals.bytes - size) / passed / MIB,
                rss=served.rss(),
                cpu=(used - cpu) / passed,
                fds=served.fds(),
                held=await held(served.port),
                violations=len(totals.violations),
            )
            at, cpu, events, size = now, used, totals.events, totals.bytes
            self._result.samples.append(sample)
            print("  ".join(f"{cell:>9}" for cell in sample.row()), flush=True)


def leftovers(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """What is there now, and was not before. Logs of shared sources stay, so that clients may return to them."""
    found = [f"{after[name] - before[name]} {name}" for name in ("tasks", "fds") if after[name] > before[name]]
    for kind in ("Subscription", "RequestResponseCycle"):
        extra = after["counts"][kind] - before["counts"][kind]
        found += [f"{extra} objects {kind}"] * (extra > 0)
    # One run of each shared source that was used, and that of the question itself.
    extra = after["counts"]["Run"] - before["counts"]["Run"] - 5
    return found + [f"{extra} runs"] * (extra > 0)


def judge(result: Result, log: str, seconds: float) -> None:
    """Fill in `faults`."""
    totals = result.totals
    result.faults += [f"{len(totals.violations)} violations of the promise"] * bool(totals.violations)
    result.faults += [f"{totals.events} events: nobody has read anything"] * (totals.events == 0)
    result.faults += [f"left behind: {what}" for what in leftovers(result.before, result.after)]
    result.faults += [f"in the service's log: {line}" for line in log.splitlines() if UNHEARD.search(line)][:10]
    if result.exit_code != 0:
        result.faults.append(f"the service ended with {result.exit_code} after SIGTERM")
    warm = [one.rss for one in result.samples if seconds * 0.2 <= one.seconds <= seconds * 0.4]
    end = [one.rss for one in result.samples if one.seconds > seconds * 0.8]
    if seconds >= MEMORY_SECONDS and warm and end:
        result.rss_warm, result.rss_end = max(warm), max(end)
        if result.rss_end > result.rss_warm * GROWTH + SLACK:
            result.faults.append(f"memory grew from {result.rss_warm / MIB:.1f} to {result.rss_end / MIB:.1f} MiB")


def report(result: Result) -> str:
    totals, before, after = result.totals, result.before, result.after
    lines = [
        f"{totals.events} events checked on {totals.connections} connections, {totals.bytes / MIB:.0f} MiB",
        "; ".join(f"{name}: {count}" for name, count in sorted(totals.counts.items())),
        f"violations: {len(totals.violations)}",
    ]
    lines += totals.violations[:10]
    if result.rss_warm:
        warm, end = result.rss_warm / MIB, result.rss_end / MIB
        lines.append(
            f"RSS, highest of 20 to 40 % of the time: {warm:.1f} MiB, of the last 20 %: {end:.1f} MiB "
            f"(allowed: {GROWTH:.0%} of the first and {SLACK / MIB:.0f} MiB)"
        )
    else:
        lines.append(f"RSS: not judged in less than {MEMORY_SECONDS:.0f} s")
    lines += [
        f"{name} before: {before[name]}, {after['settled']:.1f} s after the last client: {after[name]}"
        for name in ("tasks", "fds")
    ]
    lines.append(f"RSS before: {before['rss'] / MIB:.1f} MiB, after: {after['rss'] / MIB:.1f} MiB (given back by trim)")
    lines.append(f"objects before: {before['counts']}, after: {after['counts']}")
    return "\n".join([*lines, *(f"FAULT: {fault}" for fault in result.faults), "FAILED" if result.faults else "passed"])


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.soak", description=__doc__)
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument(
        "--seed", default="1", help="the same seed makes the same plans; the network keeps its own time"
    )
    parser.add_argument("--json", type=Path, help="write everything here, for a program to read")
    options = parser.parse_args(arguments)
    raise_fd_limit(options.clients * 2 + 200)
    result = Result({key: str(value) for key, value in vars(options).items()}, surroundings())
    print(json.dumps(result.surroundings))
    with tempfile.TemporaryDirectory() as folder:
        with serving(CONFIG, Path(folder)) as served:
            asyncio.run(Soak(served, result).run(options.clients, options.seed, options.seconds))
        result.exit_code = served.exit_code
        judge(result, served.log(), options.seconds)
    print(report(result))
    if options.json:
        totals = {**vars(result.totals), "counts": dict(result.totals.counts)}
        everything = {**vars(result), "totals": totals, "samples": [asdict(one) for one in result.samples]}
        options.json.write_text(json.dumps(everything, indent=1))
    return 1 if result.faults else 0


if __name__ == "__main__":
    sys.exit(main())
