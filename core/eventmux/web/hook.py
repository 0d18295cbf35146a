"""The hook by which a plugin says who asks, called for one request."""

from __future__ import annotations

import asyncio
import inspect
import logging
import secrets
from collections.abc import Awaitable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ..access import Principal
from ..cursor import MARK
from ..errors import AuthenticationError, PluginError

if TYPE_CHECKING:
    from starlette.requests import HTTPConnection

    from ..plugins import Plugin

log = logging.getLogger("eventmux.auth")

HOOK_SECONDS = 10.0  # that a plugin may take to say who asks


async def asked(plugin: Plugin, connection: HTTPConnection) -> Principal | None:
    """What the plugin says. Raises what it refuses with, and PluginError for whatever else goes wrong in it."""
    given: list[Any] = []
    try:
        given = (plugin.authenticate or _nobody)(connection=connection)
        async with asyncio.timeout(HOOK_SECONDS):
            for found in given:
                answer = await found if isinstance(found, Awaitable) else found
                if answer is not None:
                    return _checked(answer)
    except AuthenticationError:
        raise
    except Exception as error:
        incident = secrets.token_hex(4)
        log.exception("plugin %s could not say who asks, incident %s", plugin.title, incident)
        raise PluginError(f"who sends this request could not be found out: incident {incident}") from error
    finally:
        for rest in given:
            if inspect.iscoroutine(rest):
                rest.close()  # one that was not asked any more
    return None


def _nobody(**_: object) -> list[Any]:
    return []


def _checked(answer: Any) -> Principal:
    if not isinstance(answer, Principal):
        raise TypeError(f"authenticate gave {type(answer).__name__}: return a Principal or None")
    if answer.has_expired():
        raise AuthenticationError("the credentials have expired: bring new ones")
    return replace(answer, scheme="hook", mark=MARK)
