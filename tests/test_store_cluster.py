"""The store in a Redis Cluster: its keys are where one script and one XREAD find them, and go on when they move."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from itertools import count

import pytest

from eventmux.errors import StoreAwayError
from eventmux.store.contract import Address
from eventmux.store.redis import RedisStore
from eventmux.testing.store import Make, StoreContract, address, append, begin, eventually, numbered, until
from redis_cluster import SLOTS, RedisCluster, info_of, slot_of
from redis_server import program
from redis_site import redis_sites
from redis_writer import BLOCK, TIMEOUT, Reader, Writer, patiently
from replicas import until as soon
from test_replicas import Feed, reading

SHARDS = 7


@pytest.fixture(scope="module")
def cluster() -> Iterator[RedisCluster]:
    """It is one for all, and left whole, with its slots where a test has moved them."""
    with RedisCluster(program(), masters=3) as cluster:
        cluster.start()
        yield cluster


@pytest.fixture
def stores(cluster: RedisCluster) -> Make:
    cluster.clear()
    # Each shard finds its node from whichever it is told.
    return lambda: RedisStore(cluster.nodes[1].url, shards=SHARDS, timeout=TIMEOUT, max_block=BLOCK)


class TestRedisStoreInACluster(StoreContract):
    @pytest.fixture
    def make(self, stores: Make) -> Make:
        return stores


def names_of(log: Address) -> tuple[str, str]:
    """Of the head and the stream of a log."""
    names = RedisStore("redis://127.0.0.1", shards=SHARDS)._shard(log).names
    return names.head(log), names.stream(log)


@pytest.mark.anyio
async def test_all_keys_of_a_shard_are_in_one_slot_and_the_shards_in_many(cluster: RedisCluster, stores: Make) -> None:
    store = stores()
    await store.open(lambda: None)
    await store.live("a", 60)
    logs = [address(f"source-{n}") for n in range(40)]
    for number, log in enumerate(logs):
        Reader(store, log)
        await append(store, log, (await begin(store, log)).term, 0, numbered(1, 2))
        await store.post(address("box"), b"1", 10, 60)
        await store.swap(f"key{number}", None, b"1", 60)
    await store.close()
    slots: dict[str, set[int]] = defaultdict(set)
    kinds = set()
    for key in cluster.keys("*"):
        tag, _, rest = key.partition("}:")
        kinds.add(rest.split(":")[0] if rest.startswith(("live", "value", "wake")) else rest[-2:])
        slots[tag].add(int(cluster.nodes[0].command("CLUSTER", "KEYSLOT", key)))
    assert set(slots) == {f"{{eventmux:{number}" for number in range(SHARDS)}
    assert all(len(of_one) == 1 for of_one in slots.values())
    assert len({min(of_one) for of_one in slots.values()}) == SHARDS
    assert kinds == {":h", ":s", "live", "value", "wake"}


@pytest.mark.anyio
async def test_a_log_goes_on_while_its_slot_moves_with_nothing_doubled_or_lost(
    cluster: RedisCluster, stores: Make
) -> None:
    store, log, other = stores(), address(), address()
    await store.open(lambda: None)
    head, _ = names_of(log)
    try:
        reader, writer = Reader(store, log), Writer(store, log)
        await writer.begin()
        await writer.write(5)
        for _ in range(3):
            target = cluster.another(head)
            cluster.begin_move(head, target)
            await writer.write(5)  # its keys are still here
            writing = asyncio.create_task(writer.write(5))
            await asyncio.to_thread(cluster.move_slot, head, target)
            await writing
            await writer.write(5)
        await eventually(lambda: reader.has(50))
        assert reader.offsets == list(range(1, 51))
        assert [int(one.body) for one in reader.records] == list(range(1, 51))
        await patiently(lambda: begin(store, other))
        await eventually(lambda: store.fault is None)
    finally:
        await store.close()


@pytest.mark.anyio
async def test_what_is_on_its_way_to_another_node_is_waited_for(cluster: RedisCluster, stores: Make) -> None:
    """ASK, and TRYAGAIN where only one key of a log has moved: the store is away for this log until all of it has."""
    store, log = stores(), address()
    await store.open(lambda: None)
    head, stream = names_of(log)
    try:
        reader, writer = Reader(store, log), Writer(store, log)
        await writer.begin()
        await writer.write(5)
        source, target = cluster.owner(head), cluster.another(head)
        cluster.begin_move(head, target)
        for key in (head, stream):
            source.command("MIGRATE", "127.0.0.1", target.port, key, 0, 5000)
            with pytest.raises(StoreAwayError, match=r"ASK|TRYAGAIN"):
                await append(store, log, writer.term, 5, numbered(6, 6))
        writing = asyncio.create_task(writer.write(5))
        cluster.move_slot(head, target)
        await writing
        await eventually(lambda: reader.has(10))
        assert reader.offsets == list(range(1, 11))
    finally:
        await store.close()


@pytest.mark.anyio
async def test_a_node_that_dies_and_a_cluster_that_is_down_are_away_and_come_back(
    cluster: RedisCluster, stores: Make
) -> None:
    """A cluster that lacks a slot is down with all of them, also those that are there."""
    store = stores()
    await store.open(lambda: None)
    try:
        logs = [address() for _ in range(20)]
        readers, writers = [Reader(store, log) for log in logs], [Writer(store, log) for log in logs]
        for writer in writers:
            await writer.begin()
            await writer.write(3)
        node = cluster.owner(names_of(logs[0])[0])
        node.kill()
        await eventually(lambda: store.fault)
        node.start()
        for writer in writers:
            await writer.write(3)
        await eventually(lambda: store.fault is None)

        used = {slot_of(names_of(log)[0]) for log in logs}
        slot = next(slot for slot in range(SLOTS) if slot not in used)
        for one in cluster.nodes:
            one.command("CLUSTER", "DELSLOTS", slot)
        await until(lambda: says(cluster, "fail"), "the cluster to be down")
        with pytest.raises(StoreAwayError, match="CLUSTERDOWN"):
            await until(lambda: begin(store, address()))
        await eventually(lambda: store.fault)
        cluster.owner(slot).command("CLUSTER", "ADDSLOTS", slot)
        await asyncio.to_thread(cluster.wait_for_all)
        for writer in writers:
            await writer.write(3)
        await eventually(lambda: all(reader.has(9) for reader in readers))
        assert all(reader.offsets == list(range(1, 10)) for reader in readers)
        await eventually(lambda: store.fault is None)
    finally:
        await store.close()


async def says(cluster: RedisCluster, state: str) -> bool:
    return all(info_of(node)["cluster_state"] == state for node in cluster.nodes)


@pytest.fixture
def lenient(cluster: RedisCluster) -> None:
    """From now on it is up without one of its nodes, but for the slots of that."""
    for node in cluster.nodes:
        node.command("CONFIG", "SET", "cluster-require-full-coverage", "no")
        node.command("CONFIG", "REWRITE")


@pytest.mark.anyio
async def test_while_the_node_that_the_url_names_is_dead_others_lead_to_where_the_keys_are(
    cluster: RedisCluster, lenient: None
) -> None:
    log, (dead, node, _) = address(), cluster.nodes
    prefix = next(f"p{n}" for n in count() if cluster.owner(f"{{p{n}:0}}") is node)
    store = RedisStore(dead.url, prefix=prefix, timeout=TIMEOUT, max_block=BLOCK)
    await store.open(lambda: None)
    try:
        reader, writer = Reader(store, log), Writer(store, log)
        await writer.begin()
        await writer.write(5)
        dead.kill()
        node.kill()
        await eventually(lambda: store.fault)
        node.start()
        await writer.write(5)
        await eventually(lambda: reader.has(10))
        assert reader.offsets == list(range(1, 11))
    finally:
        await store.close()
        dead.start()
        cluster.wait_for_all()


@pytest.mark.anyio
async def test_while_one_node_is_dead_sources_whose_logs_are_on_others_go_on(
    cluster: RedisCluster, lenient: None
) -> None:
    feeds = [Feed() for _ in range(10)]
    for number, feed in enumerate(feeds):
        feed.enabled = replace(feed.enabled, name=f"feed-{number}")
    async with redis_sites(cluster, cluster.nodes[1].url, prefix="apart", shards=SHARDS) as (site,):
        clients = [await reading(site, feed) for feed in feeds]
        for feed in feeds:
            feed.put(3)
        await soon(lambda: all(client.has(3) for client in clients), 10)
        heads = [next(iter(cluster.keys(f"*:{feed.enabled.name}:*:h"))) for feed in feeds]
        dead = cluster.owner(heads[0])
        held = [cluster.owner(head) is dead for head in heads]
        assert any(held)
        assert not all(held)
        dead.kill()
        await soon(lambda: site.hub.fault, 10)
        for feed in feeds:
            feed.put(1_000)
        expected = [3 if is_held else 1_003 for is_held in held]
        await soon(lambda: [client.look().numbers[-1] for client in clients] == expected, 20)
        assert all(feed.yielded < 1_003 for feed, is_held in zip(feeds, held, strict=True) if is_held)
        dead.start()
        await soon(lambda: all(client.has(1_003) for client in clients), 20)
        assert all(client.numbers == list(range(1, 1_004)) for client in clients)
        assert all(client.controls == [] for client in clients)
