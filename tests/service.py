"""The service on a real uvicorn with a port of its own: in a thread, or as the command in a process."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2

import portable
from eventmux.app import create_app
from eventmux.catalog import Catalog, EnabledSource
from eventmux.config import Config, LimitsConfig, ServerConfig, StoreConfig
from eventmux.hub import Hub
from eventmux.plugins import Plugins
from eventmux.settings import Settings, load_settings
from eventmux.source import Source
from eventmux.web.server import bind, make_server
from eventsource import PATIENCE, TRUST, EventSource, wait_until


class Client:
    """Whoever asks a service at `url`."""

    def __init__(self, url: str) -> None:
        self.url = url

    def open(self, path: str, **options: object) -> EventSource:
        return EventSource(self.url + path, **options)  # type: ignore[arg-type]

    def get(self, path: str, **options: object) -> httpx2.Response:
        return self.request("GET", path, **options)

    def post(self, path: str, **options: object) -> httpx2.Response:
        return self.request("POST", path, **options)

    def request(self, method: str, path: str, **options: object) -> httpx2.Response:
        words: dict[str, Any] = {"timeout": PATIENCE, "trust_env": False, "verify": TRUST, **options}
        return httpx2.request(method, self.url + path, **words)


class Service(Client):
    """A running service. `hub` may be looked at only for what no client can see: runs and subscriptions left over."""

    def __init__(self, url: str, hub: Hub) -> None:
        super().__init__(url)
        self.hub = hub

    def is_quiet(self) -> bool:
        return self.hub.runs == 0 and self.hub.subscriptions == 0


def settings_of(
    *sources: Source[...] | EnabledSource,
    streams: Mapping[str, Sequence[str]] | None = None,
    server: ServerConfig | None = None,
    limits: LimitsConfig | None = None,
    store: StoreConfig | None = None,
) -> Settings:
    """Settings of sources that a test has made, without a file. No run outlives its clients, unless they say so."""
    enabled = [s if isinstance(s, EnabledSource) else enable(s) for s in sources]
    catalog = Catalog({e.name: e for e in enabled}, streams or {})
    config = Config(server=server or ServerConfig(), limits=limits or LimitsConfig(), store=store or "memory")
    return Settings(config, Plugins((), {}), catalog)


def enable(source: Source[...], **policy: Any) -> EnabledSource:
    """A source as a test enables it, under a policy that begins with the author's and `linger=0`."""
    return EnabledSource(source.name, source, "test", policy=replace(source.policy, **{"linger": 0, **policy}))


@contextlib.contextmanager
def serving(settings: Settings, *, expect_quiet: bool = True) -> Iterator[Service]:
    """The service in a thread. On leaving it must end in time; by default no run may be left when clients are gone."""
    socket = bind("127.0.0.1", 0)
    app = create_app(settings)
    server = make_server(app, settings.config.server)
    leaked: list[str] = []

    async def main() -> None:
        await server.serve(sockets=[socket])
        leaked.extend(str(task) for task in asyncio.all_tasks() if "eventmux" in task.get_name())

    thread = threading.Thread(target=asyncio.run, args=(main(),))
    thread.start()
    service = Service(f"http://127.0.0.1:{socket.getsockname()[1]}", app.state.hub)
    try:
        wait_until(lambda: server.started, "the server to start")
        yield service
        if expect_quiet:
            wait_until(service.is_quiet, "every run to be closed after its clients have gone")
    finally:
        server.should_exit = True
        thread.join(PATIENCE + settings.config.server.grace)
        assert not thread.is_alive(), "the server did not end"
    assert leaked == []
    assert service.is_quiet(), "the service has ended, and a run has not"


@contextlib.contextmanager
def serving_file(text: str, path: Path, environ: Mapping[str, str] | None = None) -> Iterator[Service]:
    """The service in a thread, from a plugins.yaml with this text."""
    file = path / "plugins.yaml"
    file.write_text(text, "utf-8")
    with serving(load_settings(file, environ or {}), expect_quiet=False) as service:
        yield service


class Process:
    """`eventmux serve` as a user starts it."""

    def __init__(
        self,
        *arguments: str,
        cwd: Path,
        environ: Mapping[str, str] | None = None,
        prepare: Callable[[], None] | None = None,
    ) -> None:
        self.log = cwd / "serve.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "portable" if portable.chosen.is_set() else "eventmux",
                    "serve",
                    "--port",
                    "0",
                    *arguments,
                ],
                cwd=cwd,
                env={**os.environ, "PYTHONPATH": portable.python_path(), **(environ or {})},
                stdout=log,
                stderr=subprocess.STDOUT,
                preexec_fn=prepare,  # noqa: PLW1509 - it sets limits of the process, and no more
            )

    def wait_for_url(self) -> str:
        def found() -> str | None:
            assert self.process.poll() is None, self.log.read_text()
            match = re.search(r"^eventmux .* at (https?://\S+),", self.log.read_text(), re.MULTILINE)
            return match and match[1]

        url = str(wait_until(found, "the service to say where it listens"))
        wait_until(lambda: _answers(url), "the service to answer")
        return url

    def stop(self, sig: int = signal.SIGTERM) -> int:
        self.process.send_signal(sig)
        return self.process.wait(PATIENCE)


@contextlib.contextmanager
def serve_process(
    *arguments: str,
    cwd: Path,
    environ: Mapping[str, str] | None = None,
    prepare: Callable[[], None] | None = None,
) -> Iterator[Process]:
    process = Process(*arguments, cwd=cwd, environ=environ, prepare=prepare)
    try:
        yield process
    finally:
        if process.process.poll() is None:
            process.process.kill()
        process.process.wait(PATIENCE)


def _path() -> str:
    """Where this process finds the package, too: it may be another one than is installed."""
    return os.pathsep.join([str(portable.TESTS), *filter(None, [os.environ.get("PYTHONPATH")])])


def _answers(url: str) -> bool:
    try:
        return httpx2.get(f"{url}/healthz", trust_env=False, verify=False).status_code == 200
    except httpx2.TransportError:
        return False
