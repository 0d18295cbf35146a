"""What is broken on purpose, one coroutine for each kind: it is whole again when that returns."""

from __future__ import annotations

import asyncio
import random
import signal
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, TypeAlias

from .journal import Fault, Journal
from .redis_process import RedisProcess
from .relay import Relay
from .replica import Replica, send
from .scene import Scene

Work: TypeAlias = "Callable[[], Coroutine[Any, Any, None]]"


class Faults:
    """`wrong`: what a fault has shown by itself, as an exit code."""

    def __init__(
        self,
        scene: Scene,
        relays: dict[str, Relay],
        redis: RedisProcess,
        journal: Journal,
        chance: random.Random,
        config: str,
        only: Sequence[str] = (),
    ) -> None:
        self.wrong: list[str] = []
        self._scene = scene
        self._relays = relays
        self._redis = redis
        self._journal = journal
        self._chance = chance
        self._config = config
        self._lease = journal.lease
        self._busy: set[str] = set()
        self._deck: list[str] = []
        self._kinds: dict[str, Callable[[Replica], Coroutine[Any, Any, None]]] = {
            "kill": self.kill,
            "kill worker": self.kill_worker,
            "end": self.end,
            "freeze": self.freeze,
            "freeze worker": self.freeze_worker,
            "cut": self.cut,
            "cut off": self.cut_off,
            "stall": self.stall,
            "slow link": self.slow_link,
            "redis ended": self.redis_ended,
            "redis killed": self.redis_killed,
            "redis paused": self.redis_paused,
            "clients cut": self.clients_cut,
            "hang up": self.hang_up,
        }
        if only:
            self._kinds = {kind: self._kinds[kind] for kind in only}

    @property
    def kinds(self) -> list[str]:
        return list(self._kinds)

    async def next(self) -> None:
        """One of those that had no turn yet."""
        if not self._deck:
            self._deck = self._chance.sample(self.kinds, len(self._kinds))
        kind = self._deck.pop()
        is_of_redis = kind.startswith("redis")
        replicas = [one for one in self._scene.replicas if one.name not in self._busy and one.is_up]
        if "worker" in kind:
            replicas = [one for one in replicas if len(one.serving) > 1]
        if not replicas or (is_of_redis and "redis" in self._busy):
            self._deck.insert(0, kind)
            return
        replica = self._chance.choice(replicas)
        target = "redis" if is_of_redis else replica.name
        self._busy.add(target)
        try:
            await self._kinds[kind](replica)
        finally:
            self._busy.discard(target)

    def _while(self) -> float:
        """Seconds that something is away: often for less than a lease, often for more than two."""
        return self._chance.choice((0.1, 0.5, 1.0, 2.0, 2.5)) * self._lease

    async def _for(self, fault: Fault, seconds: float, mend: Callable[[], object]) -> None:
        try:
            await asyncio.sleep(seconds)
        finally:
            mend()
            self._end(fault)

    def _end(self, fault: Fault) -> None:
        fault.end = time.monotonic()

    async def kill(self, replica: Replica) -> None:
        fault = self._journal.begin("kill", replica.name, replica.pids)
        await replica.kill()
        await asyncio.sleep(self._while())
        await replica.start()
        self._end(fault)

    async def kill_worker(self, replica: Replica) -> None:
        pid = self._chance.choice(replica.serving)
        fault = self._journal.begin("kill worker", replica.name, [pid])
        send(pid, signal.SIGKILL)
        self._end(fault)

    async def end(self, replica: Replica) -> None:
        fault = self._journal.begin("end", replica.name, replica.pids)
        if code := await replica.end():
            self.wrong.append(f"replica {replica.name} has ended with {code} after SIGTERM")
        await asyncio.sleep(self._chance.choice((0.0, self._lease)))
        await replica.start()
        self._end(fault)

    async def freeze(self, replica: Replica) -> None:
        await self._freeze("freeze", replica, replica.pids)

    async def freeze_worker(self, replica: Replica) -> None:
        await self._freeze("freeze worker", replica, [self._chance.choice(replica.serving)])

    async def _freeze(self, kind: str, replica: Replica, pids: list[int]) -> None:
        fault = self._journal.begin(kind, replica.name, pids)
        for pid in pids:
            send(pid, signal.SIGSTOP)
        await self._for(fault, 2 * self._lease, lambda: [send(pid, signal.SIGCONT) for pid in pids])

    async def cut(self, replica: Replica) -> None:
        """Its connections to Redis break; new ones are let in at once."""
        fault = self._journal.begin("cut", replica.name, replica.pids)
        self._relays[replica.name].cut(reset=self._chance.random() < 0.5)
        self._end(fault)

    async def cut_off(self, replica: Replica) -> None:
        relay = self._relays[replica.name]
        fault = self._journal.begin("cut off", replica.name, replica.pids)
        relay.refuse()
        relay.cut()
        await self._for(fault, self._while(), relay.accept)

    async def stall(self, replica: Replica) -> None:
        """What it sends to Redis, and what comes from there, comes later, all of it."""
        relay = self._relays[replica.name]
        fault = self._journal.begin("stall", replica.name, replica.pids)
        relay.stall()
        await self._for(fault, self._while(), relay.resume)

    async def slow_link(self, replica: Replica) -> None:
        """What is on its way to and from Redis is late, and then lost: what was asked may have been done or not."""
        relay = self._relays[replica.name]
        fault = self._journal.begin("slow link", replica.name, replica.pids)
        relay.delay(self._chance.uniform(0.02, 0.2) * self._lease)

        def mend() -> None:
            relay.cut()
            relay.delay(0)

        await self._for(fault, self._while(), mend)

    async def redis_ended(self, _: Replica) -> None:
        await self._redis_away("redis ended", self._redis.stop)

    async def redis_killed(self, _: Replica) -> None:
        await self._redis_away("redis killed", self._redis.kill)

    async def _redis_away(self, kind: str, away: Callable[[], None]) -> None:
        fault = self._journal.begin(kind, "redis")
        await asyncio.to_thread(away)
        await asyncio.sleep(self._while())
        await asyncio.to_thread(self._redis.start)
        self._end(fault)

    async def redis_paused(self, _: Replica) -> None:
        fault = self._journal.begin("redis paused", "redis")
        self._redis.pause()
        await self._for(fault, self._while(), self._redis.resume)

    async def clients_cut(self, _: Replica) -> None:
        fault = self._journal.begin("clients cut", "clients")
        self._scene.cut()
        self._end(fault)

    async def hang_up(self, chosen: Replica) -> None:
        """Another rate for one source; for a moment the replicas do not agree on it."""
        fault = self._journal.begin("hang up", "all")
        rate = self._chance.choice((7, 9, 11, 13))
        for replica in self._scene.replicas:
            if replica is chosen or (replica.is_up and replica.name not in self._busy):
                replica.hang_up(self._config.replace("rate: 11}", f"rate: {rate}}}"))
            await asyncio.sleep(self._chance.uniform(0, 0.5))
        self._end(fault)
