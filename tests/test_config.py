"""The promises of `plugins.yaml`: what it makes of the sources, and where it says what is wrong."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import pytest
import redis

from certificates import make_certificate
from distributions import HEAD, on_path, source_text, write_distribution
from eventmux.app import create_app
from eventmux.config import StoreConfig
from eventmux.errors import ConfigError, UnavailableError
from eventmux.policy import Bounds
from eventmux.settings import Settings, load_installed, load_settings
from service import serving, serving_file

BUNDLED = ["clock", "counter", "echo", "openai", "reverse-echo"]


class Load(Protocol):
    def __call__(self, text: str, **environ: str) -> Settings: ...


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "plugins.yaml"


@pytest.fixture
def load(file: Path) -> Load:
    """The settings of a plugins.yaml with this text, in this environment."""

    def run(text: str, **environ: str) -> Settings:
        file.write_text(text, "utf-8")
        return load_settings(file, environ)

    return run


@pytest.fixture
def problems(file: Path, load: Load) -> Any:
    """What is wrong with a plugins.yaml of this text, without the folder in which it is."""

    def run(text: str, **environ: str) -> list[str]:
        with pytest.raises(ConfigError) as refused:
            load(text, **environ)
        assert str(refused.value) == "\n".join(refused.value.problems)
        return [problem.replace(f"{file.parent}/", "") for problem in refused.value.problems]

    return run


@pytest.fixture
def local(tmp_path: Path) -> Iterator[Path]:
    """A folder for single-file plugins; what is imported from it is forgotten afterwards."""
    directory = tmp_path / "local"
    directory.mkdir()
    with on_path(tmp_path):
        yield directory


def unavailable(settings: Settings, name: str) -> str:
    reason = settings.catalog.sources[name].unavailable
    assert reason is not None
    return reason


# What is enabled


def test_without_a_file_the_bundled_sources_are_enabled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    settings = load_settings(environ={})
    assert (list(settings.catalog.sources), settings.file) == (BUNDLED, None)
    assert unavailable(settings, "openai") == "set sources.openai.params.api_key in plugins.yaml"


def test_the_file_in_the_working_directory_is_read_if_none_is_named(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(file.parent)
    file.write_text("sources: {clock: {}}", "utf-8")
    settings = load_settings(environ={})
    assert (list(settings.catalog.sources), settings.file) == (["clock"], "plugins.yaml")


def test_a_link_that_leads_nowhere_is_no_absent_file(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(file.parent)
    file.symlink_to("gone.yaml")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_settings(environ={})


@pytest.mark.parametrize("text", ["", "# nothing\n", "server: {port: 9000}\n", "{}"])
def test_a_file_without_sources_enables_the_bundled_ones(load: Load, text: str) -> None:
    assert list(load(text).catalog.sources) == BUNDLED


def test_bundled_sources_can_be_selected_where_nothing_is_said_of_them(load: Load) -> None:
    assert load("streams: {both: [clock, counter]}").catalog.streams == {"both": ["clock", "counter"]}


def test_no_sources_are_none_and_the_service_runs(tmp_path: Path) -> None:
    with serving_file("sources: {}", tmp_path) as service:
        assert service.get("/sources").json() == {"sources": [], "streams": []}
        assert service.get("/sse/clock").status_code == 404


def test_sources_are_enabled_in_the_order_of_the_file(load: Load) -> None:
    settings = load("sources:\n  echo:\n  clock: {}\n  beat: {use: clock}\n")
    assert [(e.name, e.source.name, e.plugin) for e in settings.catalog.sources.values()] == [
        ("echo", "echo", "echo"),
        ("clock", "clock", "clock"),
        ("beat", "clock", "clock"),
    ]


def test_a_name_may_be_used_for_another_source(load: Load) -> None:
    assert load("sources: {clock: {use: counter}}").catalog.sources["clock"].source.name == "counter"


def test_params_are_fixed_and_defaults_are_not(load: Load) -> None:
    counter = load("sources: {counter: {params: {step: 2}, defaults: {start: 5}}}").catalog.sources["counter"]
    assert "step" not in counter.settable
    assert counter.validate({}).model_dump() == {"start": 5, "step": 2, "stop": None, "interval": 1.0}
    assert counter.validate({"start": 1}).model_dump()["start"] == 1


@pytest.mark.parametrize(
    ("source", "written", "shared"),
    [
        ("clock", "", True),
        ("counter", "", False),
        ("clock", "shared: false", False),
        ("counter", "shared: true", True),
        ("clock", 'shared: "no"', False),
        ("clock", 'shared: "${SHARED}"', False),
    ],
)
def test_the_file_has_the_last_word_on_what_is_shared(load: Load, source: str, written: str, shared: bool) -> None:
    settings = load(f"sources: {{{source}: {{{written}}}}}", SHARED="false")
    assert settings.catalog.sources[source].shared is shared


def test_history_has_bounds_of_its_own_per_source(load: Load) -> None:
    settings = load(
        'sources: {clock: {history: {events: "${N}", bytes: 4096}}, echo: {history: {events: 7}}, counter: {}}', N="20"
    )
    assert [enabled.policy.history for enabled in settings.catalog.sources.values()] == [
        Bounds(events=20, bytes=4096),
        Bounds(events=7),
        Bounds(),
    ]


def test_server_settings_have_defaults_and_are_read(load: Load, file: Path) -> None:
    cert, key = make_certificate(file.parent)
    written = {
        "host": ("127.0.0.1", "::1"),
        "port": (8000, 0),
        "heartbeat": (15.0, 0.5),
        "retry": (2000, 0),
        "spread": (4.0, 0.0),
        "send_timeout": (30.0, 3600.0),
        "request_timeout": (10.0, 0.5),
        "max_lifetime": (None, 600.0),
        "drain_delay": (0.0, 5.0),
        "grace": (10.0, 1.0),
        "direct": (True, False),
        "trusted_proxies": (["127.0.0.1", "::1"], ["10.0.0.0/8"]),
        "trusted_hosts": (["*"], ["example.com", "*.example.com"]),
        "tls": (None, {"cert": cert, "key": key, "password": None}),
        "http2": (False, True),
        "watch": (True, False),
        "stall": (1.0, 0.1),
    }
    assert load("").config.server.model_dump() == {key: default for key, (default, _) in written.items()}
    other = {key: value for key, (_, value) in written.items()}
    text = json.dumps({"server": {**other, "tls": {"cert": cert.name, "key": key.name}}})
    assert load(text).config.server.model_dump() == other


def test_an_application_that_nobody_prints_for_logs_what_is_broken(
    file: Path, local: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (local / "bad.py").write_text("1 / 0", "utf-8")
    file.write_text("plugins: {dir: local}\nsources: {clock: {}}", "utf-8")
    monkeypatch.chdir(file.parent)
    create_app()
    (record,) = caplog.records
    assert (record.name, record.levelname) == ("eventmux", "ERROR")
    assert record.getMessage().startswith("plugin bad (local/bad.py): ZeroDivisionError: division by zero")


def test_two_services_in_one_process_have_their_own_configuration(load: Load) -> None:
    kept = "server: {watch: false}"  # both have one file
    with (
        serving(load(f"sources: {{clock: {{}}}}\n{kept}")) as one,
        serving(load(f"sources: {{echo: {{}}}}\n{kept}")) as two,
    ):
        names = [[source["name"] for source in service.get("/sources").json()["sources"]] for service in (one, two)]
    assert names == [["clock"], ["echo"]]


# What is wrong, and where

CLOCK = "sources: {clock: {}}\n"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # Keys
        ("source: {}", "1:1: source: unknown key: did you mean 'sources'?"),
        ("zzz: 1", "1:1: zzz: unknown key: known are auth, cors, limits, plugins, server, sources, store, streams"),
        ("sources:\n  clock:\n    parms: {}", "3:5: sources.clock.parms: unknown key: did you mean 'params'?"),
        ("sources: {clock: {parms: {}}}", "1:19: sources.clock.parms: unknown key: did you mean 'params'?"),
        (
            "sources: {clock: {history: {event: 1}}}",
            "1:29: sources.clock.history.event: unknown key: did you mean 'events'?",
        ),
        ("server: {prot: 1}", "1:10: server.prot: unknown key: did you mean 'port'?"),
        ("plugins: {disable: []}", "1:11: plugins.disable: unknown key: did you mean 'disabled'?"),
        ("server:\n  port: 1\n  port: 2", "3:3: server.port: the key is at line 2 already: keep one of the two"),
        # Sources
        (
            "sources:\n  cluck: {}",
            "2:3: sources.cluck: no source 'cluck': did you mean 'clock'?",
        ),
        (
            "sources: {zzz: {}}",
            "1:11: sources.zzz: no source 'zzz': known are clock, counter, echo, openai, reverse-echo",
        ),
        ("sources:\n  beat: {use: cluck}", "2:15: sources.beat.use: no source 'cluck': did you mean 'clock'?"),
        ("sources: {beat: {use: [clock]}}", "1:23: sources.beat.use: Input should be a valid string"),
        (
            "sources: {Fast_Clock: {use: clock}}",
            "1:11: sources.Fast_Clock: a name is kebab-case, like 'reverse-echo', of at most 63 letters",
        ),
        (
            f"sources: {{{'x' * 64}: {{use: clock}}}}",
            f"1:11: sources.{'x' * 64}: a name is kebab-case, like 'reverse-echo', of at most 63 letters",
        ),
        ("sources: {clock: 5}", "1:18: sources.clock: a mapping is expected: {key: value}"),
        ("sources: {clock: ''}", "1:18: sources.clock: a mapping is expected: {key: value}"),
        ("sources: [clock]", "1:10: sources: a mapping is expected: {key: value}"),
        ("sources: 5", "1:10: sources: a mapping is expected: {key: value}"),
        ("sources:", "1:9: sources: is empty: give it a value, or leave the key out"),
        ("sources: {clock: {shared: maybe}}", "1:27: sources.clock.shared: Input should be a valid boolean"),
        # Parameters
        (
            "sources:\n  clock:\n    params:\n      intervall: 1",
            "4:7: sources.clock.params.intervall: no such parameter: did you mean 'interval'?",
        ),
        (
            "sources: {clock: {defaults: {zzz: 1}}}",
            "1:30: sources.clock.defaults.zzz: no such parameter: known are interval, timezone",
        ),
        (
            "sources: {beat: {use: clock, params: {start: 1}}}",
            "1:39: sources.beat.params.start: no such parameter: known are interval, timezone",
        ),
        (
            "sources:\n  clock:\n    params: {interval: soon}",
            "3:24: sources.clock.params.interval: Input should be a valid number, unable to parse string as a number",
        ),
        (
            "sources: {clock: {defaults: {timezone: Mars}}}",
            "1:40: sources.clock.defaults.timezone: unknown time zone 'Mars': use an IANA name like Europe/Berlin",
        ),
        ("sources: {clock: {params: {interval: }}}", "1:38: sources.clock.params.interval: is empty: give it"),
        (
            "sources: {openai: {params: {api_key: k, messages: [{role: user, content: x}, {role: usr, content: y}]}}}",
            "1:85: sources.openai.params.messages[1].role: Input should be",
        ),
        (
            "sources: {openai: {defaults: {api_key: k}}}",
            "1:31: sources.openai.defaults.api_key: only plugins.yaml can set it: move it to params",
        ),
        (
            "sources:\n  clock:\n    params: {interval: 1}\n    defaults: {interval: 2}",
            "4:16: sources.clock.defaults.interval: is fixed under params: leave one out",
        ),
        ("sources: {clock: {params: [1]}}", "1:27: sources.clock.params: a mapping is expected: {key: value}"),
        ("sources: {clock: {params: }}", "1:27: sources.clock.params: is empty: give it a value, or leave the key out"),
        # Streams
        (
            CLOCK + "streams:\n  dash: [clock, cluck]",
            "3:17: streams.dash[1]: no source 'cluck' is enabled: did you mean",
        ),
        (CLOCK + "streams: {dash: [echo]}", "2:18: streams.dash[0]: no source 'echo' is enabled"),
        (
            CLOCK + "streams: {dash: [clock, clock]}",
            "2:25: streams.dash[1]: source 'clock' is named twice: leave one out",
        ),
        (CLOCK + "streams: {dash: []}", "2:17: streams.dash: List should have at least 1 item"),
        (CLOCK + "streams: {dash: clock}", "2:17: streams.dash: a list is expected: [a, b]"),
        (CLOCK + "streams: {dash: [1]}", "2:18: streams.dash[0]: Input should be a valid string"),
        (
            CLOCK + "streams: {clock: [clock]}",
            "2:11: streams.clock: is the name of a source, too: give the stream another one",
        ),
        (CLOCK + "streams: {Dash: [clock]}", "2:11: streams.Dash: a name is kebab-case"),
        ("streams: {clock: [echo]}", "1:11: streams.clock: is the name of a source, too"),
        (CLOCK + "streams:", "2:9: streams: is empty: give it a value, or leave the key out"),
        # Server, plugins, store
        ("server: {host: 5}", "1:16: server.host: Input should be a valid string"),
        ("server: {port: -1}", "1:16: server.port: Input should be greater than or equal to 0"),
        ("server: {port: 65536}", "1:16: server.port: Input should be less than or equal to 65535"),
        ("server: {port: http}", "1:16: server.port: Input should be a valid integer"),
        ("server: {heartbeat: 0}", "1:21: server.heartbeat: Input should be greater than 0"),
        ("server: {heartbeat: .nan}", "1:21: server.heartbeat: Input should be a finite number"),
        ("server: {heartbeat: .inf}", "1:21: server.heartbeat: Input should be a finite number"),
        ("server: {heartbeat: 3601}", "1:21: server.heartbeat: Input should be less than or equal to 3600"),
        ("server: {retry: -1}", "1:17: server.retry: Input should be greater than or equal to 0"),
        ("server: {retry: 3600001}", "1:17: server.retry: Input should be less than or equal to 3600000"),
        ("server: {retry: 0.5}", "1:17: server.retry: Input should be a valid integer"),
        ("server: {send_timeout: 0}", "1:24: server.send_timeout: Input should be greater than 0"),
        ("server: {send_timeout: 3601}", "1:24: server.send_timeout: Input should be less than or equal to 3600"),
        ("server: {grace: 0}", "1:17: server.grace: Input should be greater than 0"),
        ("server: {grace: 3601}", "1:17: server.grace: Input should be less than or equal to 3600"),
        ("server: {grace: .nan}", "1:17: server.grace: Input should be a finite number"),
        ("server: 8000", "1:9: server: a mapping is expected: {key: value}"),
        ("server: {port: }", "1:16: server.port: is empty: give it a value, or leave the key out"),
        ("store: disk", "1:8: store: 'memory', a URL (redis://host:6379/0, rediss://host:6380/0 (TLS) or unix:///"),
        ("store: 5", "1:8: store: 'memory', a URL (redis://"),
        ("store: ", "1:7: store: is empty: give it a value, or leave the key out"),
        ("store: {}", "1:8: store.url: Field required"),
        ("store: {url: memory}", "1:14: store.url: the URL of a Redis is expected: redis://"),
        ("store: {url: 'redis://h', prefx: a}", "1:27: store.prefx: unknown key: did you mean 'prefix'?"),
        ("store: {url: 'redis://h', prefix: '{a}'}", "1:35: store.prefix: letters, digits, and the signs _ . : -"),
        ("store: {url: 'redis://h', prefix: ''}", "1:35: store.prefix: letters, digits, and the signs _ . : -"),
        (f"store: {{url: 'redis://h', prefix: {'x' * 65}}}", "1:35: store.prefix: String should have at most 64 char"),
        ("store: {url: 'redis://h', lease: 0.4}", "1:34: store.lease: Input should be greater than or equal to 0.5"),
        ("store: {url: 'redis://h', lease: 301}", "1:34: store.lease: Input should be less than or equal to 300"),
        ("store: {url: 'redis://h', lease: .nan}", "1:34: store.lease: Input should be a finite number"),
        ("store: {url: 'redis://h', shards: 0}", "1:35: store.shards: Input should be greater than or equal to 1"),
        ("store: {url: 'redis://h', shards: 1025}", "1:35: store.shards: Input should be less than or equal to 1024"),
        ("store: {url: 'redis://h', keep: 0.9}", "1:33: store.keep: Input should be greater than or equal to 1"),
        ("store: {url: 'redis://h', keep: .inf}", "1:33: store.keep: Input should be a finite number"),
        ("store: {url: 'redis://h', timeout: 0}", "1:36: store.timeout: Input should be greater than 0"),
        ("store: {url: 'redis://h', timeout: 61}", "1:36: store.timeout: Input should be less than or equal to 60"),
        ("plugins: {dir: gone}", "1:16: plugins.dir: there is no directory gone"),
        (f"plugins: {{dir: {'x' * 300}}}", "1:16: plugins.dir: there is no directory xxx"),
        ("plugins: {dir: 5}", "1:16: plugins.dir: "),
        ("plugins: {disabled: clock}", "1:21: plugins.disabled: a list is expected: [a, b]"),
        ("plugins: {disabled: [cluck]}", "1:22: plugins.disabled[0]: no plugin 'cluck': did you mean 'clock'?"),
        (
            "plugins: {disabled: ['eventmux:cluck']}",
            "1:22: plugins.disabled[0]: no plugin 'eventmux:cluck': did you mean 'eventmux:clock'?",
        ),
        ("plugins: {disabled: [[clock]]}", "1:22: plugins.disabled[0]: Input should be a valid string"),
        # History
        (
            "sources: {clock: {history: {events: 0}}}",
            "1:37: sources.clock.history.events: Input should be greater than",
        ),
        ("sources: {clock: {history: {events: 10000001}}}", "1:37: sources.clock.history.events: Input should be less"),
        (
            "sources: {clock: {history: {bytes: 1023}}}",
            "1:36: sources.clock.history.bytes: Input should be greater than",
        ),
        (
            "sources: {clock: {history: {bytes: 4 MB}}}",
            "1:36: sources.clock.history.bytes: Input should be a valid integer",
        ),
        ("sources: {clock: {history: 5}}", "1:28: sources.clock.history: a mapping is expected"),
        # Forms
        (
            CLOCK + "cors: {origins: ['https://app.example.com/']}",
            "2:18: cors.origins[0]: an origin is expected, like https://app.example.com, with no path and no slash",
        ),
        (
            CLOCK + "server: {trusted_hosts: ['https://app.example.com']}",
            "2:26: server.trusted_hosts[0]: the name of a host is expected",
        ),
        (
            CLOCK + "auth: {anonymous: {read: [Clock]}}",
            "2:27: auth.anonymous.read[0]: a name or a pattern of names is expected, like price-*",
        ),
    ],
)
def test_a_fault_is_told_with_its_line_and_column_and_what_is_allowed(problems: Any, text: str, expected: str) -> None:
    (problem,) = problems(text)
    assert problem.startswith(f"plugins.yaml:{expected}")
    if expected.endswith("?"):
        assert problem == f"plugins.yaml:{expected}"


# The store

URLS = [
    ("redis://host", "redis://host:6379/0"),
    ("redis://:PASS@host:6380/3", "redis://host:6380/3"),
    ("redis://user:PASS@host/?db=1", "redis://host:6379/1"),
    ("redis://user:PASS%2F%40@[::1]:6379", "redis://[::1]:6379/0"),
    ("rediss://host?ssl_cert_reqs=required&password=PASS", "rediss://host:6379/0"),
    ("unix:///run/redis.sock", "unix:///run/redis.sock?db=0"),
    ("unix://user:PASS@/run/redis.sock?db=2", "unix:///run/redis.sock?db=2"),
]


@pytest.mark.parametrize(("url", "shown"), URLS)
@pytest.mark.parametrize("form", ["store: '{}'", "store: {{url: '{}'}}"])
def test_a_store_is_a_url_or_a_mapping_that_never_shows_its_password(
    load: Load, form: str, url: str, shown: str
) -> None:
    config = load(form.format(url)).config
    assert isinstance(config.store, StoreConfig)
    assert (config.store.url.get_secret_value(), config.store.shown_url) == (url, shown)
    assert "PASS" not in f"{config!r} {config} {config.model_dump_json()} {shown}"
    told = redis.ConnectionPool.from_url(url).connection_kwargs  # it reads the same in it
    assert str(told.get("db", 0)) in shown
    assert str(told.get("host", told.get("path"))) in shown


def test_the_keys_of_a_store_have_defaults_and_are_read(load: Load) -> None:
    written: dict[str, Any] = {
        "prefix": ("eventmux", "a_B.c:-9"),
        "lease": (10.0, 0.5),
        "shards": (1, 1024),
        "keep": (3600.0, 1.0),
        "timeout": (2.0, 60.0),
    }
    assert load("").config.store == "memory"
    for place, given in enumerate(({}, {key: value[1] for key, value in written.items()})):
        store = load(json.dumps({"store": {"url": "redis://host", **given}})).config.store
        assert isinstance(store, StoreConfig)
        assert store.model_dump(exclude={"url"}) == {key: value[place] for key, value in written.items()}


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://:PASS@host", "'memory', a URL (redis://host:6379/0, rediss://"),
        ("redis:PASS", "'memory', a URL (redis://host:6379/0"),
        ("redis://", "there is no host: redis://host:6379/0"),
        ("redis://:PASS@", "there is no host: "),
        ("redis://:PASS@:6379", "there is no host: "),
        ("redis://host:0", "the port is a number from 1 to 65535"),
        ("redis://host:65536", "the port is a number from 1 to 65535"),
        ("redis://host:", "the port is a number from 1 to 65535"),
        ("redis://:PASS/WORD@host", "the port is a number from 1 to 65535; in a user or a password write / as %2F"),
        ("redis://:PASS#WORD@host", "a '#' ends the URL: in a user or a password write / as %2F"),
        ("redis://[PASS", "this is no URL: redis://host:6379/0"),
        ("redis://host/PASS", "behind the host only the number of a database is allowed, like /0"),
        ("redis://host/1/2", "behind the host only the number of a database is allowed, like /0"),
        ("redis://host?db=PASS", "db: the number of a database is expected, like ?db=0"),
        ("redis://host?db=", "db: the number of a database is expected, like ?db=0"),
        ("redis://host?PASS=1", "behind the '?' only these are allowed: client_name, db, password, username"),
        ("redis://host?ssl_cert_reqs=none", "behind the '?' only these are allowed: client_name, db, password"),
        ("redis://:PASS WORD@host", "a URL has no blanks and no line ends"),
        ("unix://run/redis.sock", "the path of a socket begins with a third slash: unix:///run/redis.sock"),
        ("unix:///", "the path of a socket is expected: unix:///run/redis.sock"),
    ],
)
def test_what_is_wrong_with_the_url_of_a_store_is_told_and_the_url_is_not(
    problems: Any, url: str, expected: str
) -> None:
    (problem,) = problems(f"store: {json.dumps(url)}")
    assert problem.startswith(f"plugins.yaml:1:8: store: {expected}")
    assert "PASS" not in problem
    (problem,) = problems('store:\n  url: "${REDIS}"', REDIS=url)
    assert problem.startswith("plugins.yaml:2:8: store.url: ")
    assert "PASS" not in problem


def test_a_password_that_is_not_set_is_told_once(problems: Any) -> None:
    (problem,) = problems('store: {url: "redis://:${REDIS_PASSWORD}@host", lease: 1}')
    assert problem.startswith("plugins.yaml:1:14: store.url: the environment variable REDIS_PASSWORD is not set")


def test_a_store_for_which_redis_is_not_installed_says_what_to_install(
    load: Load, problems: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "redis", None)  # which is how import takes a module for missing
    load("store: memory")
    assert problems("store: redis://host") == [
        "plugins.yaml:1:8: store: redis is not installed: pip install 'eventmux[redis]'"
    ]


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        ("{}", "19: sources.clock.pipe[0]: a step is one operator with its argument, like {take: 5}"),
        ("{take: 1, skip: 1}", "19: sources.clock.pipe[0]: a step is one operator with its argument, like {take: 5}"),
        ("take", "19: sources.clock.pipe[0]: a mapping is expected"),
        ("{tak: 1}", "20: sources.clock.pipe[0].tak: unknown key: did you mean 'take'?"),
        ("{take: 0}", "26: sources.clock.pipe[0].take: Input should be greater than or equal to 1"),
        ("{take: -1}", "26: sources.clock.pipe[0].take: Input should be greater than or equal to 1"),
        ("{take: 1.5}", "26: sources.clock.pipe[0].take: Input should be a valid integer"),
        ("{skip: 0}", "26: sources.clock.pipe[0].skip: Input should be greater than or equal to 1"),
        ("{skip: .nan}", "26: sources.clock.pipe[0].skip: Input should be a finite number"),
        ("{spaceout: 0}", "30: sources.clock.pipe[0].spaceout: Input should be greater than 0"),
        ("{spaceout: -1}", "30: sources.clock.pipe[0].spaceout: Input should be greater than 0"),
        ("{spaceout: .nan}", "30: sources.clock.pipe[0].spaceout: Input should be a finite number"),
        ("{spaceout: 86401}", "30: sources.clock.pipe[0].spaceout: Input should be less than or equal to 86400"),
        ("{timeout: 0}", "29: sources.clock.pipe[0].timeout: Input should be greater than 0"),
        ("{timeout: .inf}", "29: sources.clock.pipe[0].timeout: Input should be a finite number"),
        ("{only: []}", "26: sources.clock.pipe[0].only: List should have at least 1 item"),
        ("{only: tick}", "26: sources.clock.pipe[0].only: a list is expected"),
        ("{only: [tick, tock]}", "33: sources.clock.pipe[0].only[1]: no event 'tock': did you mean 'tick'?"),
    ],
)
def test_a_faulty_step_of_a_pipe_is_told_with_its_place(problems: Any, step: str, expected: str) -> None:
    (problem,) = problems(f"sources:\n  clock:\n    pipe: [       {step}]")
    assert problem.startswith(f"plugins.yaml:3:{expected}")


@pytest.mark.parametrize(
    "step", ["{take: 1}", "{skip: 1}", "{only: [tick]}", "{spaceout: 0.1}", "{timeout: 86400}", '{take: "${N}"}']
)
def test_each_operator_is_a_step(load: Load, step: str) -> None:
    pipe = load(f"sources: {{clock: {{pipe: [{step}, {step}]}}}}", N="3").catalog.sources["clock"].pipe
    assert len(pipe) == 2


def test_what_a_relay_will_name_is_not_known_before(load: Load, local: Path) -> None:
    text = source_text("beep").replace("Beep]", "ServerSentEvent]")
    (local / "beep.py").write_text("from sse_starlette import ServerSentEvent\n" + HEAD + text, "utf-8")
    load("plugins: {dir: local}\nsources: {beep: {pipe: [{only: [anything]}]}}")


def test_a_pipe_has_a_bounded_number_of_steps(problems: Any) -> None:
    (problem,) = problems(f"sources: {{clock: {{pipe: [{', '.join(['{take: 1}'] * 17)}]}}}}")
    assert "sources.clock.pipe: List should have at most 16 items" in problem


def test_every_fault_is_in_one_report_in_the_order_of_the_file(problems: Any) -> None:
    found = problems(
        """\
server: {port: many}
sources:
  clock:
    params: {intervall: 1, timezone: Mars}
    pipe: [{take: 0}]
  cluck: {}
  cluck: {}
  beat: {use: clock, shard: true}
streams:
  dash: [clock, clack, clock]
  clock: []
plugins: {dir: gone, disabled: [zzz]}
stor: memory
"""
    )
    assert [(problem.split(": ")[0], problem.split(": ")[1]) for problem in found] == [
        ("plugins.yaml:1:16", "server.port"),
        ("plugins.yaml:4:14", "sources.clock.params.intervall"),
        ("plugins.yaml:4:38", "sources.clock.params.timezone"),
        ("plugins.yaml:5:19", "sources.clock.pipe[0].take"),
        ("plugins.yaml:6:3", "sources.cluck"),
        ("plugins.yaml:7:3", "sources.cluck"),
        ("plugins.yaml:8:22", "sources.beat.shard"),
        ("plugins.yaml:10:17", "streams.dash[1]"),
        ("plugins.yaml:10:24", "streams.dash[2]"),
        ("plugins.yaml:11:3", "streams.clock"),
        ("plugins.yaml:11:10", "streams.clock"),
        ("plugins.yaml:12:16", "plugins.dir"),
        ("plugins.yaml:12:33", "plugins.disabled[0]"),
        ("plugins.yaml:13:1", "stor"),
    ]


def test_a_stream_of_more_sources_than_one_request_may_merge_is_refused(problems: Any) -> None:
    names = [f"clock-{n}" for n in range(33)]
    sources = ", ".join(f"{name}: {{use: clock}}" for name in names)
    (problem,) = problems(f"sources: {{{sources}}}\nstreams: {{all: [{', '.join(names)}]}}")
    assert problem.startswith("plugins.yaml:2:16: streams.all: List should have at most 32 items")


def test_a_validator_that_breaks_is_the_plugins_fault_and_shows_no_value(problems: Any, local: Path) -> None:
    text = f"""from typing import Annotated
from pydantic import AfterValidator
{HEAD}
def odd(value: str) -> str:
    raise KeyError(value)

@source
async def beep(word: Annotated[str, AfterValidator(odd)]) -> AsyncIterator[Beep]:
    yield Beep(n=1)
"""
    (local / "beep.py").write_text(text, "utf-8")
    (problem,) = problems("plugins: {dir: local}\nsources: {beep: {params: {word: hunter2}}}")
    assert problem == (
        "plugins.yaml:2:26: sources.beep.params: plugin beep (local/beep.py) could not check this, it raised KeyError: "
        "mend the plugin"
    )


# Files that cannot be used


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"sources: \xff\xfe", "plugins.yaml:1:10: the file is not UTF-8 text: save it as UTF-8"),
        (b"sources: {clock: {}", "plugins.yaml:2:1: "),
        (b"sources: [\n\n}", "plugins.yaml:3:1: "),
        (
            b"- clock\n- echo\n",
            "plugins.yaml:1:1: a mapping is expected, with some of sources, streams, server, plugins",
        ),
        (
            b"clock",
            "plugins.yaml:1:1: a mapping is expected, with some of sources, streams, server, plugins, limits, cors",
        ),
        (
            b"5",
            "plugins.yaml:1:1: a mapping is expected, with some of sources, streams, server, plugins, limits, cors",
        ),
    ],
)
def test_a_file_that_is_no_configuration_is_told_in_one_line(file: Path, content: bytes, expected: str) -> None:
    file.write_bytes(content)
    with pytest.raises(ConfigError) as refused:
        load_settings(file, {})
    (problem,) = refused.value.problems
    assert problem.removeprefix(f"{file.parent}/").startswith(expected)


def test_a_file_that_is_named_and_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as refused:
        load_settings(tmp_path / "gone.yaml", {})
    (problem,) = refused.value.problems
    assert problem == (
        f"{tmp_path}/gone.yaml: cannot be read (No such file or directory): "
        "name a file that exists and that this user may read"
    )


def test_a_directory_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read \\(Is a directory\\)"):
        load_settings(tmp_path, {})


def test_a_loop_of_links_is_no_file(file: Path) -> None:
    file.symlink_to(file)
    with pytest.raises(ConfigError, match="cannot be read"):
        load_settings(file, {})


def test_of_a_file_that_cannot_be_read_to_its_end_no_plugin_is_imported(file: Path) -> None:
    trace = file.parent / "imported"
    text = f"open({str(trace)!r}, 'w').close()\n"
    write_distribution(file.parent / "site", "acme", {"beep": "acme_beep"}, {"acme_beep": text})
    with on_path(file.parent / "site"):
        file.write_text("plugins: {disabled: [beep]}\nsources: {", "utf-8")
        with pytest.raises(ConfigError):
            load_settings(file, {})
        assert not trace.exists()
        file.write_text("{}", "utf-8")
        load_settings(file, {})
        assert trace.exists()


def test_what_is_disabled_is_not_imported_whatever_else_is_wrong(file: Path, local: Path) -> None:
    trace = file.parent / "imported"
    (local / "beep.py").write_text(f"open({str(trace)!r}, 'w').close()\n", "utf-8")
    for section in ("{dir: local, disabled: [beep], zzz: 1}", "{dir: local, disabled: beep}"):
        file.write_text(f"plugins: {section}\nserver: {{port: x}}\n", "utf-8")
        with pytest.raises(ConfigError):
            load_settings(file, {})
        assert not trace.exists()


# Variables


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ('sources:\n  clock: {}\n  beat: {use: clock, params: {interval: "${PACE}"}}', "3:41"),
        ('sources: {clock: {}, beat: {use: clock, defaults: {interval: "${PACE}"}}}', "1:62"),
        ('sources: {clock: {}, beat: {use: "${PACE}"}}', "1:34"),
        ('sources: {clock: {}, beat: "${PACE}"}', "1:28"),
        ('sources: {clock: {}, beat: {use: clock, shared: "${PACE}"}}', "1:49"),
        ('sources: {clock: {}, beat: {use: clock, history: {events: "${PACE}"}}}', "1:59"),
        ('sources: {clock: {}, beat: {use: clock, pipe: [{take: "${PACE}"}]}}', "1:55"),
        ('sources: {clock: {}, beat: {use: clock, pipe: ["${PACE}"]}}', "1:48"),
        ('sources: {clock: {}, beat: {use: clock, pipe: "${PACE}"}}', "1:47"),
    ],
)
def test_a_variable_that_is_not_set_makes_its_source_unavailable_and_nothing_else(
    load: Load, file: Path, text: str, place: str
) -> None:
    settings = load(text)
    assert unavailable(settings, "beat") == f"the environment variable PACE is not set ({file}:{place})"
    assert settings.catalog.sources["clock"].unavailable is None
    with pytest.raises(
        UnavailableError, match="source 'beat' is unavailable: the environment variable PACE is not set"
    ):
        settings.catalog.sources["beat"].check_available()
    create_app(settings)  # its routes and their descriptions can be made all the same


def test_every_variable_that_a_source_waits_for_is_named_with_its_place(load: Load, file: Path) -> None:
    settings = load('sources:\n  clock:\n    params: {interval: "${PACE}", timezone: "${AREA}/${CITY}"}\n')
    assert unavailable(settings, "clock") == (
        f"the environment variable PACE is not set ({file}:3:24); "
        f"the environment variable AREA is not set ({file}:3:45); "
        f"the environment variable CITY is not set ({file}:3:45)"
    )


def test_a_source_that_waits_for_a_variable_is_checked_for_its_other_faults(problems: Any) -> None:
    text = """\
sources:
  clock:
    params: {interval: "${PACE}", timezone: Mars}
    shard: true
    pipe: [{take: "${N}"}, {tak: 1}]
"""
    assert [problem.split(": ")[:2] for problem in problems(text)] == [
        ["plugins.yaml:3:45", "sources.clock.params.timezone"],
        ["plugins.yaml:4:5", "sources.clock.shard"],
        ["plugins.yaml:5:29", "sources.clock.pipe[1].tak"],
    ]


def test_a_source_that_waits_for_a_variable_keeps_what_else_is_said_of_it(load: Load) -> None:
    settings = load('sources: {clock: {params: {interval: 2, timezone: "${ZONE}"}}}\nstreams: {dash: [clock]}')
    assert settings.catalog.sources["clock"].settable == frozenset()
    assert settings.catalog.streams == {"dash": ["clock"]}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('server: {port: "${PORT}"}', "1:16: server.port: the environment variable PORT is not set: set it, or write"),
        ('streams: {dash: ["${ONE}"]}', "1:18: streams.dash[0]: the environment variable ONE is not set"),
        ('plugins: {dir: "${DIR}"}', "1:16: plugins.dir: the environment variable DIR is not set"),
        ('plugins: {disabled: ["${OFF}"]}', "1:22: plugins.disabled[0]: the environment variable OFF is not set"),
        ('store: "${A}${B}"', "1:8: store: the environment variables A and B are not set: set it, or write ${NAME:-"),
        ('sources: "${SOURCES}"', "1:10: sources: the environment variable SOURCES is not set"),
        ('"${ALL}"', "1:1: the environment variable ALL is not set"),
    ],
)
def test_a_variable_that_is_not_set_outside_a_source_concerns_the_service(
    problems: Any, text: str, expected: str
) -> None:
    (problem,) = problems(text)
    assert problem.startswith(f"plugins.yaml:{expected}")


def test_variables_and_their_defaults_are_values_everywhere(load: Load, local: Path) -> None:
    (local / "beep.py").write_text(HEAD + source_text("beep"), "utf-8")
    settings = load(
        """\
server: {port: "${PORT}", heartbeat: "${HEARTBEAT:-2.5}"}
plugins: {dir: "${DIR}", disabled: ["${OFF:-echo}"]}
sources:
  clock: {params: {timezone: "${AREA}/${CITY:-Berlin}"}, defaults: {interval: "${PACE:-5}"}}
  beat: {use: "${USED:-counter}"}
  beep: {}
streams: {dash: ["${ONE}", "${TWO:-beat}"]}
""",
        PORT="9000",
        DIR="local",
        AREA="Europe",
        ONE="clock",
    )
    clock = settings.catalog.sources["clock"]
    assert (settings.config.server.port, settings.config.server.heartbeat) == (9000, 2.5)
    assert clock.validate({}).model_dump() == {"interval": 5.0, "timezone": "Europe/Berlin"}
    assert settings.catalog.sources["beat"].source.name == "counter"
    assert settings.catalog.streams == {"dash": ["clock", "beat"]}
    assert [plugin.name for plugin in settings.plugins.found if plugin.state == "disabled"] == ["echo"]


# Secrets

SECRET = "hunter2-and-a-good-deal-more-so-that-somebody-may-cut-it-short-before-it-ends"  # noqa: S105
CHECKED = f"""from typing import Annotated
from pydantic import AfterValidator, SecretStr
from eventmux import ConfigOnly
{HEAD}

def short(value: str) -> str:
    if value == "x":
        return value
    raise ValueError(f"{{value[:20]!r}} is not good")

def whole(value: str) -> str:
    if value == "x":
        return value
    raise ValueError(f"you gave {{value}}, and {{value!r}} again")

@source
async def beep(
    *,
    key: Annotated[SecretStr, ConfigOnly],
    cut: Annotated[str, AfterValidator(short)] = "x",
    told: Annotated[str, AfterValidator(whole)] = "x",
    number: int = 1,
) -> AsyncIterator[Beep]:
    yield Beep(n=1)
"""


@pytest.mark.parametrize(
    "params",
    [
        '{key: ["${SECRET}"]}',
        '{key: {nested: "${SECRET}"}}',
        '{number: "${SECRET}"}',
        '{cut: "${SECRET}"}',
        '{told: "${SECRET}"}',
        '{told: "before ${SECRET} after"}',
        f"{{key: [{SECRET}]}}",
        f"{{number: {SECRET}}}",
        '"${SECRET}"',
    ],
)
def test_an_error_never_shows_a_secret(problems: Any, local: Path, params: str) -> None:
    (local / "beep.py").write_text(CHECKED, "utf-8")
    found = problems(f"plugins: {{dir: local}}\nsources: {{beep: {{params: {params}}}}}", SECRET=SECRET)
    assert len(found) == 1
    assert "hunter2" not in found[0]


def test_a_validators_words_are_kept_but_for_the_value_of_the_variable(problems: Any, local: Path) -> None:
    (local / "beep.py").write_text(CHECKED, "utf-8")
    text = 'plugins: {dir: local}\nsources: {beep: {params: {told: "${SECRET}"}}}'
    words = "a 'quoted' \\ \"one\""
    assert problems(text, SECRET=words) == [
        "plugins.yaml:2:33: sources.beep.params.told: you gave ${SECRET}, and '${SECRET}' again"
    ]


@pytest.mark.parametrize(
    "text", ['store: "${SECRET}"', 'server: {port: "${SECRET}"}', 'streams: {dash: ["${SECRET}"]}']
)
def test_a_variable_in_the_wrong_place_is_not_shown_either(problems: Any, text: str) -> None:
    (problem,) = problems(text, SECRET=SECRET)
    assert "hunter2" not in problem


def test_settings_do_not_show_what_is_fixed(load: Load) -> None:
    settings = load('sources: {openai: {params: {api_key: "${SECRET}"}}}', SECRET=SECRET)
    assert settings.catalog.sources["openai"].unavailable is None
    assert "hunter2" not in repr(settings.config)


# Sources that no plugin offers


def test_a_source_of_a_broken_plugin_is_unavailable_and_the_service_is_not(load: Load, local: Path) -> None:
    (local / "beep.py").write_text("1 / 0", "utf-8")
    settings = load("plugins: {dir: local}\nsources: {beep: {}, boop: {use: beep}, clock: {}, cluck: {}}")
    reason = f"plugin beep ({local}/beep.py) cannot be used; eventmux plugins says why"
    assert unavailable(settings, "beep") == unavailable(settings, "boop") == reason
    assert settings.catalog.sources["clock"].unavailable is None
    assert unavailable(settings, "cluck") == (
        "no plugin that could be loaded offers 'cluck' (failed: beep): did you mean 'clock'?"
    )


def test_a_source_whose_name_is_contested_is_unavailable_with_the_remedy(load: Load, local: Path) -> None:
    (local / "clock.py").write_text(HEAD + source_text("clock"), "utf-8")
    settings = load("plugins: {dir: local}\nsources: {clock: {}, echo: {}}")
    assert unavailable(settings, "clock").startswith("it is offered by clock (eventmux ")
    assert unavailable(settings, "clock").endswith("name 'eventmux:clock' or 'clock.py' under plugins.disabled")


def test_a_source_of_a_disabled_plugin_is_unavailable(load: Load) -> None:
    settings = load("plugins: {disabled: ['eventmux:clock']}\nsources: {clock: {}, echo: {}}")
    assert unavailable(settings, "clock").startswith("plugin clock (eventmux ")
    assert unavailable(settings, "clock").endswith(") is disabled under plugins.disabled")


def test_a_source_that_nobody_offers_is_an_error_which_says_where_nobody_looked(problems: Any, local: Path) -> None:
    (local / "more.py").write_text(HEAD + source_text("beep"), "utf-8")
    (problem,) = problems("plugins: {dir: local, disabled: [more]}\nsources: {beep: {}}")
    assert problem.startswith("plugins.yaml:2:11: sources.beep: no source 'beep' (plugins that are disabled: more): ")


def test_a_source_that_needs_its_configuration_says_what_to_set(load: Load, file: Path) -> None:
    assert unavailable(load("sources: {openai: {}}"), "openai") == f"set sources.openai.params.api_key in {file}"
    assert unavailable(load("sources: {ai: {use: openai}}"), "ai") == f"set sources.ai.params.api_key in {file}"


def test_single_files_are_found_beside_the_configuration_and_not_beside_the_process(
    file: Path, local: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    (local / "beep.py").write_text(HEAD + source_text("beep"), "utf-8")
    file.write_text("plugins: {dir: ./local}\nsources: {beep: {}}", "utf-8")
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    assert load_settings(file, {}).catalog.sources["beep"].plugin == "beep"


# The plugins by themselves


def test_the_plugins_can_be_listed_while_the_rest_of_the_file_is_wrong(file: Path, local: Path) -> None:
    (local / "beep.py").write_text(HEAD + source_text("beep"), "utf-8")
    file.write_text("plugins: {dir: local, disabled: [echo, zzz]}\nsources: {cluck: {}}\nserver: {port: x}\n", "utf-8")
    states = {plugin.name: plugin.state for plugin in load_installed(file, {}).found}
    assert (states["beep"], states["echo"], states["clock"]) == ("loaded", "disabled", "loaded")


@pytest.mark.parametrize(
    "text",
    ["plugins: {dir: gone}", "plugins: {disabled: 5}", "plugins: {zzz: 1}", "sources: {", "- 1", 'plugins: "${X}"'],
)
def test_the_plugins_cannot_be_listed_where_it_is_not_clear_which_ones(file: Path, text: str) -> None:
    file.write_text(text, "utf-8")
    with pytest.raises(ConfigError):
        load_installed(file, {})
