"""The stores of eventmux do what the Protocol says."""

from __future__ import annotations

import pytest

from eventmux.store.memory import MemoryStore, Shelf
from eventmux.store.redis import RedisStore
from redis_server import Redis
from store_contract import Make, StoreContract


class TestMemoryStore(StoreContract):
    @pytest.fixture
    def make(self) -> Make:
        shelf = Shelf()
        return lambda: MemoryStore(shelf)


class TestRedisStore(StoreContract):
    @pytest.fixture(params=[1, 3], ids=["one shard", "three shards"])
    def make(self, each_redis: Redis, request: pytest.FixtureRequest) -> Make:
        return lambda: RedisStore(each_redis.url, prefix=each_redis.prefix, shards=request.param)
