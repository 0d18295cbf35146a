"""README and docs stay true: what they name exists, what they show works."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import httpx2
import pytest
import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from eventmux import errors
from eventmux.cli import main
from eventmux.config import (
    AuthConfig,
    Config,
    CorsConfig,
    HistoryConfig,
    JwtConfig,
    LimitsConfig,
    PluginsConfig,
    ServerConfig,
    SourceConfig,
    StoreConfig,
    TlsConfig,
    TokenConfig,
)
from eventmux.operators import Step
from eventmux.plugins import load_plugins
from eventmux.settings import load_settings
from eventsource import PATIENCE
from service import Service, serving

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
GUIDES = sorted((ROOT / "docs").glob("*.md"))
PAGES = [README, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
PREFIXES = {HistoryConfig: "history.", TlsConfig: "tls."}
MODELS = [
    Config,
    SourceConfig,
    HistoryConfig,
    ServerConfig,
    TlsConfig,
    LimitsConfig,
    CorsConfig,
    AuthConfig,
    TokenConfig,
    JwtConfig,
    PluginsConfig,
    StoreConfig,
    Step,
]


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text("utf-8"), re.MULTILINE | re.DOTALL)


def sources_of(page: Path) -> dict[str, str]:
    """The blocks of Python that define a source, by the name of the first one."""
    found = {}
    for block in blocks(page, "python"):
        if "@source" in block:
            name = re.search(r"^ *async def (\w+)", block, re.MULTILINE)
            assert name
            found[name[1]] = block
    return found


def name_of(page: object) -> str:
    return str(page.relative_to(ROOT)) if isinstance(page, Path) else str(page)


CONFIGURATIONS = [
    pytest.param(page, block, id=f"{name_of(page)}-{number}")
    for page in [README, *GUIDES]
    for number, block in enumerate(blocks(page, "yaml"))
]
SOURCES = [
    pytest.param(name, block, id=f"{name_of(page)}-{name}")
    for page in [README, *GUIDES]
    for name, block in sources_of(page).items()
]


@pytest.mark.parametrize(("page", "block"), CONFIGURATIONS)
def test_a_configuration_that_is_shown_passes_the_check(page: Path, block: str, tmp_path: Path) -> None:
    assert yaml.safe_load(block).keys() <= Config.model_fields.keys()
    (tmp_path / "local").mkdir()
    for name, code in sources_of(page).items():
        (tmp_path / "local" / f"{name}.py").write_text(code, "utf-8")
    file = tmp_path / "plugins.yaml"
    file.write_text(block, "utf-8")
    settings = load_settings(file, {})
    assert {name for name, source in settings.catalog.sources.items() if source.unavailable} <= {"openai"}


@pytest.mark.parametrize(("name", "block"), SOURCES)
def test_a_source_that_is_shown_is_a_plugin(name: str, block: str, tmp_path: Path) -> None:
    (tmp_path / f"{name}.py").write_text(block, "utf-8")
    [plugin] = [one for one in load_plugins(directory=tmp_path).found if one.distribution is None]
    assert (plugin.name, plugin.state, plugin.error) == (name, "loaded", None)
    assert plugin.sources


def test_a_way_to_authenticate_that_is_shown_is_a_plugin(tmp_path: Path) -> None:
    [block] = [block for block in blocks(ROOT / "docs" / "authentication.md", "python") if "def authenticate" in block]
    (tmp_path / "way.py").write_text(block, "utf-8")
    [plugin] = load_plugins(directory=tmp_path).guards
    assert (plugin.name, plugin.state, plugin.error) == ("way", "loaded", None)


def test_the_test_of_a_source_that_is_shown_passes(tmp_path: Path) -> None:
    page = ROOT / "docs" / "writing-sources.md"
    [test] = [block for block in blocks(page, "python") if "def test_" in block]
    (tmp_path / "dice.py").write_text(sources_of(page)["dice"], "utf-8")
    (tmp_path / "test_dice.py").write_text(test, "utf-8")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", tmp_path, tmp_path]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    with serving(load_settings(ROOT / "plugins.yaml", {}), expect_quiet=False) as service:
        yield service


@pytest.mark.parametrize("block", [*blocks(README, "html"), *blocks(README, "js")])
def test_every_listener_of_the_readme_hears_something(service: Service, block: str) -> None:
    [url] = re.findall(r'new EventSource\("(.*?)"\)', block)
    waited = set(re.findall(r'addEventListener\("(.*?)"', block))
    assert waited
    with service.open(url) as stream:
        while waited:
            waited -= {stream.take(1)[0].event}


@pytest.mark.parametrize("block", [block for block in blocks(README, "sh") if block.startswith("curl")])
def test_every_request_of_the_readme_gets_events(service: Service, block: str) -> None:
    _, *words = shlex.split(block.replace("\\\n", ""))
    given: dict[str, list[str]] = {"url": [], "-H": [], "-d": []}
    options = iter(word for word in words if word != "-N")
    for word in options:
        given["url" if word.startswith("http") else word].append(word if word.startswith("http") else next(options))
    [url] = given["url"]
    with httpx2.stream(
        "POST" if given["-d"] else "GET",
        url.replace("http://127.0.0.1:8000", service.url),
        headers=dict(header.split(": ", 1) for header in given["-H"]),
        content="".join(given["-d"]) or None,
        timeout=PATIENCE,
        trust_env=False,
    ) as response:
        assert response.status_code == 200
        if response.headers["content-type"] == "application/json":
            assert json.loads(response.read())[-1]["data"]["reason"] == "completed"
        else:
            assert any("event: " in line for line in response.iter_lines())


@pytest.mark.parametrize("model", MODELS)
def test_every_key_of_the_configuration_is_documented(model: type[BaseModel]) -> None:
    text = (ROOT / "docs" / "configuration.md").read_text("utf-8")
    prefix = re.escape(PREFIXES.get(model, ""))
    missing = [
        key for key in model.model_fields if not re.search(rf"^\| `{prefix}{key}(: .*?)?` \|", text, re.MULTILINE)
    ]
    assert missing == []


@pytest.mark.parametrize(
    ("model", "section"),
    [
        (ServerConfig, "server"),
        (HistoryConfig, "sources"),
        (LimitsConfig, "limits"),
        (CorsConfig, "cors"),
        (AuthConfig, "auth"),
        (JwtConfig, "auth"),
        (StoreConfig, "store"),
    ],
)
def test_every_default_that_is_documented_is_the_default(model: type[BaseModel], section: str) -> None:
    text = (ROOT / "docs" / "configuration.md").read_text("utf-8")
    text = text.partition(f"\n## {section}")[2].partition("\n## ")[0]
    prefix = re.escape(PREFIXES.get(model, ""))
    documented = dict(re.findall(rf"^\| `{prefix}(\w+)` \| *(.*?) *\|", text, re.MULTILINE))
    assert {key: _shown(field) for key, field in model.model_fields.items()} == {
        key: documented[key] for key in model.model_fields
    }


def _shown(field: FieldInfo) -> str:
    """A default as the tables write it."""
    value = field.default
    if field.is_required():
        return ""
    if value is None and float not in get_args(field.annotation):
        return "none"
    if isinstance(value, list) and value:
        return ", ".join(f"`{one}`" for one in value)
    return f"`{int(value)}`" if isinstance(value, float) and value.is_integer() else f"`{value}`"


def test_every_command_and_option_is_documented() -> None:
    text = "\n".join(page.read_text("utf-8") for page in [README, *GUIDES])
    assert [name for name in main.commands if f"eventmux {name}" not in text] == []
    options = {option for command in [main, *main.commands.values()] for one in command.params for option in one.opts}
    assert [option for option in sorted(options) if option.startswith("--") and option not in text] == []


def test_every_status_that_an_error_becomes_is_documented() -> None:
    text = (ROOT / "docs" / "wire-format.md").read_text("utf-8")
    statuses = {one.__name__: one.status for one in errors.EventmuxError.__subclasses__() if "status" in vars(one)}
    assert statuses
    assert [name for name, status in statuses.items() if f"\n| {status} |" not in text] == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_link_within_the_repository_leads_somewhere(page: Path) -> None:
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text("utf-8"))
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_the_two_commands_stand_in_the_readme_once_and_ci_runs_the_tests_by_the_same() -> None:
    text = README.read_text("utf-8")
    assert blocks(README, "sh")[:2] == ["pip install . && eventmux serve\n", "pip install -e '.[test]' && pytest\n"]
    assert [text.count(block.strip()) for block in blocks(README, "sh")[:2]] == [1, 1]
    assert (ROOT / ".ci" / "run").read_text("utf-8").count("pip install -e '.[test]' && pytest") == 1
