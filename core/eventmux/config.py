"""plugins.yaml, typed: read, checked against the plugins, made into a catalog. An error points at its line."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from .catalog import Catalog
from .document import Document, Loc, Problem, read_document
from .enabling import Enabling
from .errors import ConfigError, suggestion
from .operators import Step
from .plugins import Plugins, load_plugins
from .source import MAX_NAME, NAME

MAX_STREAM_SOURCES = 32

Name = Annotated[str, Field(pattern=rf"^{NAME.pattern}$", max_length=MAX_NAME)]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


class HistoryConfig(Section):
    """How much of a channel is kept."""

    events: Annotated[int, Field(ge=1, le=10_000_000)] = 1_000
    bytes: Annotated[int, Field(ge=1_024)] = 4 * 1024 * 1024


class SourceConfig(Section):
    """One enabled source; the key is the name that clients use."""

    use: Annotated[Name | None, Field(description="The source to use; without it, the one with this name.")] = None
    params: Annotated[dict[str, Any], Field(description="Fixed: clients cannot set them.")] = {}
    defaults: Annotated[dict[str, Any], Field(description="Instead of the author's; clients may set them.")] = {}
    shared: Annotated[bool | None, Field(description="One run for all with equal parameters.")] = None
    history: HistoryConfig = HistoryConfig()
    pipe: Annotated[list[Step], Field(max_length=16, description="aiostream operators, in order.")] = []


class ServerConfig(Section):
    """Where the service listens, and how it treats its clients. Seconds, but for `retry`: milliseconds."""

    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65_535)] = 8000
    heartbeat: Annotated[float, Field(gt=0, le=3_600, allow_inf_nan=False)] = 15.0
    retry: Annotated[int, Field(ge=0, le=3_600_000)] = 2_000
    send_timeout: Annotated[float, Field(gt=0, le=3_600, allow_inf_nan=False)] = 30.0
    grace: Annotated[float, Field(gt=0, le=3_600, allow_inf_nan=False)] = 10.0


class PluginsConfig(Section):
    """Which plugins are loaded beside the installed ones, and which are not."""

    disabled: list[str] = []
    dir: Annotated[Path | None, Field(description="Every .py file here is a plugin; relative to this file.")] = None


class Config(Section):
    """The whole of plugins.yaml. Without `sources`, the bundled ones are enabled."""

    sources: dict[Name, Annotated[SourceConfig, BeforeValidator(lambda value: {} if value is None else value)]] | None = (
        None
    )
    streams: dict[Name, Annotated[list[str], Field(min_length=1, max_length=MAX_STREAM_SOURCES)]] = {}
    server: ServerConfig = ServerConfig()
    plugins: PluginsConfig = PluginsConfig()
    store: Literal["memory"] = "memory"


@dataclass(frozen=True)
class Settings:
    """What the service is built from. `file` is None where there is no plugins.yaml."""

    config: Config
    plugins: Plugins
    catalog: Catalog
    file: str | None = None


def load_settings(path: Path | None = None, environ: Mapping[str, str] = os.environ) -> Settings:
    """Read `path`, or ./plugins.yaml if there is one. Raises ConfigError with every fault found, in file order."""
    if path is None and not Path("plugins.yaml").exists():
        return _checked(Document("plugins.yaml", {}, []), None, Path())
    path = path or Path("plugins.yaml")
    return _checked(read_document(path, environ), str(path), path.parent)


def _checked(document: Document, file: str | None, base: Path) -> Settings:
    problems = list(document.problems)
    config: Config | None = None
    section = PluginsConfig()
    if not isinstance(document.value, dict):
        problems.append(document.problem((), "the file is a mapping: sources, streams, server, plugins, store"))
    else:
        try:
            config = Config.model_validate(document.value)
        except ValidationError as invalid:
            problems += _schema_problems(document, invalid)
        problems += _unset_problems(document)
        section = config.plugins if config else _plugins_section(document.value.get("plugins"))
    directory = section.dir and base / section.dir
    if directory and not directory.is_dir():
        problems.append(document.problem(("plugins", "dir"), "there is no such directory"))
        directory = None
    plugins = load_plugins(disabled=section.disabled, directory=directory)
    problems += _disabled_problems(document, section, plugins)
    enabling = Enabling(document, plugins)
    catalog = enabling.catalog()
    problems += enabling.problems
    if problems or config is None:
        raise ConfigError(_report(document, problems))
    return Settings(config, plugins, catalog, file)


def _report(document: Document, problems: list[Problem]) -> list[str]:
    ordered = sorted(set(problems), key=lambda problem: (problem.line, problem.column, problem.message))
    return [problem.text(document.file) for problem in ordered]


def _schema_problems(document: Document, invalid: ValidationError) -> Iterator[Problem]:
    for fault in invalid.errors(include_url=False, include_context=False, include_input=False):
        loc: Loc = fault["loc"]
        if any(loc[: len(unset)] == unset for unset in document.unset):
            continue  # said by the variable that is not set
        message = fault["msg"]
        if fault["type"] == "extra_forbidden":
            message = f"unknown key{suggestion(str(loc[-1]), _allowed(loc[:-1]))}"
        yield document.problem(loc, message, key=fault["type"] in {"extra_forbidden", "missing"})


def _allowed(loc: Loc) -> frozenset[str]:
    """The keys that a mapping at `loc` may have."""
    match loc:
        case ():
            model: type[BaseModel] = Config
        case ("server",):
            model = ServerConfig
        case ("plugins",):
            model = PluginsConfig
        case ("sources", _):
            model = SourceConfig
        case ("sources", _, "history"):
            model = HistoryConfig
        case _:
            model = Step
    return frozenset(model.model_fields)


def _unset_problems(document: Document) -> Iterator[Problem]:
    """Outside a source, a variable that is not set concerns the service; a source of it is only unavailable."""
    for loc, names in document.unset.items():
        if loc[0] != "sources" or len(loc) < 3:
            yield document.problem(loc, f"the environment variable {' and '.join(names)} is not set")


def _plugins_section(value: Any) -> PluginsConfig:
    """The section by itself, so that a fault elsewhere does not keep the sources from being checked."""
    try:
        return PluginsConfig.model_validate(value or {})
    except ValidationError:
        return PluginsConfig()


def _disabled_problems(document: Document, section: PluginsConfig, plugins: Plugins) -> Iterator[Problem]:
    names = {plugin.name for plugin in plugins.found}
    known = names | {f"{plugin.distribution}:{plugin.name}" for plugin in plugins.found}
    for index, name in enumerate(section.disabled):
        if name not in known:
            yield document.problem(("plugins", "disabled", index), f"no such plugin{suggestion(name, names)}")
