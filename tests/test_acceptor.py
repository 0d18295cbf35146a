"""Connections that wait are shared by all who accept from one socket."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
from collections.abc import AsyncIterator, Iterator
from functools import partial
from itertools import chain
from typing import Any

import pytest

from eventmux.web import acceptor as module
from eventmux.web.acceptor import Acceptor
from eventmux.web.server import bind
from eventsource import PATIENCE

pytestmark = pytest.mark.anyio

CLIENTS = 100


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with bind("127.0.0.1", 0) as listener:
        yield listener


@contextlib.contextmanager
def connected(listener: socket.socket, count: int) -> Iterator[list[socket.socket]]:
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(socket.create_connection(listener.getsockname())) for _ in range(count)]


class Taking(asyncio.Protocol):
    def __init__(self, taken: list[asyncio.BaseTransport]) -> None:
        self._taken = taken

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._taken.append(transport)


@contextlib.asynccontextmanager
async def accepting(*listeners: socket.socket) -> AsyncIterator[list[list[asyncio.BaseTransport]]]:
    """What each of them has accepted."""
    loop = asyncio.get_running_loop()
    taken: list[list[asyncio.BaseTransport]] = [[] for _ in listeners]
    acceptors = [
        Acceptor(loop, listener, partial(Taking, mine), {}) for listener, mine in zip(listeners, taken, strict=True)
    ]
    yield taken
    for acceptor in acceptors:
        acceptor.close()
    for transport in chain(*taken):
        transport.close()
    await asyncio.sleep(0.01)  # until they are closed


async def test_who_is_first_does_not_take_all_that_wait(listener: socket.socket, anyio_backend: str) -> None:
    with connected(listener, CLIENTS), listener.dup() as other:
        async with accepting(listener, other) as (mine, others):
            while len(mine) + len(others) < CLIENTS:
                await asyncio.sleep(0)
            assert abs(len(mine) - len(others)) <= CLIENTS // 10


class Full(socket.socket):
    """Of a process that has as many files as it may, for a moment."""

    tries = 0

    def accept(self) -> tuple[socket.socket, Any]:
        self.tries += 1
        if self.tries < 3:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return super().accept()


async def test_where_no_file_is_left_it_is_tried_again_after_a_while(
    anyio_backend: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "PAUSE", 0.02)
    with bind("127.0.0.1", 0) as bound, Full(fileno=bound.detach()) as listener, connected(listener, 1):
        async with accepting(listener) as [taken]:
            async with asyncio.timeout(PATIENCE):
                while not taken:
                    await asyncio.sleep(0.001)
            assert listener.tries == 3
        assert caplog.text.count("no connection can be accepted for a moment: Too many open files") == 2
