"""Two replicas and a Redis, of which something breaks every few seconds, and clients that come back to either replica.

`python -m bench.chaos --seconds 3600 --clients 40 --seed 1` exits 1 if a client has lost an event, or got one twice,
without a word of it, or if a word was not true; if a client gets nothing when all is whole again; if a log in Redis is
forked; or if memory, files, keys or errors in the log pile up. The same seed makes the same plans, and other moments.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from .audit import audit, faults_of_log
from .chaos_report import report
from .clients import Totals
from .faults import Faults
from .journal import Fault, Journal
from .process import ROOT, raise_fd_limit, surroundings
from .relay import Relay, relaying
from .replica import Replica
from .scene import Scene
from .shelf import Shelf
from .travellers import Traveller

CONFIG = Path(__file__).parent / "chaos.yaml"
WORKERS = {"a": 1, "b": 2}
RETRY = 0.3  # seconds, as in chaos.yaml
MARGIN = 20.0  # for a machine that does other things, too
LATE = 0.25  # of a lease: a loop that is so late is noted
CALM = 3.0  # seconds of whole replicas at the end


@dataclass
class Peak:
    """The most that any process has had, and Redis."""

    rss: int = 0
    fds: int = 0
    keys: int = 0


@dataclass
class Result:
    """`wrong`: in words; empty if the promises held."""

    options: dict[str, Any]
    surroundings: dict[str, Any]
    totals: Totals = field(default_factory=Totals)
    faults: list[Fault] = field(default_factory=list)
    peak: Peak = field(default_factory=Peak)
    redis: str = ""
    seconds: float = 0.0
    lives: int = 0
    shared_events: int = 0
    read_back: int = 0
    keys_left: dict[str, int] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)


class Chaos:
    """One run: replicas, clients, faults, and what is left of it."""

    def __init__(self, result: Result, scene: Scene, relays: dict[str, Relay], shelf: Shelf, config: str) -> None:
        self._result = result
        self._scene = scene
        self._shelf = shelf
        self._journal = scene.journal
        self._chance = random.Random(f"{result.options['seed']}/faults")
        self._faults = Faults(scene, relays, shelf, scene.journal, self._chance, config, result.options["only"])
        count, seed = result.options["clients"], result.options["seed"]
        self._travellers = [Traveller(f"{seed}/{number}", scene) for number in range(count)]

    async def run(self, seconds: float) -> None:
        scene, result = self._scene, self._result
        await asyncio.gather(*(replica.start() for replica in scene.replicas))
        begin = time.monotonic()
        watching = [asyncio.create_task(self._measure()), asyncio.create_task(self._watch_the_clock())]
        living = [asyncio.create_task(traveller.live()) for traveller in self._travellers]
        try:
            await self._settle(begin, "the start")
            while time.monotonic() < begin + seconds:
                await self._round()
            await self._settle(time.monotonic(), "the last fault")
            await asyncio.sleep(CALM)
        finally:
            scene.over.set()
            result.seconds = time.monotonic() - begin
            await asyncio.gather(*living)
        result.wrong += self._faults.wrong
        result.wrong += await audit(scene, self._shelf, result)
        for task in watching:
            task.cancel()
        await asyncio.wait(watching)
        result.wrong += [str(task.exception()) for task in watching if not task.cancelled() and task.exception()]

    async def _round(self) -> None:
        """A fault or two, often until all is whole and everybody has events again, sometimes not."""
        before = len(self._journal.faults)
        count = self._chance.choice((1, 1, 2, 2))
        await asyncio.gather(*(self._faults.next() for _ in range(count)))
        whole = time.monotonic()
        if self._chance.random() < 0.3:
            await asyncio.sleep(self._chance.uniform(0, self._journal.lease))
            return
        faults = self._journal.faults[before:]
        back = await self._settle(whole, ", ".join(f"{fault.kind} {fault.target}" for fault in faults))
        for fault in faults:
            fault.back = back
        await asyncio.sleep(self._chance.expovariate(1))

    async def _settle(self, since: float, what: str) -> float:
        """Wait until every client that wants any has had an event since then; how long that took."""
        patience = 2 * self._journal.lease + RETRY + MARGIN
        while waiting := [one for one in self._travellers if one.served <= since and not one.is_away]:
            if time.monotonic() > since + patience:
                self._result.totals.violations += [f"nothing for {patience:g} s after {what}: {one}" for one in waiting]
                break
            await asyncio.sleep(0.05)
        return time.monotonic() - since

    async def _measure(self) -> None:
        peak = self._result.peak
        while True:
            for replica in self._scene.replicas:
                for process in replica.measured():
                    with contextlib.suppress(OSError):  # it has just been killed
                        peak.rss, peak.fds = max(peak.rss, process.rss()), max(peak.fds, process.fds())
            await asyncio.sleep(1)

    async def _watch_the_clock(self) -> None:
        """A machine that gives no time to us gives none to a replica either, which then may lose its lease."""
        late, step = LATE * self._journal.lease, 0.05
        while True:
            begin = time.monotonic()
            await asyncio.sleep(step)
            if (seconds := time.monotonic() - begin - step) > late:
                self._journal.note_slowness(seconds)


@contextlib.contextmanager
def staged(result: Result, folder: Path, lease: float) -> Iterator[Chaos]:
    """Redis runs, replicas do not yet. On leaving, nothing runs any more."""
    with contextlib.ExitStack() as stack:
        shelf = Shelf(folder)
        stack.callback(shelf.close)
        shelf.start()
        result.redis = shelf.version()
        relays = {name: stack.enter_context(relaying(shelf.port)) for name in WORKERS}
        config = CONFIG.read_text("utf-8")
        replicas = []
        for name, workers in WORKERS.items():
            url = f"redis://127.0.0.1:{relays[name].port}/0"
            environ = {"CHAOS_REDIS": url, "CHAOS_LEASE": f"{lease:g}", "CHAOS_SHARDS": str(result.options["shards"])}
            environ["CHAOS_PLUGINS"] = str(ROOT / "bench" / "local")
            replicas.append(Replica(name, folder, config, environ, workers))
            stack.callback(replicas[-1].close)
        scene = Scene(replicas, Journal(lease), shelf.about, totals=result.totals)
        yield Chaos(result, scene, relays, shelf, config)
        result.faults = scene.journal.faults
        result.lives = sum(replica.lives for replica in replicas)
        result.shared_events, result.read_back = scene.witness.events, scene.witness.read_back
        result.wrong += scene.witness.faults()
        for replica in replicas:
            result.wrong += faults_of_log(replica.name, replica.log.read_text("utf-8", errors="replace"), result.faults)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.chaos", description=__doc__)
    parser.add_argument("--clients", type=int, default=40)
    parser.add_argument("--seconds", type=float, default=3_600.0, help="in which things break")
    parser.add_argument("--lease", type=float, default=1.0, help="seconds")
    parser.add_argument("--shards", type=int, default=2, help="of the store")
    parser.add_argument("--seed", default="1")
    parser.add_argument("--only", type=lambda text: text.split(","), default=[], help="faults, separated by commas")
    parser.add_argument(
        "--out", type=Path, default=Path("bench-results") / "chaos", help="for results.json and the logs"
    )
    options = parser.parse_args(arguments)
    raise_fd_limit(options.clients * 2 + 200)
    result = Result({**vars(options), "out": str(options.out)}, surroundings())
    print(json.dumps(result.surroundings), flush=True)
    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        try:
            with staged(result, Path(folder), options.lease) as chaos:
                asyncio.run(chaos.run(options.seconds))
        finally:
            for log in Path(folder).glob("*.log"):
                (options.out / log.name).write_bytes(log.read_bytes())
    print(report(result))
    everything = {**vars(result), "totals": {**vars(result.totals), "counts": dict(result.totals.counts)}}
    everything |= {"faults": [_plain(fault) for fault in result.faults], "peak": asdict(result.peak)}
    (options.out / "results.json").write_text(json.dumps(everything, indent=1) + "\n", "utf-8")
    return 1 if result.wrong or result.totals.violations else 0


def _plain(fault: Fault) -> dict[str, Any]:
    seconds = fault.end - fault.begin
    return {"kind": fault.kind, "target": fault.target, "seconds": round(seconds, 3), "back": fault.back}


if __name__ == "__main__":
    sys.exit(main())
