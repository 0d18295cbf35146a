"""The stores of eventmux do what the Protocol says."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from eventmux.store.memory import MemoryStore, Shelf
from eventmux.store.redis import RedisStore
from eventmux.testing.store import Make, StoreContract
from redis_server import Redis


class TestMemoryStore(StoreContract):
    @pytest.fixture
    def make(self) -> Make:
        shelf = Shelf()
        return lambda: MemoryStore(shelf)


class TestRedisStore(StoreContract):
    @pytest.fixture(params=[1, 3], ids=["one shard", "three shards"])
    def make(self, each_redis: Redis, request: pytest.FixtureRequest) -> Make:
        return lambda: RedisStore(each_redis.url, prefix=each_redis.prefix, shards=request.param)


THEIRS = """
import pytest

from eventmux.store.memory import MemoryStore, Shelf
from eventmux.testing.store import Make, StoreContract


class TestTheirs(StoreContract):
    @pytest.fixture
    def make(self) -> Make:
        shelf = Shelf()
        return lambda: MemoryStore(shelf)


class Generous(MemoryStore):
    async def read(self, address, after, limit):
        return await super().read(address, after, limit + 1)


class TestGenerous(TestTheirs):
    @pytest.fixture
    def make(self) -> Make:
        shelf = Shelf()
        return lambda: Generous(shelf)
"""


def test_a_third_party_runs_the_same_tests_and_is_told_what_its_store_does_not_keep(tmp_path: Path) -> None:
    (tmp_path / "test_theirs.py").write_text(THEIRS, "utf-8")
    words = [sys.executable, "-m", "pytest", "-q", "--rootdir", ".", "-p", "no:xdist", "-k", "batch or event_is_read"]
    environ = {name: value for name, value in os.environ.items() if name != "PYTEST_ADDOPTS"}
    done = subprocess.run(words, check=False, cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "3 passed, 1 failed" in done.stdout or "1 failed, 3 passed" in done.stdout
    assert "TestGenerous::test_an_event_is_read_as_it_was_written" in done.stdout
    assert "Left contains one more item" in done.stdout, "what was compared"
