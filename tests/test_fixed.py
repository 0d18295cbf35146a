"""What is read once, at the start, is the same for every process of a service, whenever it begins."""

from __future__ import annotations

from typing import Any

import pytest

from eventmux.config import Config
from eventmux.fixed import hold, pack, unpack

START = {
    "server": {"tls": {"cert": "a.crt", "key": "a.key", "password": "of the key"}, "grace": 7, "heartbeat": 3},
    "store": {"url": "redis://:p%40ss@redis:6379/0", "lease": 2},
}


@pytest.mark.parametrize("start", [START, {}, {"store": "memory"}])
def test_what_is_handed_on_is_whole_secrets_and_all(start: dict[str, Any]) -> None:
    config = Config.model_validate(start)
    assert unpack(pack(config)) == config


def test_what_the_file_says_now_waits_where_it_is_read_once_and_holds_where_it_is_not() -> None:
    start = Config.model_validate(START)
    now = Config.model_validate({"server": {"grace": 8, "heartbeat": 4}, "limits": {"runs": 5}})
    held, pending = hold(now, unpack(pack(start)))
    assert pending == ("server.tls", "server.grace", "store")
    assert (held.server.tls, held.server.grace, held.store) == (start.server.tls, 7, start.store)
    assert (held.server.heartbeat, held.limits.runs) == (4, 5)
    assert hold(start, start) == (start, ())
