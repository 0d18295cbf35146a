"""A plugin in a distribution of its own: built, installed beside the built service in a fresh environment, served."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx2
import pytest

from eventsource import PATIENCE, EventSource, wait_until

ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "examples" / "third-party"
BUILD_PATIENCE = 120.0  # seconds for a subprocess that builds or installs


@dataclass(frozen=True)
class Environment:
    """A virtual environment, and a folder to work in that is neither the repository nor below it."""

    python: Path
    folder: Path

    def run(self, *arguments: str | Path) -> str:
        return run(self.python, *arguments, cwd=self.folder)


def run(*arguments: str | Path, cwd: Path) -> str:
    done = subprocess.run(
        arguments, cwd=cwd, env=clean_environ(), capture_output=True, text=True, timeout=BUILD_PATIENCE, check=False
    )
    assert done.returncode == 0, f"{arguments}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def clean_environ() -> dict[str, str]:
    """Without what would let the running interpreter's paths in, or the tests' own options."""
    return {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "PYTEST_"))}


def wheel(project: Path, folder: Path) -> Path:
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, project, cwd=folder)
    [built] = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """Two wheels in a fresh environment. What they depend on comes from the running one, so that no network is needed;
    the service itself does not, because an editable install's own .pth is not read through another .pth.
    """
    folder = tmp_path_factory.mktemp("third-party")
    example = folder / "example"
    shutil.copytree(EXAMPLE, example, ignore=shutil.ignore_patterns("dist", "build", "*.egg-info", "__pycache__"))
    wheels = []
    for name, project in (("host", ROOT), ("plugin", example)):
        (folder / name).mkdir()
        wheels.append(wheel(project, folder / name))
    venv.create(folder / "venv", symlinks=True)
    python = folder / "venv" / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", python, "--quiet", "--disable-pip-version-check"]
    run(*pip, "install", "--no-index", "--no-deps", *wheels, cwd=folder)
    [packages] = (folder / "venv" / "lib").glob("python*/site-packages")
    paths = sysconfig.get_paths()
    (packages / "dependencies.pth").write_text("\n".join(dict.fromkeys([paths["purelib"], paths["platlib"]])))
    return Environment(python, folder)


@contextmanager
def served(environment: Environment) -> Iterator[str]:
    log = environment.folder / "serve.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [environment.python.with_name("eventmux"), "serve", "--port", "0", "--strict"],
            cwd=environment.folder,
            env=clean_environ(),
            stdout=output,
            stderr=subprocess.STDOUT,
        )

    def url() -> str | None:
        assert process.poll() is None, log.read_text()
        found = re.search(r"^eventmux .* at (http://\S+),", log.read_text(), re.MULTILINE)
        return found and found[1]

    try:
        yield str(wait_until(url, "the service to say where it listens"))
        process.terminate()
        assert process.wait(PATIENCE) == 0, log.read_text()
    finally:
        process.kill()
        process.wait(PATIENCE)


def answers(url: str) -> bool:
    try:
        return httpx2.get(f"{url}/healthz", trust_env=False).status_code == 200
    except httpx2.TransportError:
        return False


def test_the_service_comes_from_its_wheel(environment: Environment) -> None:
    shown = environment.run(
        "-c", "import eventmux, eventmux_plugins; print(eventmux.__file__, eventmux_plugins.__file__)"
    )
    for file in shown.split():
        assert Path(file).is_relative_to(environment.folder / "venv")


def test_an_installed_plugin_is_listed_with_its_distribution_and_version(environment: Environment) -> None:
    listed = json.loads(environment.run("-m", "eventmux", "plugins", "--json"))
    assert {plugin["state"] for plugin in listed} == {"loaded"}
    assert [plugin for plugin in listed if plugin["name"] == "disk"] == [
        {
            "name": "disk",
            "distribution": "eventmux-disk",
            "version": "0.1.0",
            "target": "eventmux_disk",
            "sources": ["disk"],
            "state": "loaded",
            "error": None,
        }
    ]


def test_its_source_is_served_beside_the_bundled_ones(environment: Environment) -> None:
    config = "sources:\n  disk: {params: {path: .}, defaults: {interval: 0.1}}\n  counter: {}\n"
    (environment.folder / "plugins.yaml").write_text(config)
    with served(environment) as url:
        wait_until(lambda: answers(url), "the service to answer")
        with EventSource(f"{url}/sse/disk") as stream:
            events = stream.take(2)
        with EventSource(f"{url}/sse?sources=disk,counter&limit=5") as stream:
            merged = stream.rest()
    assert [event.event for event in events] == ["disk_usage", "disk_usage"]
    assert events[0].data.keys() == {"total", "used", "free"}
    assert 0 <= events[0].data["free"] <= events[0].data["total"]
    assert {"disk_usage", "count"} <= {event.event for event in merged}


def test_its_own_tests_pass_there(environment: Environment) -> None:
    environment.run("-m", "pytest", "-q", "--rootdir", environment.folder / "example", environment.folder / "example")
