"""What the command shows of settings and plugins, as text or for a program to read."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .catalog import EnabledSource
    from .plugins import Plugin
    from .settings import Settings

MAX_CELL = 60  # letters of a list in a table


def faults_of(settings: Settings) -> list[str]:
    faults = [f"plugin {plugin.title}: {plugin.error}" for plugin in settings.plugins.broken]
    unavailable = [enabled for enabled in settings.catalog.sources.values() if enabled.unavailable]
    return faults + [f"source {enabled.name} is unavailable: {enabled.unavailable}" for enabled in unavailable]


def authority(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def plugin_row(plugin: Plugin) -> dict[str, Any]:
    return {
        "name": plugin.name,
        "distribution": plugin.distribution,
        "version": plugin.version,
        "target": plugin.target,
        "sources": [source.name for source in plugin.sources],
        "state": plugin.state,
        "error": plugin.error,
    }


def source_rows(settings: Settings, base: str) -> dict[str, Any]:
    return {
        "sources": [
            {
                "name": enabled.name,
                "plugin": enabled.plugin or None,
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


def overview(settings: Settings, base: str) -> str:
    catalog = settings.catalog
    running = [enabled for enabled in catalog.sources.values() if not enabled.unavailable]
    parts = [
        f"eventmux {version('eventmux')} at {base}, from {settings.file or 'no plugins.yaml: the bundled sources'}"
    ]
    if not catalog.sources:
        parts.append("No source is enabled: name some under sources.")
    if running:
        rows = [(e.name, "shared" if e.shared else "private", base + _path(e.name, [e])) for e in running]
        parts.append(table(("source", "run", "url"), rows))
    if catalog.streams:
        streams = [
            (name, some(members), base + _path(name, [catalog.sources[member] for member in members]))
            for name, members in catalog.streams.items()
        ]
        parts.append(table(("stream", "sources", "url"), streams))
    pair = [enabled.name for enabled in running if not _required(enabled)][:2]
    if pair[1:]:
        parts.append(f"merged on demand: {base}/sse?sources={','.join(pair)}")
    if faults := faults_of(settings):
        parts.append("\n".join(faults))
    return "\n\n".join(parts)


def _path(name: str, members: Iterable[EnabledSource]) -> str:
    """With the parameters that have to be given, left open."""
    required = dict.fromkeys(parameter for member in members for parameter in _required(member))
    return f"/sse/{name}" + ("?" + "&".join(f"{parameter}=" for parameter in required) if required else "")


def _required(enabled: EnabledSource) -> list[str]:
    required: list[str] = enabled.parameters_schema().get("required", [])
    return required


def some(names: Sequence[str]) -> str:
    """As many of the names as a table's cell holds."""
    shown = list(names)
    while len(shown) > 1 and len(", ".join(shown)) > MAX_CELL:
        shown.pop()
    return ", ".join(shown) + (f" and {len(names) - len(shown)} more" if shown != list(names) else "")


def count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, *rows]
    widths = [max(len(row[column]) for row in lines) for column in range(len(head))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in lines
    )
