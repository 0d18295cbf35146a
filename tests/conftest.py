"""What every test has. In CI (`CI` set) a program that is missing is a failure, elsewhere a skip with its reason."""

from __future__ import annotations

import os
import shutil

import pytest


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
