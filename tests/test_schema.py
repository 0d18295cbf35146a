"""The promises of `eventmux schema`: an editor accepts what the service accepts, and marks what it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from distributions import HEAD, on_path, source_text
from eventmux.schema import config_schema
from eventmux.settings import load_installed

SHIPPED = Path(__file__).parents[1] / "plugins.yaml"


@pytest.fixture(scope="module")
def validator() -> Draft202012Validator:
    schema = config_schema(load_installed(SHIPPED, {}))
    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(schema)


@pytest.fixture
def faults(validator: Draft202012Validator) -> Any:
    """Where the schema refuses a plugins.yaml with this text."""

    def run(text: str) -> list[str]:
        return [error.json_path for error in validator.iter_errors(yaml.safe_load(text))]

    return run


def test_it_says_which_dialect_it_is(validator: Draft202012Validator) -> None:
    schema: Any = validator.schema
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"


def test_the_shipped_file_is_accepted(faults: Any) -> None:
    assert faults(SHIPPED.read_text("utf-8")) == []


@pytest.mark.parametrize(
    "text",
    [
        "{}",
        "sources: {}",
        "sources: {clock: }",
        "sources: {clock: {params: {interval: 2}, defaults: {timezone: UTC}, shared: false}}",
        "sources: {beat: {use: clock, params: {interval: 2}}}",
        "sources: {clock: {use: counter, params: {start: 1}}}",
        "sources: {clock: {history: {events: 10, bytes: 4096}, pipe: [{take: 1}, {only: [tick]}, {timeout: 0.5}]}}",
        "sources: {openai: {params: {api_key: k, messages: [{role: user, content: x}]}}}",
        "streams: {dash: [clock, anything]}",
        "server: {host: '::1', port: 0, heartbeat: 0.5, retry: 0, send_timeout: 1, grace: 1}",
        "plugins: {disabled: ['eventmux:clock'], dir: null}",
        "plugins: {dir: ./local}",
        "store: memory",
        "store: redis://host",
        "store: unix:///run/redis.sock?db=1",
        "store: {url: 'rediss://user:pass@host:6380/1', prefix: em, lease: 0.5, shards: 1024, keep: 1, timeout: 0.1}",
    ],
)
def test_what_the_service_accepts_is_accepted(faults: Any, text: str) -> None:
    assert faults(text) == []


@pytest.mark.parametrize(
    "text",
    [
        'sources: {clock: {params: {interval: "${PACE}", timezone: "${AREA}/${CITY:-Berlin}"}}}',
        'sources: {beat: {use: "${USED}", params: {anything: 1}}}',
        'sources: {clock: {shared: "${SHARED}", history: {events: "${N}"}, pipe: [{take: "${N}"}, {only: ["${E}"]}]}}',
        'sources: {openai: {params: {api_key: "${KEY}", messages: [{role: "${ROLE}", content: "${TEXT}"}]}}}',
        'server: {port: "${PORT:-8000}", heartbeat: "${HEARTBEAT}"}',
        'plugins: {disabled: ["${OFF}"], dir: "${DIR}"}',
        'store: "${STORE}"',
        'store: {url: "${REDIS}", prefix: "${PREFIX}", lease: "${LEASE}", shards: "${N}"}',
        'store: "redis://:${PASSWORD}@host"',
    ],
)
def test_a_variable_may_stand_for_a_value_of_any_type(faults: Any, text: str) -> None:
    assert faults(text) == []


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("source: {}", "$"),
        ("sources: ", "$.sources"),
        ("sources: {cluck: {}}", "$.sources.cluck"),
        ("sources: {cluck: }", "$.sources.cluck"),
        ("sources: {Beat: {use: clock}}", "$.sources"),
        ("sources: {beat: {use: cluck}}", "$.sources.beat.use"),
        ("sources: {clock: {parms: {}}}", "$.sources.clock"),
        ("sources: {clock: 5}", "$.sources.clock"),
        ("sources: {clock: {params: {intervall: 1}}}", "$.sources.clock.params"),
        ("sources: {clock: {params: {interval: soon}}}", "$.sources.clock.params.interval"),
        ("sources: {clock: {params: {interval: -1}}}", "$.sources.clock.params.interval"),
        ("sources: {beat: {use: clock, params: {interval: -1}}}", "$.sources.beat.params.interval"),
        ("sources: {beat: {use: clock, defaults: {start: 1}}}", "$.sources.beat.defaults"),
        ("sources: {clock: {use: counter, params: {timezone: UTC}}}", "$.sources.clock.params"),
        ("sources: {openai: {defaults: {api_key: k}}}", "$.sources.openai.defaults"),
        ("sources: {openai: {params: {api: talk}}}", "$.sources.openai.params.api"),
        ("sources: {clock: {pipe: [{tak: 1}]}}", "$.sources.clock.pipe[0]"),
        ("sources: {clock: {pipe: [{}]}}", "$.sources.clock.pipe[0]"),
        ("sources: {clock: {pipe: [{take: 1, skip: 1}]}}", "$.sources.clock.pipe[0]"),
        ("sources: {clock: {pipe: [{take: 0}]}}", "$.sources.clock.pipe[0].take"),
        ("sources: {clock: {history: {events: 0}}}", "$.sources.clock.history.events"),
        ("sources: {clock: {shared: 5}}", "$.sources.clock.shared"),
        ("streams: {dash: []}", "$.streams.dash"),
        ("streams: {Dash: [clock]}", "$.streams"),
        ("server: {prot: 1}", "$.server"),
        ("server: {port: http}", "$.server.port"),
        ("server: {port: 65536}", "$.server.port"),
        ("server: ", "$.server"),
        ("plugins: {disable: []}", "$.plugins"),
        ("store: disk", "$.store"),
        ("store: http://host", "$.store"),
        ("store: {}", "$.store"),
        ("store: {url: memory}", "$.store"),
        ("store: {url: 'redis://host', leas: 1}", "$.store"),
        ("store: {url: 'redis://host', shards: 0}", "$.store"),
    ],
)
def test_what_the_service_refuses_is_refused_at_its_place(faults: Any, text: str, place: str) -> None:
    assert faults(text) == [place]


def test_an_editor_is_told_what_each_key_and_parameter_is_for(validator: Draft202012Validator) -> None:
    schema: Any = validator.schema
    clock = schema["properties"]["sources"]["properties"]["clock"]
    assert clock["description"].startswith("The time in `timezone`")
    interval = schema["$defs"]["clock"]["properties"]["params"]["properties"]["interval"]
    assert (interval["description"], interval["default"]) == ("seconds between two ticks", 1.0)
    assert schema["$defs"]["SourceConfig"]["properties"]["use"]["description"]


PARAMETERS = """
import enum
from pydantic import BaseModel

class Tone(enum.Enum):
    low = 'low'
    high = 'high'

class Note(BaseModel):
    length: int
"""


def test_the_sources_of_every_plugin_that_can_be_loaded_are_in_it(tmp_path: Path) -> None:
    signature = "beep(*, tone: Tone = Tone.low, notes: list[Note] = [], times: list[int] | None = None)"
    text = HEAD + PARAMETERS + source_text("beep").replace("beep()", signature)
    (tmp_path / "beep.py").write_text(text, "utf-8")
    (tmp_path / "clock.py").write_text(HEAD + source_text("clock") + source_text("another"), "utf-8")
    (tmp_path / "bad.py").write_text("1 / 0", "utf-8")
    file = tmp_path / "plugins.yaml"
    file.write_text("plugins: {dir: .}", "utf-8")
    with on_path(tmp_path):
        schema = config_schema(load_installed(file, {}))
    Draft202012Validator.check_schema(schema)
    checking = Draft202012Validator(schema)

    def faults(params: Any) -> list[str]:
        given = {"sources": {"beep": {"params": params}, "another": {}}}
        return [error.json_path.removeprefix("$.sources.beep.params.") for error in checking.iter_errors(given)]

    assert faults({"tone": "high", "notes": [{"length": 1}, {"length": "${N}"}], "times": [1, "${N}"]}) == []
    assert faults({"tone": "flat"}) == ["tone"]
    assert faults({"notes": [{"length": "long"}, {"lenght": 1}]}) == ["notes[0].length", "notes[1]"]
    assert faults({"notes": ["${NOTE}"]}) == ["notes[0]"]
    assert "clock" not in schema["properties"]["sources"]["properties"]  # two offer it, so it is nobody's
