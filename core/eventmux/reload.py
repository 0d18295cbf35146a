"""Reads plugins.yaml again when it has changed, or on SIGHUP. What is applied, and how, is the service's to say."""

from __future__ import annotations

import asyncio
import logging
import signal
import threading
from collections.abc import AsyncGenerator, Callable, Generator, Mapping
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from .background import in_thread
from .errors import ConfigError
from .plugins import digest, plugin_files
from .watch import changes

if TYPE_CHECKING:
    from .service import Service

log = logging.getLogger("eventmux.reload")

SETTLE_SECONDS = 0.1  # a file that is being written has another size after this time
LATE_SECONDS = 30.0  # after which it is said that a change is not applied yet
EMPTY_SECONDS = 1.0  # an editor that empties a file before it writes it, or removes it, has written it by then


class Reload:
    """One reload at a time; one that is asked for meanwhile runs after it."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._asked = asyncio.Event()
        self._seen: Mapping[str, str | None] = self._loaded()

    @asynccontextmanager
    async def running(self) -> AsyncGenerator[None, None]:
        """Follow the file, and SIGHUP, as long as this is entered."""
        tasks = [asyncio.create_task(self._serve(), name="eventmux reload")]
        if self._service.settings.file:
            tasks.append(asyncio.create_task(self._watch(), name="eventmux watch"))
        try:
            with _on_hangup(self._hang_up):
                yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)

    def _hang_up(self) -> None:
        if self._service.settings.file is None:
            log.warning("SIGHUP: there is no plugins.yaml that could be read again")
        self._asked.set()

    async def _serve(self) -> None:
        while True:
            await self._asked.wait()
            self._asked.clear()
            if self._service.settings.file and not self._service.hub.is_draining:
                await self._reload()

    async def _reload(self) -> None:
        service = self._service
        self._seen = self._content()
        late = asyncio.get_running_loop().call_later(LATE_SECONDS, self._tell_late)
        try:
            # Plugins are imported by this, which may take a second: streams go on meanwhile.
            prepared = await in_thread(service.prepare, "eventmux reload")
        except ConfigError as error:
            service.reject(error.problems)
        except Exception as error:
            log.exception("%s cannot be applied", service.settings.file)
            service.reject([f"{service.settings.file}: {type(error).__name__}, see the log"])
        else:
            if not service.hub.is_draining:
                service.apply(prepared)
                # Plugins may be in another directory now: what is there has been read already.
                seen = {**self._loaded(), **self._seen}
                self._seen = {path: seen.get(path) for path in self._content()}
        finally:
            late.cancel()

    def _tell_late(self) -> None:
        """Nobody can end a thread: changes wait behind this one."""
        text = f"a plugin has been imported for {LATE_SECONDS:g} seconds: if it does not end, start the service again"
        self._service.reject([f"{self._service.settings.file}: {text}"])

    async def _watch(self) -> None:
        await self._look()  # it may have changed between its reading and now
        async for _ in changes(self._files):
            await self._look()

    async def _look(self) -> None:
        if self._service.settings.config.server.watch and self._content() != self._seen:
            await self._settled()
            if self._content() != self._seen:
                self._asked.set()

    async def _settled(self) -> None:
        """Return when what is in the files stays the same."""
        found = None
        while found != (found := self._content()):  # noqa: ASYNC110 - nobody says when a file has been written
            await asyncio.sleep(EMPTY_SECONDS if self._is_empty() else SETTLE_SECONDS)

    def _is_empty(self) -> bool:
        try:
            return not Path(self._service.settings.file or "").stat().st_size
        except OSError:
            return True

    def _files(self) -> list[Path]:
        """The file and the single files that are plugins. The directory of these, too, for those that are new."""
        settings = self._service.settings
        directory = settings.plugin_directory
        return [Path(settings.file or ""), *((directory, *plugin_files(directory)) if directory else ())]

    def _content(self) -> dict[str, str]:
        return {str(path): digest(path) for path in self._files() if not path.is_dir()}

    def _loaded(self) -> dict[str, str | None]:
        """The content that the service began with."""
        settings = self._service.settings
        files = {plugin.target: plugin.digest for plugin in settings.plugins.found if plugin.distribution is None}
        return {str(Path(settings.file or "")): settings.digest, **files}


@contextmanager
def _on_hangup(call: Callable[[], None]) -> Generator[None, None, None]:
    """SIGHUP calls it, where the loop is the one of the process."""
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "SIGHUP"):
        yield
        return
    # Not by the loop's own handlers: when those are removed, a signal ends the process for a moment.
    loop = asyncio.get_running_loop()
    before = signal.signal(signal.SIGHUP, lambda *_: loop.call_soon_threadsafe(call))
    try:
        yield
    finally:
        signal.signal(signal.SIGHUP, before)
