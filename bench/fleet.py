"""Some replicas over one Redis, or one alone with its memory, under load: what it costs each of them, and Redis."""

from __future__ import annotations

import contextlib
import os
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from .cases import MEMORY, READER
from .load import Found, LoadError, load_options, run_load
from .process import raise_fd_limit
from .results import Figures, fault_of, figures_of
from .servers import Running, running
from .store import Done, Store, store
from .work import PRODUCT, Work

SPARE_FILES = 300
SPARE_SECONDS = 6.0  # in which 1,000 connect
PATIENCE = 20.0  # seconds until the first event is in Redis
BEFORE = 0.5  # seconds from then on until Redis is looked at


@dataclass(frozen=True, slots=True)
class Kept:
    """What Redis has done in a while, and how many events were appended in it."""

    done: Done
    events: int


@dataclass(frozen=True, slots=True)
class Member:
    """A replica, and what is asked of it."""

    one: Running
    work: Work

    def load(self) -> Found:
        work, one = self.work, self.one
        found = run_load([*load_options(work, work.stalled), *one.load], pid=one.pid, port=one.port)
        if fault := fault_of(work, found):
            raise LoadError(fault)
        return found


@dataclass(frozen=True, slots=True)
class Seen:
    """`founds`: of the load client of each replica, the one that writes first. `whole`: what Redis has done in all."""

    founds: Sequence[Found]
    kept: Kept | None = None
    whole: Done | None = None


class Fleet:
    """It runs; nothing is asked of it but by `measure`. The first replica has subscribers before the others, and so it
    is the one that runs the source.
    """

    def __init__(self, work: Work, members: Sequence[Member], redis: Store | None) -> None:
        self._work = work
        self._members = members
        self._redis = redis

    def measure(self) -> Figures:
        """Of those who have as many subscribers as the work says. Raises LoadError where something was not as it should
        be, and NoCompilerError.
        """
        return _figures(self._work, self._watched())

    def _watched(self) -> Seen:
        redis, (first, *others) = self._redis, self._members
        with ThreadPoolExecutor(len(self._members)) as threads:
            if redis is None:
                return Seen([threads.submit(first.load).result()])
            before, appended = redis.done(), redis.appended()
            loads = [threads.submit(first.load)]
            _wait_until_appended(redis, appended, loads[0])
            loads += [threads.submit(other.load) for other in others]
            time.sleep(BEFORE)
            kept = _kept(redis, self._work.seconds)
            founds = [load.result() for load in loads]
            founds = [found for found in founds if found["clients"] == self._work.clients]
            return Seen(founds, kept, redis.done() - before)


@contextlib.contextmanager
def fleet(work: Work, name: str) -> Iterator[Fleet]:
    """`memory`, or how many replicas over one Redis, or `reader`: one with the subscribers, and another that runs the
    source for one of its own. Raises NoStoreError, StartError.
    """
    allowed = sorted(os.sched_getaffinity(0))
    count = {MEMORY: 1, READER: 2}.get(name) or int(name)
    raise_fd_limit(work.clients + SPARE_FILES)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder, contextlib.ExitStack() as stack:
        redis = None if name == MEMORY else stack.enter_context(store(Path(folder), core=allowed[-1]))
        where = redis.url if redis else MEMORY
        members = []
        for number in range(count):
            place = Path(folder) / f"replica-{number}"
            place.mkdir()
            is_apart = name == READER and number == 0
            core = allowed[-1] if is_apart else allowed[number % len(allowed)] if name != READER else allowed[0]
            # Without linger, so that it has nothing to do while others are measured.
            one = stack.enter_context(running(PRODUCT, work, place, None, store=where, linger=0, core=core))
            # It stays a little longer than the others, who connect later.
            mine = replace(work, clients=1, seconds=work.seconds + SPARE_SECONDS) if is_apart else work
            members.append(Member(one, mine))
        yield Fleet(work, members, redis)


def _wait_until_appended(redis: Store, before: int, load: Future[Found]) -> None:
    """What private runs have appended is gone with them, and may be less than there was."""
    deadline = time.monotonic() + PATIENCE
    while redis.appended() in {0, before}:
        if load.done():
            load.result()
        if time.monotonic() > deadline:
            raise LoadError(f"nothing was appended in {PATIENCE:g} s")
        time.sleep(0.05)


def _kept(redis: Store, seconds: float) -> Kept:
    before, first = redis.done(), redis.appended()
    time.sleep(seconds)
    return Kept(redis.done() - before, redis.appended() - first)


def _figures(work: Work, seen: Seen) -> Figures:
    """Of one replica all that there is of a server. Of all of them: CPU for each delivered event, and for each event
    that was made of the one that runs the source and of the others; the delays at either. Of Redis: for each event.
    """
    first, *others = [figures_of(found) for found in seen.founds]
    steady = [found["steady"] for found in seen.founds]
    figures = dict(first)
    figures["server_waited"] = max(one["server_waited"] for one in (first, *others))
    events = sum(one["events"] for one in steady)
    if events:
        figures["us_per_event"] = sum(one["server_cpu_us"] for one in steady) / events
        figures["wire_bytes"] = sum(one["bytes"] for one in steady) / events
        made = [one["server_cpu_us"] * work.clients / max(1, one["events"]) for one in steady]
        figures["writer_us"] = made[0]
        if others:
            figures["reader_us"] = statistics.mean(made[1:])
            for name in ("p50_ms", "p99_ms"):
                figures[f"other_{name}"] = statistics.mean(one[name] for one in others)
    return figures | _of_redis(work, seen)


def _of_redis(work: Work, seen: Seen) -> Figures:
    if seen.kept is None or seen.whole is None:
        return {}
    figures = {"redis_connect_us": seen.whole.cpu_us / work.clients}
    done, events = seen.kept.done, seen.kept.events
    if events:
        figures |= {
            "redis_us": done.cpu_us / events,
            "redis_calls": sum(done.calls.values()) / events,
            "redis_appends": done.calls.get("evalsha", 0) / events,
            "redis_reads": done.calls.get("xread", 0) / events,
            "redis_received": done.received / events,
            "redis_sent": done.sent / events,
        }
    return figures
