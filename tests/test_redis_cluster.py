"""The Redis Cluster that other tests stand on does what those tests believe."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import pytest
import redis
from redis.exceptions import AskError, MovedError

from redis_cluster import RedisCluster, slot_of
from redis_server import versions

Make = Callable[..., RedisCluster]


@pytest.mark.parametrize("version", versions())
def test_a_plain_client_sees_that_a_slot_moves_and_a_cluster_client_follows(own_cluster: Make, version: str) -> None:
    cluster = own_cluster(version=version, masters=2)
    source, target = cluster.owner("key"), cluster.another("key")
    with contextlib.closing(redis.RedisCluster.from_url(cluster.url, decode_responses=True)) as client:
        client.set("key", "1")
        assert source.command("GET", "key") == "1"
        with pytest.raises(MovedError):
            target.command("GET", "key")

        cluster.begin_move("key", target)
        with pytest.raises(AskError):
            source.command("GET", "{key}none")
        assert source.command("GET", "key") == "1"

        cluster.move_slot("key", target)
        with pytest.raises(MovedError) as moved:
            source.command("GET", "key")
        assert (moved.value.slot_id, moved.value.port) == (slot_of("key"), target.port)
        assert cluster.owner("key") is target
        assert target.command("GET", "key") == client.get("key") == "1"
        assert cluster.count_keys() == 1


def test_streams_of_a_cluster_of_three_with_a_password_move_and_outlive_a_kill(own_cluster: Make) -> None:
    cluster = own_cluster(password="secret")  # noqa: S106
    for number in range(300):
        cluster.command("{s}1", "XADD", "{s}1", "*", "n", number)
        cluster.command(f"key-{number}", "SET", f"key-{number}", number)
    assert all(node.count_keys("key-*") > 50 for node in cluster.nodes)
    target = cluster.another("{s}1")
    cluster.move_slot("{s}1", target)
    assert target.command("XLEN", "{s}1") == 300
    target.kill()
    target.start()
    cluster.wait_for_all()
    assert target.command("XLEN", "{s}1") == 300
    assert cluster.count_keys() == 301
