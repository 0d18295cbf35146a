"""The streams that are open: counted against the limits while they are, and a line in the log when they end."""

from __future__ import annotations

import ipaddress
import logging
import time
from collections import Counter
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from ..errors import FullError, TooOftenError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from ..access import Principal
    from ..hub import Hub
    from ..policy import Limits
    from ..settings import Settings
    from ..subscription import Subscription

log = logging.getLogger("eventmux.access")

BURST = 5.0  # seconds of new streams that may come at once: everybody, after a restart


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks for a stream, of which sources. `address`: of the client, as far as it is known. `trace`: the request's
    `traceparent` (W3C Trace Context).
    """

    principal: Principal
    sources: tuple[str, ...]
    address: str | None = None
    trace: str | None = None


class Visits:
    """Lets callers in as far as there is room. `limits` may be replaced; who is in stays."""

    def __init__(self, limits: Limits, hub: Hub) -> None:
        self.limits = limits
        self._hub = hub
        self._open: dict[Subscription, Caller] = {}
        self._of_principal: Counter[str] = Counter()
        self._of_address: Counter[str] = Counter()
        self._tokens = _most(limits)
        self._filled = time.monotonic()

    def follow(self, settings: Settings) -> Callable[[], None]:
        """As a Part of the service."""

        def apply() -> None:
            self.limits = settings.limits

        return apply

    def __len__(self) -> int:
        return len(self._open)

    def review(self, may_still: Callable[[Principal, Iterable[str]], bool]) -> None:
        """End the streams of those who may not have them any more, as when a token expires; a few at a time."""
        lost = [
            subscription
            for subscription, caller in self._open.items()
            if not may_still(caller.principal, caller.sources)
        ]
        if lost:
            self._hub.send_away(lost, "expired")

    def check(self, caller: Caller) -> None:
        """Raises FullError where there is no room for one more, before anything is done for it."""
        self._check(caller, _place(caller.address))

    def begin(self, caller: Caller, subscribe: Callable[[], Subscription]) -> Subscription:
        """What `subscribe` gives, counted until it is closed. Raises FullError where there is no room."""
        place = _place(caller.address)
        self._check(caller, place)
        subscription = subscribe()
        self._tokens -= 1
        self._open[subscription] = caller
        self._count(caller, place, 1)
        subscription.on_close = partial(self._end, caller, place, time.monotonic())
        return subscription

    def _check(self, caller: Caller, place: str | None) -> None:
        limits, now = self.limits, time.monotonic()
        self._tokens = min(_most(limits), self._tokens + (now - self._filled) * limits.new_streams)
        self._filled = now
        if len(self) >= limits.streams:
            raise FullError(f"there are {len(self)} streams, and no more are taken now")
        who = caller.principal.id
        if who and self._of_principal[who] >= limits.streams_per_principal:
            raise FullError(f"you have {limits.streams_per_principal} streams open: close one")
        if place and self._of_address[place] >= limits.streams_per_address:
            raise FullError(f"{limits.streams_per_address} streams are open from your address: close one")
        if self._tokens < 1:
            raise TooOftenError(f"more than {limits.new_streams:g} streams begin in a second")

    def _count(self, caller: Caller, place: str | None, change: int) -> None:
        for counter, key in ((self._of_principal, caller.principal.id), (self._of_address, place)):
            if key:
                counter[key] += change
                if not counter[key]:
                    del counter[key]

    def _end(self, caller: Caller, place: str | None, began: float, subscription: Subscription) -> None:
        del self._open[subscription]
        self._count(caller, place, -1)
        if log.isEnabledFor(logging.INFO):
            fields = {
                "principal": caller.principal.id,
                "address": caller.address,
                "sources": ",".join(caller.sources),
                "seconds": round(time.monotonic() - began, 3),
                "events": subscription.events,
                "bytes": subscription.bytes,
                "reason": subscription.reason or "left",
                "lag": subscription.lag,
                "trace": caller.trace,
            }
            log.info("stream ended", extra={key: value for key, value in fields.items() if value is not None})


def _most(limits: Limits) -> float:
    """New streams that may come at once."""
    return max(1.0, BURST * limits.new_streams)


def _place(address: str | None) -> str | None:
    """What an address is counted as. A line of IPv6 has a network of 2**64 addresses to itself (RFC 6177), which a
    client may use as it likes; one of IPv4 may be written as one of IPv6 (RFC 4291, 2.5.5.2).
    """
    if address is None or ":" not in address:
        return address
    try:
        found = ipaddress.IPv6Address(address)
    except ValueError:  # whatever a trusted proxy says
        return address
    return str(found.ipv4_mapped or ipaddress.IPv6Address(int(found) >> 64 << 64))
