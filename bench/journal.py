"""What was broken, when, and on whom: by that one can tell whether what a client is told of a loss is true."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from dataclasses import dataclass, field

# Of a lease: who is held up for longer may have lost it. It is renewed at each third, so two thirds are left, of which
# a connection that was lost takes up to 0.4 seconds to be there again.
RENEWED = 0.25
AFTER = 5.0  # seconds in which what follows from a fault is still seen

ENDS = frozenset({"kill", "kill worker", "end"})  # after them a process is gone, and what only it had
HOLDS = frozenset(
    {"freeze", "freeze worker", "cut off", "stall", "slow link", "slow machine"}
)  # after them it may be thought so
SEVERS = ENDS | {"freeze", "freeze worker", "slow machine"}  # after them its clients may have lost their connections
EVERYBODY = frozenset({"slow machine"})


@dataclass(slots=True)
class Fault:
    """`target`: a replica's name, `redis`, `clients`; `pids`: of the processes that it is for. `back`: seconds after
    its end until all clients had events again.
    """

    kind: str
    target: str
    pids: frozenset[int]
    begin: float
    end: float = math.inf
    back: float | None = None

    def is_for(self, pid: int | None) -> bool:
        return pid is None or pid in self.pids or self.kind in EVERYBODY

    def seconds(self, now: float) -> float:
        return min(self.end, now) - self.begin


@dataclass(slots=True)
class Journal:
    """Times are those of time.monotonic."""

    lease: float
    faults: list[Fault] = field(default_factory=list)

    def begin(self, kind: str, target: str, pids: Iterable[int] = ()) -> Fault:
        fault = Fault(kind, target, frozenset(pids), time.monotonic())
        self.faults.append(fault)
        return fault

    def note_slowness(self, seconds: float) -> None:
        """The machine gave this process no time for so long, nor, perhaps, any other."""
        now = time.monotonic()
        self.faults.append(Fault("slow machine", "all", frozenset(), now - seconds, now))

    def can_have_lost(self, pid: int | None, since: float) -> bool:
        """Whether others may take the process for dead, or it is, since then. None: whichever process it is."""
        now = time.monotonic()
        return any(
            fault.is_for(pid)
            and fault.end + AFTER >= since
            and (fault.kind in ENDS or (fault.kind in HOLDS and fault.seconds(now) > RENEWED * self.lease))
            for fault in self.faults
        )

    def can_have_severed(self, target: str, since: float) -> bool:
        """Whether a connection to this replica may have broken, or a stream ended, since then."""
        return any(
            (fault.target == target or fault.kind in EVERYBODY) and fault.kind in SEVERS and fault.end + AFTER >= since
            for fault in self.faults
        )

    def is_calm(self, since: float) -> bool:
        """Whether all was well since then: nobody may be turned away."""
        return all(fault.end + AFTER < since for fault in self.faults)

    def told(self) -> list[str]:
        """The last ones, for who asks what a violation may come from."""
        now = time.monotonic()
        return [
            f"{one.kind} {one.target} {sorted(one.pids)} {now - one.begin:.1f} to {max(0.0, now - one.end):.1f} s ago"
            for one in self.faults[-8:]
        ]
