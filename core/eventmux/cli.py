"""The command: serve, plugins, sources, check, schema. What they show, and how they end, is said here and no more."""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import json
import logging
import os
import socket
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import click

from . import logs
from .child import take_inheritance
from .errors import ConfigError, NoDirectoryError
from .fixed import pack, unpack
from .overview import authority, count, faults_of, overview, plugin_row, some, source_rows, table
from .schema import config_schema
from .settings import DEFAULT_FILE, Settings, load_installed, load_outline, load_settings

if TYPE_CHECKING:
    from .config import Config, ServerConfig

T = TypeVar("T")

MAX_WORKERS = 256

config_option = click.option(
    "--config",
    type=click.Path(path_type=Path),
    help="The configuration; without it ./plugins.yaml, or the bundled sources where there is none.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="For a program to read.")


@click.group()
@click.version_option(package_name="eventmux")
@click.option("-v", "--verbose", is_flag=True, help="Show the traceback of a plugin that cannot be loaded.")
def main(*, verbose: bool) -> None:
    """Plug in event sources. Open one EventSource. Never lose an event."""
    logs.configure()
    logging.getLogger("eventmux").setLevel(logging.DEBUG if verbose else logging.NOTSET)
    # The service says itself where it listens; uvicorn's words about its process would hide that.
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    logging.getLogger("watchfiles").setLevel(logging.WARNING)


@main.command()
@config_option
@click.option("--host", help="The address to listen on; default 127.0.0.1.")
@click.option("--port", type=click.IntRange(0, 65_535), help="Default 8000; 0 takes a free one.")
@click.option("--workers", type=click.IntRange(1, MAX_WORKERS), default=1, show_default=True, help="Processes.")
@click.option("--strict", is_flag=True, help="Refuse to start with a broken plugin or an unavailable source.")
@click.option("--insecure", is_flag=True, help="Listen on other addresses than loopback without authentication.")
@click.option("--reload", is_flag=True, help="Start again when the code of a plugin changes.")
@click.option(
    "--log-format",
    type=click.Choice(["text", "json"]),
    default="text",
    show_default=True,
    help="A line of words, or an object, for each record of the log.",
)
def serve(
    config: Path | None,
    host: str | None,
    port: int | None,
    workers: int,
    *,
    strict: bool,
    insecure: bool,
    reload: bool,
    log_format: logs.Kind,
) -> None:
    """Serve the enabled sources."""
    from .web.sockets import end_at_once_on_signals, ignore_hangup, raise_open_files

    end_at_once_on_signals()
    inherited = take_inheritance()
    worker = inherited.worker if inherited else None
    logs.configure(log_format, worker.number if worker else None)
    logging.captureWarnings(capture=True)
    if reload and workers > 1:
        _fail(f"--reload --workers {workers}: one process is started again: leave one of the two out")
    given: dict[str, Any] = {key: value for key, value in {"host": host, "port": port}.items() if value is not None}
    if not inherited and (reload or workers > 1):
        _be_parent(config, given, workers)
    # Here and not above: with FastAPI and uvicorn every other command would take twice as long.
    from .app import create_app
    from .web.server import make_server

    settings = _read(load_settings, config)
    if reload:  # who writes a plugin does not wait for clients and proxies
        given.update(drain_delay=0.0, spread=0.0)
    settings = settings.with_server(given)
    if inherited and inherited.held:
        settings = settings.holding(unpack(inherited.held))
    server = settings.config.server
    if strict and (faults := faults_of(settings)):
        _fail("--strict: not started, because of", *faults)
    if not insecure and not settings.is_guarded and not _is_loopback(server.host):
        _fail(_open_to_all(server.host))
    limits = settings.config.limits
    is_told = worker is None or worker.number == 0  # once is enough
    raise_open_files(limits.streams if is_told and "streams" in limits.model_fields_set else None)
    app = create_app(settings, worker=worker)
    if not insecure:
        app.state.service.add(partial(_stay_guarded, server.host))
    listener = socket.socket(fileno=inherited.listener) if inherited else _bind(server)
    scheme = "https" if server.tls else "http"
    shown = overview(settings, f"{scheme}://{authority(*listener.getsockname()[:2])}")
    say = partial(inherited.say, shown, pack(settings.config)) if inherited and worker else partial(click.echo, shown)
    serving = make_server(app, server, owns_process=True, is_shared=worker is not None, on_start=say)
    if inherited:
        inherited.is_ending = lambda: serving.should_exit
    try:
        serving.run(sockets=[listener])
    except ConfigError as error:  # of a store that cannot be used, which it finds out when it begins
        _fail(*error.problems)
    ignore_hangup()


def _open_to_all(host: str) -> str:
    return (
        f"host {host}: others can reach it, and nobody is asked for a token: say in plugins.yaml under auth "
        "who may read, or add --insecure if all may"
    )


def _stay_guarded(host: str, settings: Settings) -> Callable[[], None]:
    """As a Part of the service: what it refuses to start with it does not come to by a change either."""
    if not settings.is_guarded and not _is_loopback(host):
        raise ConfigError([_open_to_all(host)])
    return lambda: None


def _bind(server: ServerConfig) -> socket.socket:
    from .web.sockets import bind

    try:
        return bind(server.host, server.port)
    except (OSError, TypeError) as error:  # TypeError: a host that is no name, for IDNA or for its NUL
        _fail(f"cannot listen on {authority(server.host, server.port)}: {_why_not_bound(error)}")


def _be_parent(config: Path | None, given: dict[str, Any], workers: int) -> NoReturn:
    """Of the processes that serve, which are the same command again. This one only holds the socket."""
    outline, directory = _outline(config)
    if workers > 1 and outline.store == "memory":
        _fail(
            f"--workers {workers}: with store: memory, each process would have streams of its own: say in plugins.yaml "
            "store: redis://host:6379/0, or leave --workers out"
        )
    server = outline.server.model_copy(update=given)
    listener = _bind(server)
    if workers > 1:
        from .workers import Workers

        try:
            sys.exit(Workers(listener, workers, partial(_time_to_end, config, server), click.echo).run())
        except NoDirectoryError as error:
            _fail(str(error))
    from .supervisor import Supervisor

    Supervisor(listener, config or DEFAULT_FILE, directory, server.grace).run()
    sys.exit()


def _outline(config: Path | None) -> tuple[Config, Path | None]:
    try:
        return load_outline(config)
    except ConfigError:
        _read(load_settings, config)  # which says whatever else is wrong, too
        return _read(load_outline, config)


def _time_to_end(config: Path | None, server: ServerConfig) -> float:
    """Seconds. `drain_delay` may have changed since the start."""
    with contextlib.suppress(ConfigError):
        now = load_outline(config)[0].server
        return max(server.drain_delay, now.drain_delay) + server.grace
    return server.drain_delay + server.grace


@main.command()
@config_option
@json_option
def plugins(config: Path | None, *, as_json: bool) -> None:
    """List the plugins, and what is wrong with them."""
    found = _read(load_installed, config)
    if as_json:
        click.echo(json.dumps([plugin_row(plugin) for plugin in found.found], indent=2))
        return
    rows = [
        (p.name, p.distribution or p.target, p.version or "", p.state, some([source.name for source in p.sources]))
        for p in found.found
    ]
    click.echo(table(("plugin", "distribution", "version", "state", "sources"), rows))
    for plugin in found.broken:
        click.echo(f"\n{plugin.title}: {plugin.error}")


@main.command()
@config_option
@json_option
def sources(config: Path | None, *, as_json: bool) -> None:
    """List what is enabled, with URLs."""
    settings = _read(load_settings, config)
    server = settings.config.server
    base = f"{'https' if server.tls else 'http'}://{authority(server.host, server.port)}"
    if as_json:
        click.echo(json.dumps(source_rows(settings, base), indent=2))
    else:
        click.echo(overview(settings, base))


@main.command()
@click.argument("file", type=click.Path(path_type=Path), required=False)
def check(file: Path | None) -> None:
    """Check FILE, or ./plugins.yaml, against the plugins.

    Exits 1 if anything is wrong with them. A source that waits for an environment variable is only mentioned.
    """
    settings = _read(load_settings, file)
    for fault in faults_of(settings):
        click.echo(fault, err=True)
    if settings.plugins.broken:
        sys.exit(1)
    unavailable = sum(bool(enabled.unavailable) for enabled in settings.catalog.sources.values())
    counted = count(len(settings.catalog.sources), "source") + (f" ({unavailable} unavailable)" if unavailable else "")
    streams = count(len(settings.catalog.streams), "stream")
    click.echo(f"{settings.file or 'no plugins.yaml, the bundled sources'}: no fault; {counted}, {streams}")


@main.command()
@config_option
def schema(config: Path | None) -> None:
    """Print the JSON Schema of plugins.yaml, made from the plugins."""
    click.echo(json.dumps(config_schema(_read(load_installed, config)), indent=2))


def _read(load: Callable[[Path | None], T], config: Path | None) -> T:
    try:
        with contextlib.redirect_stdout(sys.stderr):  # what a plugin prints when it is imported is no part of our JSON
            return load(config)
    except ConfigError as error:
        _fail(*error.problems)


def _fail(*lines: str) -> NoReturn:
    for line in lines:
        click.echo(line, err=True)
    sys.exit(1)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _why_not_bound(error: Exception) -> str:
    number = error.errno if isinstance(error, OSError) else None
    if number == errno.EADDRINUSE:
        return "another program listens there: stop it, or choose another --port"
    if number == errno.EACCES:
        return "this user may not: choose a --port above 1023"
    reason = os.strerror(number) if number and number > 0 else "not the name of a host"
    return f"{reason}: choose another --host"
