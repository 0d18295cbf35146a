"""What can stand in plugins.yaml: its sections and keys, typed. Where it is read, and from what, is not said here."""

from __future__ import annotations

import ipaddress
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    SecretStr,
    Tag,
    model_validator,
)

from .access import MAX_PATTERN, MAX_PATTERNS, PATTERN
from .catalog import MAX_SOURCES
from .operators import Step
from .policy import Bounds, Limits, Policy, Restart
from .redis_url import LIKE, SCHEMES, check_redis_url, is_redis, without_credentials
from .source import MAX_NAME, NAME

Name = Annotated[str, Field(pattern=rf"^{NAME.pattern}$", max_length=MAX_NAME)]
ORIGIN = r"^(\*|[a-z][a-z0-9+.-]*://[^/?#@\s]+)$"
HOST = r"^(\*|(\*\.)?[^*/\s]+)$"
NAMES = rf"^{PATTERN.pattern}$"
PREFIX = r"^[A-Za-z0-9_.:-]+$"  # it stands in a hash tag, {prefix:0}
# Regular expressions are for programs: this is what an operator is told.
EXPECTED = {
    ORIGIN: "an origin is expected, like https://app.example.com, with no path and no slash at its end, or '*'",
    HOST: "the name of a host is expected, like app.example.com or *.example.com, or '*'",
    PREFIX: "letters, digits, and the signs _ . : - are expected",
    NAMES: "a name or a pattern of names is expected, like price-*, of a-z, 0-9, -, * and ?",
}
_DEFAULT_PORT = re.compile(r"http://.*:80|https://.*:443")


def _origin(text: str) -> str:
    """Browsers name an origin in one way only (RFC 6454, 6.2), and it is compared by its letters."""
    if text != text.lower() or _DEFAULT_PORT.fullmatch(text):
        raise ValueError("write it as browsers do: in small letters, and without the port that its scheme has anyway")
    return text


Origin = Annotated[str, Field(pattern=ORIGIN), AfterValidator(_origin)]
Host = Annotated[str, Field(pattern=HOST)]
Pattern = Annotated[str, Field(pattern=NAMES, max_length=MAX_PATTERN)]
Algorithm = Literal[
    "HS256", "HS384", "HS512", "RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"
]


def _address(text: str) -> str:
    """Uvicorn takes what it cannot read for the name of a host, which no address is ever equal to."""
    try:
        if text != "*":
            ipaddress.ip_network(text)
    except ValueError:
        raise ValueError(
            "an address, or a network like 10.0.0.0/8 without bits after its prefix, is expected"
        ) from None
    return text


Address = Annotated[str, AfterValidator(_address)]
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


class TlsConfig(Section):
    """Files in PEM, relative to plugins.yaml."""

    cert: Annotated[Path, Field(description="The certificate, and those that it is signed with.")]
    key: Path
    password: Annotated[SecretStr | None, Field(description="Of the key.")] = None


class ServerConfig(Section):
    """Where the service listens, and how it treats its clients. Seconds, but for `retry`: milliseconds."""

    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65_535)] = 8000
    heartbeat: Seconds = 15.0
    retry: Annotated[int, Field(ge=0, le=3_600_000)] = 2_000
    spread: Annotated[
        float,
        Field(ge=0, le=3_600, allow_inf_nan=False, description="Clients sent away come back within so long after it."),
    ] = 4.0
    send_timeout: Seconds = 30.0
    request_timeout: Annotated[Seconds, Field(description="For a request's head and body to arrive.")] = 10.0
    max_lifetime: Annotated[
        float | None,
        Field(ge=1, le=2_592_000, allow_inf_nan=False, description="Of a stream, jittered down to four fifths."),
    ] = None
    drain_delay: Annotated[
        float,
        Field(ge=0, le=3_600, allow_inf_nan=False, description="At shutdown: from unready to the end of the streams."),
    ] = 0.0
    grace: Seconds = 10.0
    direct: Annotated[
        bool, Field(description="Whether streams write to their sockets themselves, past ASGI, where that is safe.")
    ] = True
    trusted_proxies: Annotated[
        list[Address], Field(description="Addresses and networks whose X-Forwarded-For and -Proto are believed.")
    ] = ["127.0.0.1", "::1"]
    trusted_hosts: Annotated[
        list[Host], Field(min_length=1, description="What `Host` may say; `*.example.com` for its subdomains.")
    ] = ["*"]
    tls: TlsConfig | None = None
    http2: Annotated[bool, Field(description="Serve HTTP/2, too; browsers want TLS for it.")] = False
    watch: Annotated[bool, Field(description="Whether a change of this file is applied at once.")] = True
    stall: Annotated[Seconds, Field(description="Of the loop, after which the plugin that blocks it is named.")] = 1.0

    @model_validator(mode="after")
    def _all_and_some(self) -> ServerConfig:
        if "*" in self.trusted_proxies and len(self.trusted_proxies) > 1:
            raise ValueError("trusted_proxies: '*' is all addresses: leave the others out, or leave it out")
        return self


class LimitsConfig(Section):
    """What the process takes and keeps in all; bytes, or a number of them."""

    history: Annotated[int, Field(ge=1_024)] = Limits().history
    detached: Annotated[int, Field(ge=0, le=10_000_000, description="Private runs that nobody reads.")] = (
        Limits().detached
    )
    runs: Annotated[int, Field(ge=1, le=10_000_000, description="Generators at a time.")] = Limits().runs
    streams: Annotated[int, Field(ge=1, le=10_000_000, description="Open ones.")] = Limits().streams
    streams_per_principal: Annotated[int, Field(ge=1, le=10_000_000)] = Limits().streams_per_principal
    streams_per_address: Annotated[int, Field(ge=1, le=10_000_000)] = Limits().streams_per_address
    new_streams: Annotated[float, Field(gt=0, le=1_000_000, allow_inf_nan=False, description="Per second.")] = (
        Limits().new_streams
    )
    sources: Annotated[int, Field(ge=1, le=MAX_SOURCES, description="In one stream.")] = Limits().sources
    query: Annotated[int, Field(ge=256, le=64 * 1024)] = Limits().query
    body: Annotated[int, Field(ge=256, le=64 * 1024 * 1024)] = Limits().body


class CorsConfig(Section):
    """Which pages of other origins may read streams."""

    origins: Annotated[list[Origin], Field(description="Like https://app.example.com; `*` for all.")] = []
    credentials: Annotated[bool, Field(description="Whether they may send cookies.")] = False
    max_age: Annotated[int, Field(ge=0, le=86_400, description="Seconds that a preflight is kept.")] = 600

    @model_validator(mode="after")
    def _all_and_credentials(self) -> CorsConfig:
        if self.credentials and "*" in self.origins:
            raise ValueError("with credentials, origins cannot be '*': name them (WHATWG Fetch, CORS protocol)")
        return self


class Granted(Section):
    """Sources by name or pattern, like `price-*`."""

    read: Annotated[list[Pattern], Field(max_length=MAX_PATTERNS)] = []
    publish: Annotated[list[Pattern], Field(max_length=MAX_PATTERNS)] = []


class TokenConfig(Granted):
    """A static token, and what its bearer may do."""

    name: Annotated[str, Field(min_length=1, max_length=128, description="Of its bearer, in logs and limits.")]
    token: Annotated[SecretStr, Field(min_length=1)]


class JwtConfig(Section):
    """Which JSON Web Tokens are believed (RFC 7519)."""

    algorithms: Annotated[list[Algorithm], Field(min_length=1)]
    key: Annotated[SecretStr | None, Field(description="The secret of HS*, or a public key in PEM.")] = None
    jwks: Annotated[str | None, Field(description="Instead of a key: URL or file of a JSON Web Key Set.")] = None
    audience: str | list[str] | None = None
    issuer: str | None = None
    leeway: Annotated[float, Field(ge=0, le=600, allow_inf_nan=False, description="Seconds.")] = 0.0


class AuthConfig(Section):
    """Who may read what. Without this section, everybody everything."""

    tokens: list[TokenConfig] = []
    jwt: JwtConfig | None = None
    anonymous: Annotated[Granted | None, Field(description="Who brings no token; without it, nobody.")] = None
    hide: Annotated[bool, Field(description="Whether a source that may not be read is as one that is not there.")] = (
        False
    )
    ticket_lifetime: Annotated[float, Field(ge=1, le=600, allow_inf_nan=False, description="Seconds.")] = 30.0


class PluginsConfig(Section):
    """Which plugins are loaded beside the installed ones, and which are not."""

    disabled: Annotated[list[str], Field(description="Names, or `distribution:name` where two have one name.")] = []
    dir: Annotated[Path | None, Field(description="Every .py file here is a plugin; relative to this file.")] = None


def _redis(url: SecretStr) -> SecretStr:
    check_redis_url(url.get_secret_value())
    return url


class StoreConfig(Section):
    """Where histories live that outlast the process: a Redis or Valkey. Seconds, but for `shards`."""

    url: Annotated[
        SecretStr,
        AfterValidator(_redis),
        Field(description=f"Like {LIKE}.", json_schema_extra={"pattern": f"^({'|'.join(SCHEMES)})://"}),
    ]
    prefix: Annotated[str, Field(pattern=PREFIX, max_length=64, description="Of all keys.")] = "eventmux"
    lease: Annotated[
        float,
        Field(ge=0.5, le=300, allow_inf_nan=False, description="After which the right to run a shared source expires."),
    ] = 10.0
    shards: Annotated[
        int, Field(ge=1, le=1_024, description="Hash tags that channels are spread over; equal on all replicas.")
    ] = 1
    keep: Annotated[
        float,
        Field(ge=1, le=31_536_000, allow_inf_nan=False, description="That the log of a source without readers stays."),
    ] = 3_600.0
    timeout: Annotated[float, Field(gt=0, le=60, allow_inf_nan=False, description="For an answer of Redis.")] = 2.0

    @property
    def shown_url(self) -> str:
        """Without user and password."""
        return without_credentials(self.url.get_secret_value())


def _store(value: Any) -> Any:
    """A URL is the mapping that has no other key."""
    if isinstance(value, dict | StoreConfig) or value == "memory":
        return value
    if isinstance(value, str) and is_redis(value):
        return {"url": value}
    raise ValueError(f"'memory', a URL ({LIKE}) or a mapping with a url is expected")


RedisUrl = Annotated[str, Field(pattern=f"^({'|'.join(SCHEMES)})://")]
Store = Annotated[
    Annotated[StoreConfig, Tag("redis")] | Annotated[Literal["memory"], Tag("memory")],
    Discriminator(lambda value: "memory" if value == "memory" else "redis"),
    BeforeValidator(_store, json_schema_input_type=StoreConfig | Literal["memory"] | RedisUrl),
]


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
    cors: CorsConfig = CorsConfig()
    auth: AuthConfig | None = None
    store: Annotated[Store, Field(description="Where histories live: `memory`, or a Redis.")] = "memory"
