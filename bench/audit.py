"""What is left when the clients of a chaos run have gone: logs as they are kept, keys, tasks, exit codes, words."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from .journal import Fault
from .scene import Scene
from .shelf import Shelf
from .trip import BOUNDED, FINITE, LINGER, SHARED
from .witness import events_of

if TYPE_CHECKING:
    from .chaos import Result

MIB = 1024 * 1024
READ_BACK = 1_000  # events of a log
MOST_RSS, SPARE_FDS = 300 * MIB, 80  # what a process may have, and open files beside its clients
LEFT_RUNS = 12  # in a process whose clients have gone: logs of shared sources, and the one that is asked
LEFT_TASKS = 40
PRIVATE = (*FINITE, "endless")
ASKED = 4  # times, so that each worker of a replica is asked, most likely
MARGIN = 20.0  # seconds

# What a log may say at these levels, and which fault it follows from.
EXPECTED: dict[str, Callable[[Sequence[Fault]], bool]] = {
    "source failing of plugin": lambda _: True,
    "has ended by itself (SIGKILL)": lambda faults: any(fault.kind == "kill worker" for fault in faults),
}
NEVER = ("has lost a part of its log", "abandoned", "part of a log has failed", "cut off")


async def audit(scene: Scene, shelf: Shelf, result: Result) -> list[str]:
    """End the replicas, too. Returns what is wrong, in words."""
    wrong = [*_of_redis(scene, shelf), *await _read_back(scene), *await _left(scene, shelf, result)]
    peak = result.peak
    if peak.rss > MOST_RSS:
        wrong.append(f"a process had {peak.rss / MIB:.0f} MiB")
    if peak.fds > result.options["clients"] + SPARE_FDS:
        wrong.append(f"a process had {peak.fds} open files")
    codes = {replica.name: await replica.end() for replica in scene.replicas}
    wrong += [f"replica {name} has ended with {code} after SIGTERM" for name, code in codes.items() if code]
    if eternal := shelf.eternal():
        wrong.append(f"{len(eternal)} keys have no end: {eternal[:5]}")
    return wrong


def _of_redis(scene: Scene, shelf: Shelf) -> list[str]:
    """The logs as they are stored: whole, and what the clients have seen."""
    wrong: list[str] = []
    for source in SHARED:
        records = shelf.log_of(source)
        offsets = [record.offset for record in records]
        if offsets != list(range(offsets[0], offsets[0] + len(offsets))):
            wrong.append(f"{source}: its offsets in Redis do not follow each other")
        if any(later.at <= before.at for before, later in pairwise(records)):
            wrong.append(f"{source}: the times in Redis do not rise")
        found = events_of(records)
        if source != "failing" and [data["n"] for data in found] != offsets:
            wrong.append(f"{source}: the numbers in Redis are not its offsets")
        wrong += scene.witness.compare(source, found, "in Redis")
        if (last := scene.witness.last(source)) > found[-1]["n"]:
            wrong.append(f"{source}: clients have seen {last}, and Redis has no more than {found[-1]['n']}")
    return wrong


async def _read_back(scene: Scene) -> list[str]:
    """The same, as a replica serves it to who asks for all that there is."""
    wrong: list[str] = []
    for replica in scene.replicas:
        for source in SHARED:
            count = min(scene.witness.last(source), BOUNDED[source], READ_BACK)
            found = await replica.get(f"/sse/{source}?since=earliest&limit={count}", Accept="application/json")
            if found is None:
                wrong.append(f"replica {replica.name} does not give {source} from its beginning: {replica.said}")
                continue
            events = [one["data"] for one in found if not one["event"].startswith("stream.")]
            wrong += scene.witness.compare(source, events, f"at replica {replica.name}")
            if len(events) != count:
                wrong.append(f"replica {replica.name} gives {len(events)} of {source}, asked for {count}")
    return wrong


async def _left(scene: Scene, shelf: Shelf, result: Result) -> list[str]:
    """Wait until private runs have expired; what is left then that should not be."""
    deadline = time.monotonic() + LINGER + 4 * scene.journal.lease + MARGIN
    while True:
        wrong = await _too_much(scene, shelf, result)
        if not wrong or time.monotonic() > deadline:
            return wrong
        await asyncio.sleep(1)


async def _too_much(scene: Scene, shelf: Shelf, result: Result) -> list[str]:
    keys = shelf.keys()
    result.keys_left = dict(keys)
    processes, shards = sum(len(replica.serving) for replica in scene.replicas), result.options["shards"]
    most = {**dict.fromkeys(SHARED, 2), "live": processes * shards, "box": processes, **dict.fromkeys(PRIVATE, 0)}
    wrong = [f"left in Redis: {keys[kind]} keys of {kind}" for kind, count in most.items() if keys[kind] > count]
    for replica in scene.replicas:
        for _ in range(ASKED * (len(replica.serving) > 1) or 1):
            found = await replica.get("/sse/held?trim=true", Accept="application/json")
            wrong += (
                _of_process(found[0]["data"], replica.name) if found else [f"replica {replica.name}: {replica.said}"]
            )
    return wrong


def _of_process(held: dict[str, Any], name: str) -> list[str]:
    counts = held["counts"]
    wrong = [f"{counts['Subscription'] - 1} subscriptions"] * (counts["Subscription"] > 1)
    wrong += [f"{counts['Run']} runs"] * (counts["Run"] > LEFT_RUNS)
    wrong += [f"{held['tasks']} tasks"] * (held["tasks"] > LEFT_TASKS)
    return [f"replica {name} has still {what}" for what in wrong]


def faults_of_log(name: str, text: str, faults: Sequence[Fault]) -> list[str]:
    """What should not be in the log of a replica."""
    wrong: list[str] = []
    for line in text.splitlines():
        try:
            said = json.loads(line)
        except ValueError:
            wrong.append(line)
            continue
        message = said["message"]
        is_bad = said["level"] in {"ERROR", "CRITICAL"} or any(words in message for words in NEVER)
        if is_bad and not any(words in message and why(faults) for words, why in EXPECTED.items()):
            wrong.append(f"{said['time']} {said['level']} {message} {said.get('exception', '')}")
    found = [f"in the log of replica {name}: {line}" for line in wrong[:10]]
    return found + [f"and {len(wrong) - 10} more lines"] * (len(wrong) > 10)
