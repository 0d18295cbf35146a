"""What every test has. In CI (`CI` set) a program that is missing is a failure, elsewhere a skip with its reason."""

from __future__ import annotations

import logging
import os
import shutil
from pathlib import Path

import pytest

import portable
from redis_cluster import own_cluster
from redis_server import each_redis, own_redis, redis_server, shared_redis

__all__ = ["each_redis", "own_cluster", "own_redis", "redis_server", "shared_redis"]

NOT_PORTABLE = {
    "test_config",  # about what the defaults are,
    "test_documentation",
    "test_outlets",  # or about both paths, whatever the default is,
    "test_server",
    "test_shutdown",
    "test_tls",
    "test_trial",
    "test_visits",
    "test_breakage_delivery",
    "test_http2",  # or about a server on which all streams are portable,
    "test_bench",  # or about programs that are not the service,
    "test_bench_suite",
    "test_cli",  # or about what comes before a stream, or beside it, and is the same for both
    "test_auth_chromium",
    "test_caddy",
    "test_deployment",
    "test_gate",
    "test_health",
    "test_jwt",
    "test_log_format",
    "test_nginx",
    "test_openapi",
    "test_plugin_openai",
    "test_plugins",
    "test_reload",
    "test_schemathesis",
    "test_supervisor",
    "test_tickets_kept",
    "test_workers",
    "test_child",
    "test_chaos",
    "test_redis_away",
    "test_third_party",
    "test_watchdog",
}

# Files of tests that take longer than others, the longest first: where several processes share the files, who begins
# one of these at the end keeps all waiting.
LONG = (
    "test_chaos",
    "test_shutdown",
    "test_cli",
    "test_supervisor",
    "test_workers",
    "test_reload",
    "test_resume_clients",
    "test_outlets",
    "test_schemathesis",
    "test_resume_chromium",
    "test_nginx",
    "test_store_cluster",
    "test_bench",
    "test_server",
    "test_redis_churn",
    "test_slowloris",
    "test_third_party",
)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def pytest_runtest_setup(item: pytest.Item) -> None:
    for mark in item.iter_markers("needs"):
        for program in mark.args:
            if not shutil.which(program):
                reason = f"{program} is not installed"
                if os.environ.get("CI"):
                    pytest.fail(f"{reason}: in CI this test must run")
                pytest.skip(reason)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--portable", action="store_true", help="only tests with a server, and on the portable path")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--portable"):
        portable.choose()


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    return True if config.getoption("--portable") and collection_path.stem in NOT_PORTABLE else None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--portable"):
        served = [item for item in items if _has_a_server(item)]
        config.hook.pytest_deselected(items=[item for item in items if item not in served])
        items[:] = served
    if hasattr(config, "workerinput"):
        items.sort(key=lambda item: LONG.index(_file(item)) if _file(item) in LONG else len(LONG))


def _file(item: pytest.Item) -> str:
    return str(getattr(getattr(item, "module", None), "__name__", "")).rpartition(".")[2]


def _has_a_server(item: pytest.Item) -> bool:
    module = getattr(item, "module", None)
    return any(hasattr(module, name) for name in ("serving", "serving_file", "serve_process", "Process"))


@pytest.fixture
def uvicorn_log(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> pytest.LogCaptureFixture:
    """`caplog`, with uvicorn's errors in it, whatever another test has made of its loggers."""
    for name in ("uvicorn", "uvicorn.error"):
        monkeypatch.setattr(logging.getLogger(name), "propagate", True)
        monkeypatch.setattr(logging.getLogger(name), "disabled", False)
        caplog.set_level(logging.ERROR, name)
    return caplog
