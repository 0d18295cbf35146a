"""What can stand in plugins.yaml: its sections and keys, typed. Where it is read, and from what, is not said here."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from .catalog import MAX_SOURCES
from .operators import Step
from .policy import Bounds, Limits, Policy, Restart
from .source import MAX_NAME, NAME

Name = Annotated[str, Field(pattern=rf"^{NAME.pattern}$", max_length=MAX_NAME)]
Seconds = Annotated[float, Field(gt=0, le=3_600, allow_inf_nan=False)]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


class HistoryConfig(Section):
    """How much of a channel is kept."""

    events: Annotated[int, Field(ge=1, le=10_000_000)] = Bounds().events
    bytes: Annotated[int, Field(ge=1_024)] = Bounds().bytes
    age: Annotated[float | None, Field(gt=0, allow_inf_nan=False, description="Seconds; null for no bound.")] = None


class RestartConfig(Section):
    """How a shared source that has failed is started again. Seconds, but for `attempts`: failures in a row."""

    backoff: Annotated[float, Field(ge=0.01, le=3_600, allow_inf_nan=False)] = Restart().backoff
    max_backoff: Seconds = Restart().max_backoff
    attempts: Annotated[int, Field(ge=1, le=1_000_000)] = Restart().attempts
    quarantine: Annotated[float, Field(ge=0.01, le=86_400, allow_inf_nan=False)] = Restart().quarantine


class SourceConfig(Section):
    """One enabled source; the key is the name that clients use."""

    use: Annotated[str | None, Field(description="The source to use; without it, the one with this name.")] = None
    params: Annotated[dict[str, Any], Field(description="Fixed: clients cannot set them.", repr=False)] = {}
    defaults: Annotated[
        dict[str, Any], Field(description="Instead of the author's; clients may set them.", repr=False)
    ] = {}
    shared: Annotated[bool | None, Field(description="One run for all with equal parameters.")] = None
    linger: Annotated[
        float | None,
        Field(ge=0, le=86_400, allow_inf_nan=False, description="Seconds that a run outlives its last subscriber."),
    ] = None
    history: HistoryConfig = HistoryConfig()
    overflow: Annotated[
        Literal["skip", "disconnect"], Field(description="What becomes of a reader that lags behind the history.")
    ] = "skip"
    restart: RestartConfig = RestartConfig()
    max_runs: Annotated[int, Field(ge=1, le=10_000_000, description="Logs of this source at a time.")] = (
        Policy().max_runs
    )
    pipe: Annotated[list[Step], Field(max_length=16, description="aiostream operators, in order.")] = []


class ServerConfig(Section):
    """Where the service listens, and how it treats its clients. Seconds, but for `retry`: milliseconds."""

    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65_535)] = 8000
    heartbeat: Seconds = 15.0
    retry: Annotated[int, Field(ge=0, le=3_600_000)] = 2_000
    send_timeout: Seconds = 30.0
    grace: Seconds = 10.0
    direct: Annotated[
        bool, Field(description="Whether streams write to their sockets themselves, past ASGI, where that is safe.")
    ] = True


class LimitsConfig(Section):
    """What the process keeps in all: bytes of histories, and private runs that nobody reads."""

    history: Annotated[int, Field(ge=1_024)] = Limits().history
    detached: Annotated[int, Field(ge=0, le=10_000_000)] = Limits().detached


class PluginsConfig(Section):
    """Which plugins are loaded beside the installed ones, and which are not."""

    disabled: Annotated[list[str], Field(description="Names, or `distribution:name` where two have one name.")] = []
    dir: Annotated[Path | None, Field(description="Every .py file here is a plugin; relative to this file.")] = None


class Config(Section):
    """The whole of plugins.yaml."""

    sources: Annotated[
        dict[Name, Annotated[SourceConfig, BeforeValidator(lambda value: {} if value is None else value)]],
        Field(description="The enabled sources. Without this key, the bundled ones."),
    ] = {}
    streams: Annotated[
        dict[Name, Annotated[list[str], Field(min_length=1, max_length=MAX_SOURCES)]],
        Field(description="Selections of sources, each under a name of its own."),
    ] = {}
    server: ServerConfig = ServerConfig()
    plugins: PluginsConfig = PluginsConfig()
    limits: LimitsConfig = LimitsConfig()
    store: Literal["memory"] = "memory"
