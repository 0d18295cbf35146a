"""A function in a thread of its own, which nobody has to wait for. What is called, and why, is not said here."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

T = TypeVar("T")


async def in_thread(function: Callable[[], T], name: str) -> T:
    """What it returns. Its thread does not keep the process: what never ends is not waited for at the end, as it would
    be in a thread of the loop's executor.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()

    def set_unless_done(set_it: Callable[[], None]) -> None:
        if not done.done():
            set_it()

    def run() -> None:
        try:
            result = function()
        except BaseException as error:  # noqa: BLE001 - raised where it is waited for
            failure = error if isinstance(error, Exception) else RuntimeError(f"it raised {error!r}")
            said: Callable[[], None] = lambda: done.set_exception(failure)  # noqa: E731
        else:
            said = lambda: done.set_result(result)  # noqa: E731
        with suppress(RuntimeError):  # the loop is closed: nobody waits for it any more
            loop.call_soon_threadsafe(set_unless_done, said)

    threading.Thread(target=run, name=name, daemon=True).start()
    return await done
