"""One subscription on its way to one client: its heartbeats, its time-out and its end. How bytes are sent is not said
here; the portable and the direct outlet do that.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
import time
from typing import TYPE_CHECKING

from ..meter import Meter
from ..notice import Notices
from ..step import Piece
from .wheel import Wheel

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..config import ServerConfig
    from ..settings import Settings
    from ..subscription import Subscription
    from .formats import Format

log = logging.getLogger("eventmux.stream")

PIECE = 8 * 1024  # bytes handed to the server at a time: the time-out is for one that takes nothing, not for one that
# takes much slowly


class Delivery:
    """What all outlets of a service have in common. `is_direct`: whether streams may take over their connections."""

    def __init__(self, server: ServerConfig, meter: Meter | None = None) -> None:
        self.meter = meter or Meter()
        self.notices = Notices(log)
        self.heartbeat = server.heartbeat
        self.send_timeout = server.send_timeout
        self.is_direct = server.direct
        self.retry = server.retry
        self.spread, self.max_lifetime = server.spread, server.max_lifetime
        self.wheel = _wheel(server)

    def follow(self, settings: Settings) -> Callable[[], None]:
        """As a Part of the service: streams that are open are treated so, too."""
        return lambda: self._apply(settings.config.server)

    def _apply(self, server: ServerConfig) -> None:
        self.retry, self.spread = server.retry, server.spread
        before = (self.heartbeat, self.send_timeout, self.max_lifetime)
        if before != (server.heartbeat, server.send_timeout, server.max_lifetime):
            self.heartbeat, self.send_timeout, self.max_lifetime = (
                server.heartbeat,
                server.send_timeout,
                server.max_lifetime,
            )
            open_ones, self.wheel = self.wheel.stop(), _wheel(server)
            for outlet in open_ones:
                if self.max_lifetime != before[2]:
                    outlet.live_on()
                outlet.rewind()

    def close(self) -> None:
        """The service is over: whoever has not taken its end by now is cut off."""
        for outlet in self.wheel.stop():
            outlet.fail()
        self.notices.close()

    def cut_off(self) -> None:
        """A client has taken nothing for too long."""
        self.meter.slow["send_timeout"] += 1
        self.notices.warning("cut off", "a client took nothing for %g seconds: cut off", self.send_timeout)

    def jittered_retry(self) -> int:
        """Milliseconds. Clients that are sent away together must not come back together."""
        return int(self.retry + random.uniform(0, self.spread * 1000))  # noqa: S311 - not a secret

    def deadline(self, now: float) -> float:
        """When a stream that begins now ends of old age, by the loop's clock: jittered, since many begin together."""
        if self.max_lifetime is None:
            return math.inf
        return now + self.max_lifetime * random.uniform(0.8, 1)  # noqa: S311 - not a secret


def _wheel(server: ServerConfig) -> Wheel[Outlet]:
    return Wheel(min(0.25, min(server.heartbeat, server.send_timeout) / 16))


class Outlet:
    """Gives a subscription's bytes to a client until one of them ends it.

    A kind of outlet says how: `write`, `_finish` and `_sever`. It is full while the client takes nothing: then `_rest`,
    and `_last` where the stream has ended meanwhile, are still to be sent.

    `expires`: seconds since 1970 when the client's right to the stream ends, None for never.
    """

    __slots__ = (
        "_deadline",
        "_delivery",
        "_expires",
        "_form",
        "_full_since",
        "_is_full",
        "_last",
        "_rest",
        "_subscription",
        "_wrote",
        "tick",
    )

    def __init__(self, delivery: Delivery, subscription: Subscription, form: Format, expires: float | None) -> None:
        self.tick = 0
        self._delivery = delivery
        self._subscription = subscription
        self._form = form
        self._is_full = False
        self._full_since = self._wrote = 0.0
        self._rest: memoryview | bytes = b""
        self._last: bytes | None = None
        self._expires = self._deadline = math.inf if expires is None else expires

    def start(self) -> None:
        self._wrote = now = asyncio.get_running_loop().time()
        self._expires += now - time.time()
        self.live_on()
        self.rewind()
        self._subscription.start(self)

    def live_on(self) -> None:
        """From now on, for as long as a stream that begins now, if its right to be lasts so long."""
        self._deadline = min(self._expires, self._delivery.deadline(asyncio.get_running_loop().time()))

    def rewind(self) -> None:
        """Be rung in time; it must not be in the wheel."""
        now = asyncio.get_running_loop().time()
        due = now + min(self._delivery.heartbeat, self._delivery.send_timeout)
        self._delivery.wheel.add(self, min(due, self._deadline))

    def write(self, piece: Piece, now: float) -> bool:
        raise NotImplementedError

    def end(self) -> None:
        """Say goodbye to a client that may come back; nothing more will come to it."""
        words = self._subscription.last_words()
        if not self._subscription.is_over:
            words += self._form.farewell(self._delivery.jittered_retry())
        self._last = words + self._form.closing()
        self._finish()

    def fail(self) -> None:
        self._sever()

    def close(self) -> None:
        """The client has gone, or has everything."""
        self._delivery.wheel.discard(self)
        self._subscription.close()

    def ring(self, now: float) -> float | None:
        """A heartbeat where nothing was written, and the end of a client that takes nothing."""
        try:
            return self._ring(now)
        except Exception as error:  # noqa: BLE001 - whatever it is, the other outlets have done nothing
            self._subscription.fail(error)
            return None

    def _ring(self, now: float) -> float | None:
        delivery = self._delivery
        if now >= self._deadline:
            self._deadline = math.inf
            self._subscription.drain("expired" if now >= self._expires else "lifetime")
        if self._is_full:
            late = self._full_since + delivery.send_timeout
            if now < late:
                return min(late, self._deadline)
            delivery.cut_off()
            self._subscription.reason = "slow"
            self._sever()
            return None
        if now >= self._wrote + delivery.heartbeat:
            self._subscription.advance(now)  # what it lacks comes first, where the loop was late
            if now >= self._wrote + delivery.heartbeat:
                self._beat(now)
        return min(now + min(max(0, self._wrote + delivery.heartbeat - now), delivery.send_timeout), self._deadline)

    def _beat(self, now: float) -> None:
        self._wrote = now
        subscription = self._subscription
        if subscription.is_held:
            return  # it has ended
        beat = self._form.heartbeat(subscription.cursor if subscription.has_moved else b"")
        subscription.has_moved = False
        subscription.is_held = not self.write(Piece(beat), now)

    def _fill(self) -> None:
        """It can send no more now."""
        if not self._is_full:
            self._is_full = True
            self._full_since = asyncio.get_running_loop().time()

    def _finish(self) -> None:
        """Send `_last` and end the response, after what is still to be sent."""
        raise NotImplementedError

    def _sever(self) -> None:
        """End the connection now, whatever is still to be sent."""
        raise NotImplementedError
