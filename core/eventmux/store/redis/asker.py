"""Questions of many callers on one connection: what waits goes out in one write, and comes back in its order."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from redis.exceptions import MovedError, NoScriptError, ResponseError

from ...errors import ConfigError, StoreAwayError
from .commands import Command
from .greeting import FORBIDDEN, LostError, words_of
from .link import PAUSE, SOON, Backoff, Link

_log = logging.getLogger(__name__)

# What a script's error has in its text, in 6.2 behind "ERR Error running script": the server takes nothing now.
REFUSALS = ("READONLY", "MISCONF", "NOREPLICAS", *FORBIDDEN)


@dataclass(eq=False)
class _Question:
    commands: Sequence[Command]
    future: asyncio.Future[list[Any]]
    until: float
    answers: dict[int, Any] = field(default_factory=dict)

    def fail(self, reason: str) -> None:
        if not self.future.done():
            self.future.set_exception(StoreAwayError(reason))

    def finish(self) -> None:
        if not self.future.done():
            self.future.set_result([self.answers[i] for i in range(len(self.commands))])


class Asker:
    """`fault`: why nothing can be asked now; `on_fault` is called when that changes. `on_up` is called when something
    can be asked again.
    """

    def __init__(
        self, link: Link, timeout: float, on_up: Callable[[], None], on_fault: Callable[[], None] = lambda: None
    ) -> None:
        self.link = link
        self.fault: str | None = None
        self._timeout = timeout
        self._on_up = on_up
        self._on_fault = on_fault
        self._waiting: list[_Question] = []
        self._hindrance: str | None = None  # why what was asked last has to be asked again
        self._asked = asyncio.Event()
        self._is_up = asyncio.Event()

    async def ask(self, commands: Sequence[Command]) -> list[Any]:
        """An answer for each; what the server refused is a ResponseError. Raises StoreAwayError."""
        try:
            async with asyncio.timeout(self._timeout):
                return await self.put(commands)
        except TimeoutError:
            reason = self.fault or self._hindrance or f"{self.link.name} does not answer within {self._timeout:g} s"
            raise StoreAwayError(reason) from None

    def put(self, commands: Sequence[Command]) -> asyncio.Future[list[Any]]:
        """As `ask`, for who does not wait for it."""
        loop = asyncio.get_running_loop()
        question = _Question(commands, loop.create_future(), loop.time() + self._timeout)
        if self.fault is not None:
            question.fail(self.fault)
        else:
            self._waiting.append(question)
            self._asked.set()
        return question.future

    async def up(self) -> None:
        """Returns when it can be asked."""
        await self._is_up.wait()

    def away(self, reason: str) -> None:
        """It cannot be asked now: whoever waits is told so."""
        self._is_up.clear()
        self.fault = reason
        self._on_fault()
        waiting, self._waiting = self._waiting, []
        for question in waiting:
            question.fail(reason)

    async def run(self) -> None:
        """For ever. `link` is connected, or `away` was called."""
        backoff = Backoff()
        while True:
            try:
                if not self.link.is_up:
                    await self.link.connect()
                self._came_up()
                await self._serve(backoff)
            except (LostError, ConfigError) as error:
                if not self._is_up.is_set():  # it was not lost, but could not be had
                    self.away(str(error))
                self._is_up.clear()
            except Exception as error:  # noqa: BLE001 - nobody waits for this task: it is said, and tried again
                _log.exception("the store has failed")
                self.away(f"{type(error).__name__}, see the log")
                await self.link.drop()
            await asyncio.sleep(backoff.next())

    def _came_up(self) -> None:
        was_away, self.fault = self.fault is not None, None
        self._is_up.set()
        self._on_fault()
        if was_away:
            self._on_up()

    async def _serve(self, backoff: Backoff) -> None:
        while True:
            await self._asked.wait()
            self._asked.clear()
            try:
                await self.link.verify()
            except LostError:
                self._asked.set()  # on the next connection
                raise
            waiting, self._waiting = self._waiting, []
            await self._answer([one for one in waiting if not one.future.done()])
            backoff.reset()

    async def _answer(self, questions: list[_Question]) -> None:
        """Ask them all; what a server could not answer is asked again, of another one if that was said."""
        reason, self._hindrance = f"{self.link.name} was lost", None
        try:
            while questions:
                again = await self._exchange(questions)
                questions = [one for one in questions if len(one.answers) < len(one.commands)]
                if again is None:
                    continue
                reason = self._hindrance = f"{self.link.name}: {words_of(again)}"
                await self._turn_to(again)
                late = [one for one in questions if one.until < asyncio.get_running_loop().time()]
                for one in late:
                    one.fail(reason)
                questions = [one for one in questions if one not in late]
        except (LostError, ConfigError) as error:
            reason = str(error)
            raise
        finally:
            for one in questions:
                one.fail(reason)

    async def _exchange(self, questions: Sequence[_Question]) -> ResponseError | None:
        """Returns why something must be asked again, if so."""
        places = [(one, i) for one in questions for i in range(len(one.commands)) if i not in one.answers]
        answers = await self.link.exchange([one.commands[i] for one, i in places], self._timeout)
        again: ResponseError | None = None
        for (one, i), answer in zip(places, answers, strict=True):
            if not isinstance(answer, ResponseError):
                one.answers[i] = answer
            elif isinstance(answer, NoScriptError | SOON):
                again = answer
            elif any(word in f"{answer.status_code} {answer}" for word in REFUSALS):
                await self.link.drop()
                raise LostError(f"{self.link.name} takes nothing now: {words_of(answer)}")
            else:
                one.answers[i] = answer
        for one in questions:
            if len(one.answers) == len(one.commands):
                one.finish()
        return again

    async def _turn_to(self, again: ResponseError) -> None:
        if isinstance(again, MovedError):
            self.link.move((again.host, again.port))
        elif not isinstance(again, NoScriptError):
            await asyncio.sleep(PAUSE)
            return
        await self.link.connect()
