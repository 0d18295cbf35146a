"""The other workers of the service, and what they say when they are asked: over sockets in a directory that only this
user can enter. What is asked, and who may know it, is not said here.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..worker import Worker

log = logging.getLogger("eventmux.siblings")

PATIENCE = 1.0  # seconds for an answer
MAX_QUESTION, MAX_ANSWER = 64, 64 * 1024 * 1024  # bytes
_LENGTH = 4  # bytes before an answer

Answer = Callable[[], Awaitable[bytes]]


class Siblings:
    """Where there is one process only, there are none, and nothing is opened."""

    def __init__(self, worker: Worker | None) -> None:
        self._worker = worker
        self._answers: dict[str, Answer] = {}
        self._asked: dict[str, asyncio.Task[dict[int, bytes]]] = {}
        self._visits: set[asyncio.Task[None]] = set()

    @property
    def number(self) -> int:
        """Of the worker that asks."""
        return self._worker.number if self._worker else 0

    @property
    def others(self) -> tuple[int, ...]:
        return self._worker.siblings if self._worker else ()

    def answer(self, question: str, answer: Answer) -> None:
        """What this worker says when it is asked."""
        self._answers[question] = answer

    async def ask(self, question: str) -> Mapping[int, bytes]:
        """What each of the others says, by its number; who does not in time is left out.

        Who asks while the same is being asked gets the same: however many ask us, a sibling is asked once at a time.
        """
        if (asked := self._asked.get(question)) is None:
            asked = self._asked[question] = asyncio.create_task(self._ask_all(question), name="eventmux siblings")
            asked.add_done_callback(lambda _: self._asked.pop(question))
        return await asyncio.shield(asked)

    @contextlib.asynccontextmanager
    async def listening(self) -> AsyncGenerator[None, None]:
        """Answer the others, as long as this is entered."""
        if not self._worker:
            yield
            return
        path = self._worker.socket(self._worker.number)
        path.unlink(missing_ok=True)  # of one that was killed
        server = await asyncio.start_unix_server(self._visited, path, limit=MAX_QUESTION)
        parent = os.getppid()
        try:
            yield
        finally:
            server.close()
            for task in (*self._visits, *self._asked.values()):
                task.cancel()
            await asyncio.gather(*self._visits, *self._asked.values(), return_exceptions=True)
            path.unlink(missing_ok=True)
            if os.getppid() != parent:  # else it tidies up itself
                with contextlib.suppress(OSError):  # all but the last one leave others behind
                    self._worker.directory.rmdir()

    async def _ask_all(self, question: str) -> dict[int, bytes]:
        answers = await asyncio.gather(*(self._ask(number, question) for number in self.others))
        return {number: answer for number, answer in zip(self.others, answers, strict=True) if answer is not None}

    async def _ask(self, number: int, question: str) -> bytes | None:
        assert self._worker  # noqa: S101 - who has none has no others
        try:
            async with asyncio.timeout(PATIENCE):
                reader, writer = await asyncio.open_unix_connection(self._worker.socket(number))
                with contextlib.closing(writer):
                    writer.write(f"{question}\n".encode())
                    length = int.from_bytes(await reader.readexactly(_LENGTH))
                    return await reader.readexactly(length) if length <= MAX_ANSWER else None
        except (OSError, EOFError, TimeoutError) as error:
            log.debug("worker %d does not answer: %s", number, error)
            return None

    async def _visited(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if task := asyncio.current_task():
            self._visits.add(task)
            task.add_done_callback(self._visits.discard)
        with contextlib.closing(writer):
            try:
                async with asyncio.timeout(PATIENCE):
                    question = (await reader.readuntil()).decode(errors="replace").strip()
                    answer = await self._answers[question]()
                    writer.write(len(answer).to_bytes(_LENGTH) + answer)
                    await writer.drain()
            except (OSError, EOFError, TimeoutError, asyncio.LimitOverrunError, KeyError) as error:
                log.debug("a sibling gets no answer: %s", error)
