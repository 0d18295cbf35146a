"""Keys of plugins.yaml that are read once, at the start; how what they said then is held against the file as it is now,
and handed to another process of the same service.
"""

from __future__ import annotations

import json
from operator import attrgetter
from typing import Any, TypeVar

from pydantic import BaseModel, SecretStr

from .config import Config

M = TypeVar("M", bound=BaseModel)

FIXED = (
    "server.host",
    "server.port",
    "server.tls",
    "server.http2",
    "server.direct",
    "server.grace",
    "server.trusted_proxies",
    "server.request_timeout",
    "server.stall",
    "store",
)


def hold(now: Config, start: Config) -> tuple[Config, tuple[str, ...]]:
    """What is served by, and the keys of which that is not what the file says now."""
    pending = tuple(key for key in FIXED if attrgetter(key)(start) != attrgetter(key)(now))
    for key in pending:
        now = _with(now, key, attrgetter(key)(start))
    return now, pending


def pack(start: Config) -> str:
    """For `unpack`, with all secrets: it is for a pipe between processes of one user."""
    return json.dumps(start.model_dump(include={"server", "store"}), default=_plain)


def unpack(text: str) -> Config:
    return Config.model_validate_json(text)


def _plain(value: Any) -> str:
    return value.get_secret_value() if isinstance(value, SecretStr) else str(value)


def _with(model: M, key: str, value: Any) -> M:
    """The model with another value at a key, which may lead into its sections: `server.port`."""
    name, _, rest = key.partition(".")
    return model.model_copy(update={name: _with(getattr(model, name), rest, value) if rest else value})
