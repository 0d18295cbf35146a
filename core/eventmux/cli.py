"""The command: serve, plugins, sources, check, schema. What they show, and how they end, is said here and no more."""

from __future__ import annotations

import ipaddress
import json
import logging
import sys
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from .app import create_app
from .config import Settings, load_settings
from .errors import ConfigError
from .schema import config_schema
from .web.server import bind, make_server

if TYPE_CHECKING:
    from .plugins import Plugin

config_option = click.option(
    "--config",
    type=click.Path(path_type=Path),
    help="The configuration; without it ./plugins.yaml, or the bundled sources where there is none.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="For a program to read.")


@click.group()
@click.version_option(package_name="eventmux")
def main() -> None:
    """Plug in event sources. Open one EventSource. Never lose an event."""
    logging.basicConfig(
        stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)-7s %(name)s: %(message)s"
    )
    # The service says itself where it listens; uvicorn's words about its process would hide that.
    logging.getLogger("uvicorn").setLevel(logging.WARNING)


@main.command()
@config_option
@click.option("--host", help="The address to listen on; default 127.0.0.1.")
@click.option("--port", type=click.IntRange(0, 65_535), help="Default 8000; 0 takes a free one.")
@click.option("--workers", type=click.IntRange(1), default=1, show_default=True, help="Processes.")
@click.option("--strict", is_flag=True, help="Refuse to start with a broken plugin or an unavailable source.")
@click.option("--insecure", is_flag=True, help="Listen on other addresses than loopback without authentication.")
def serve(
    config: Path | None, host: str | None, port: int | None, workers: int, *, strict: bool, insecure: bool
) -> None:
    """Serve the enabled sources."""
    settings = _settings(config)
    server = settings.config.server.model_copy(
        update={key: value for key, value in {"host": host, "port": port}.items() if value is not None}
    )
    if workers > 1:
        _fail(f"--workers {workers}: store: memory serves one process, and a cursor would be good on one of them only")
    if not insecure and not _is_loopback(server.host):
        _fail(f"{server.host} is not loopback, and nobody is asked for a token: add --insecure if that is meant")
    faults = [f"plugin {plugin.title}: {plugin.error}" for plugin in settings.plugins.broken]
    faults += [f"source {e.name}: {e.unavailable}" for e in settings.catalog.sources.values() if e.unavailable]
    if strict and faults:
        _fail("--strict:", *faults)
    app = create_app(settings)
    try:
        socket = bind(server.host, server.port)
    except OSError as error:
        _fail(f"cannot listen on {server.host}:{server.port}: {error.strerror}: free it, or choose another by --port")
    host, port = socket.getsockname()[:2]
    click.echo(_overview(settings, f"http://{f'[{host}]' if ':' in host else host}:{port}"))
    make_server(app, server).run(sockets=[socket])


@main.command()
@config_option
@json_option
def plugins(config: Path | None, *, as_json: bool) -> None:
    """List the plugins: name, distribution, version, sources, state, error."""
    found = _settings(config).plugins.found
    if as_json:
        click.echo(json.dumps([_plugin_row(plugin) for plugin in found], indent=2))
        return
    rows = [
        (p.name, p.distribution or p.target, p.version or "", ", ".join(s.name for s in p.sources), p.state, p.error or "")
        for p in found
    ]
    click.echo(_table(("plugin", "distribution", "version", "sources", "state", "error"), rows))


@main.command()
@config_option
@json_option
def sources(config: Path | None, *, as_json: bool) -> None:
    """List what is enabled, with URLs."""
    settings = _settings(config)
    base = f"http://{settings.config.server.host}:{settings.config.server.port}"
    if as_json:
        click.echo(json.dumps(_source_rows(settings, base), indent=2))
    else:
        click.echo(_overview(settings, base))


@main.command()
@click.argument("file", type=click.Path(path_type=Path), required=False)
def check(file: Path | None) -> None:
    """Check FILE (default ./plugins.yaml) against the installed plugins; exit 1 if anything is wrong."""
    settings = _settings(file)
    for plugin in settings.plugins.broken:
        click.echo(f"plugin {plugin.title}: {plugin.error}", err=True)
    for enabled in settings.catalog.sources.values():
        if enabled.unavailable:
            click.echo(f"source {enabled.name} is unavailable: {enabled.unavailable}", err=True)
    if settings.plugins.broken:
        sys.exit(1)
    where = settings.file or "no plugins.yaml, the bundled sources"
    click.echo(f"{where}: {len(settings.catalog.sources)} sources, {len(settings.catalog.streams)} streams, no fault")


@main.command()
@config_option
def schema(config: Path | None) -> None:
    """Print the JSON Schema of plugins.yaml, made from the installed plugins."""
    click.echo(json.dumps(config_schema(_settings(config).plugins), indent=2))


def _settings(config: Path | None) -> Settings:
    try:
        return load_settings(config)
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


def _plugin_row(plugin: Plugin) -> dict[str, Any]:
    return {
        "name": plugin.name,
        "distribution": plugin.distribution,
        "version": plugin.version,
        "target": plugin.target,
        "sources": [source.name for source in plugin.sources],
        "state": plugin.state,
        "error": plugin.error,
    }


def _source_rows(settings: Settings, base: str) -> dict[str, Any]:
    return {
        "sources": [
            {
                "name": enabled.name,
                "plugin": enabled.plugin,
                "shared": enabled.shared,
                "url": f"{base}/sse/{enabled.name}",
                "unavailable": enabled.unavailable,
            }
            for enabled in settings.catalog.sources.values()
        ],
        "streams": [
            {"name": name, "sources": list(members), "url": f"{base}/sse/{name}"}
            for name, members in settings.catalog.streams.items()
        ],
    }


def _overview(settings: Settings, base: str) -> str:
    catalog = settings.catalog
    running = [enabled for enabled in catalog.sources.values() if not enabled.unavailable]
    lines = [f"eventmux {version('eventmux')} at {base}, from {settings.file or 'no plugins.yaml: the bundled sources'}"]
    rows = [(e.name, "shared" if e.shared else "private", f"{base}/sse/{e.name}") for e in running]
    lines.append("\n" + _table(("source", "run", "url"), rows))
    if catalog.streams:
        streams = [(name, ", ".join(members), f"{base}/sse/{name}") for name, members in catalog.streams.items()]
        lines.append("\n" + _table(("stream", "sources", "url"), streams))
    if len(running) > 1:
        lines.append(f"\nmerged on demand: {base}/sse?sources={running[0].name},{running[1].name}")
    lines += [f"\nunavailable: {e.name}: {e.unavailable}" for e in catalog.sources.values() if e.unavailable]
    lines += [f"\nbroken plugin: {plugin.title}: {plugin.error}" for plugin in settings.plugins.broken]
    return "\n".join(lines)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    table = [head, *rows]
    widths = [max(len(row[column]) for row in table) for column in range(len(head))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in table
    )
