"""The files of docs/deployment fit the service, and each other."""

from __future__ import annotations

import configparser
import inspect
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import uvicorn
import yaml

import portable
from edge import DEPLOYMENT
from eventmux.child import MARGIN
from eventmux.config import Config, LimitsConfig, ServerConfig
from eventmux.cursor import MAX_CURSOR
from eventmux.settings import load_settings
from service import Client, serve_process

ROOT = DEPLOYMENT.parents[1]
PAGE = (DEPLOYMENT / "README.md").read_text("utf-8")
needs_systemd = pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd-analyze is not installed")


def container() -> list[list[str]]:
    """The steps of the Containerfile."""
    text = re.sub(r"^#.*\n", "", (DEPLOYMENT / "Containerfile").read_text("utf-8"), flags=re.MULTILINE)
    return [line.split(maxsplit=1) for line in text.replace("\\\n", " ").splitlines() if line]


def steps(word: str) -> list[str]:
    return [rest for name, rest in container() if name == word]


def unit() -> dict[str, str]:
    parser = configparser.RawConfigParser(strict=False)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_string((DEPLOYMENT / "eventmux.service").read_text("utf-8"))
    return dict(parser["Service"])


def test_the_page_names_every_file_and_every_file_is_there() -> None:
    linked = set(re.findall(r"^\| \[(.*?)\]", PAGE, re.MULTILINE))
    assert {path.name for path in DEPLOYMENT.iterdir()} - {"README.md"} == linked


def test_every_key_of_the_configuration_that_is_named_exists() -> None:
    texts = [path.read_text("utf-8") for path in DEPLOYMENT.iterdir()]
    named = set(re.findall(r"\b(server|limits|plugins)\.(?!yaml\b)([a-z_]+)", "\n".join(texts)))
    assert named
    for section, key in named:
        assert key in type(getattr(Config(), section)).model_fields, f"{section}.{key}"


def test_the_bounds_of_nginx_are_those_of_the_service() -> None:
    text = (DEPLOYMENT / "nginx.conf").read_text("utf-8")
    assert LimitsConfig().body == 1024 * 1024
    assert "client_max_body_size 1m;" in text
    [kilobytes] = re.findall(r"large_client_header_buffers 4 (\d+)k;", text)
    assert int(kilobytes) * 1024 >= LimitsConfig().query + MAX_CURSOR
    idle = inspect.signature(uvicorn.Config).parameters["timeout_keep_alive"].default
    for name, word in (("nginx.conf", "keepalive_timeout"), ("Caddyfile", "keepalive")):
        [seconds] = re.findall(rf"{word} (\d+)s", (DEPLOYMENT / name).read_text("utf-8"))
        assert int(seconds) < idle
    assert "1MiB" in (DEPLOYMENT / "Caddyfile").read_text("utf-8")


def test_the_image_is_made_of_what_is_there_and_of_names_without_a_registry() -> None:
    assert [["python:3.13-slim", "AS", "build"], ["python:3.13-slim"]] == [step.split() for step in steps("FROM")]
    copied = [step.split()[:-1] for step in steps("COPY") if not step.startswith("--from")]
    assert all((ROOT / path).exists() for paths in copied for path in paths)
    assert not any(word in step for step in steps("RUN") for word in ("apt", "curl", "gcc", "wget"))


def test_the_image_runs_as_nobody_and_without_a_shell() -> None:
    [user] = steps("USER")
    assert all(int(number) >= 10_000 for number in user.split(":"))
    [entry], [command], [health] = steps("ENTRYPOINT"), steps("CMD"), steps("HEALTHCHECK")
    assert ["eventmux"] == json.loads(entry)
    assert "serve" == json.loads(command)[0]
    assert isinstance(json.loads(health.partition("CMD ")[2]), list)
    assert ["SIGTERM"] == steps("STOPSIGNAL")


def test_what_the_image_copies_is_enough_to_install_and_runs_read_only(tmp_path: Path) -> None:
    source, target = tmp_path / "src", tmp_path / "opt"
    source.mkdir()
    [*copies] = [step.split() for step in steps("COPY") if "/src" in step]
    for *names, to in copies:
        for name in names:
            copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
            copy(ROOT / name, tmp_path / to.strip("/") / (name if to.endswith("/") else ""))
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--no-deps"]
    words = ["--no-build-isolation", "--no-index", "--target", str(target), str(source)]
    subprocess.run([*pip, *words], check=True, timeout=100)
    [plugins] = [step.split()[0] for step in steps("COPY") if step.endswith("/etc/eventmux/plugins.yaml")]
    shutil.copy(ROOT / plugins, tmp_path / "plugins.yaml")
    [command], [health] = steps("CMD"), steps("HEALTHCHECK")
    environ = {"PYTHONPATH": f"{target}:{portable.TESTS}", "PYTHONDONTWRITEBYTECODE": "1"}
    before = sorted(tmp_path.rglob("*"))
    # It listens on all addresses, and is right to refuse that without `auth`.
    done = subprocess.run(
        [sys.executable, "-m", "eventmux", *json.loads(command)],
        env={**os.environ, **environ},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 1
    assert "--insecure" in done.stderr
    assert before == sorted(tmp_path.rglob("*"))
    with serve_process(cwd=tmp_path, environ=environ) as process:
        url = process.wait_for_url()
        check = json.loads(health.partition("CMD ")[2])[1:]
        check[1] = check[1].replace("http://127.0.0.1:8000", url)
        subprocess.run([sys.executable, *check], check=True, timeout=30)
        assert 0 == process.stop()


@needs_systemd
def test_systemd_finds_no_fault_with_the_unit_and_its_score_is_that_of_the_page(tmp_path: Path) -> None:
    file = tmp_path / "eventmux.service"
    text = (DEPLOYMENT / "eventmux.service").read_text("utf-8")
    file.write_text(text.replace("/opt/eventmux/bin/eventmux", sys.executable), "utf-8")
    analyze = [str(shutil.which("systemd-analyze")), "--no-pager"]
    done = subprocess.run([*analyze, "verify", str(file)], capture_output=True, text=True, timeout=60, check=False)
    assert (0, "") == (done.returncode, done.stderr)
    score = subprocess.run(
        [*analyze, "security", "--offline=yes", str(file)], capture_output=True, text=True, timeout=60, check=False
    )
    [found] = re.findall(r"Overall exposure level for .*: ([\d.]+)", score.stdout)
    [told] = re.findall(r"gives it \*\*([\d.]+)\*\*", PAGE)
    assert float(found) <= float(told) + 0.3  # other releases weigh a little differently


def test_the_unit_gives_the_service_the_time_and_the_files_that_it_may_need() -> None:
    service = unit()
    defaults = ServerConfig()
    assert int(service["TimeoutStopSec"]) > defaults.drain_delay + defaults.grace + MARGIN
    assert int(service["LimitNOFILE"]) > LimitsConfig().streams
    assert ("SIGTERM", "on-failure") == (service["KillSignal"], service["Restart"])
    # Of several workers: only the parent is told to end, and one that is killed for its memory is not the end of all.
    assert ("mixed", "continue") == (service["KillMode"], service["OOMPolicy"])
    assert ["kill", "-HUP", "$MAINPID"] == shlex.split(service["ExecReload"])
    assert "" == service["CapabilityBoundingSet"]


def test_the_service_works_where_memory_that_is_written_is_not_executed(tmp_path: Path) -> None:
    """MemoryDenyWriteExecute, as the kernel itself keeps it."""
    probe = "import ctypes, sys; sys.exit(ctypes.CDLL(None).prctl(65, 1, 0, 0, 0) != 0)"
    if subprocess.run([sys.executable, "-c", probe], check=False, timeout=30).returncode:
        pytest.skip("this kernel has no PR_SET_MDWE")
    site = tmp_path / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text("import ctypes\nassert ctypes.CDLL(None).prctl(65, 1, 0, 0, 0) == 0\n")
    with serve_process(
        cwd=tmp_path, environ={"PYTHONPATH": f"{site}:{portable.TESTS}:{os.environ.get('PYTHONPATH', '')}"}
    ) as process:
        url = process.wait_for_url()
        with Client(url).open("/sse?sources=clock,counter") as stream:
            assert len(stream.take(3)) == 3
        assert 0 == process.stop()


def test_the_example_for_kubernetes_fits_the_service(tmp_path: Path) -> None:
    deployment, configuration, service = yaml.safe_load_all((DEPLOYMENT / "kubernetes.yaml").read_text("utf-8"))
    (tmp_path / "plugins.yaml").write_text(configuration["data"]["plugins.yaml"], "utf-8")
    server = load_settings(tmp_path / "plugins.yaml", {}).config.server
    pod: dict[str, Any] = deployment["spec"]["template"]["spec"]
    [one] = pod["containers"]
    assert pod["terminationGracePeriodSeconds"] > server.drain_delay + server.grace
    assert server.drain_delay > one["readinessProbe"]["periodSeconds"] * one["readinessProbe"]["failureThreshold"]
    assert (1, "Recreate") == (deployment["spec"]["replicas"], deployment["spec"]["strategy"]["type"])
    port = json.loads(steps("CMD")[0])[-1]
    assert {port} == {str(one["ports"][0]["containerPort"]), str(service["spec"]["ports"][0]["targetPort"])}
    assert ("/readyz", "/healthz") == tuple(
        one[f"{name}Probe"]["httpGet"]["path"] for name in ("readiness", "liveness")
    )
