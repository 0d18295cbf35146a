"""A Redis Cluster of masters, for tests: slots move from one to another, and a node may die."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Iterator
from typing import Any, Self

import pytest
from redis.crc import key_slot

from eventsource import wait_until
from redis_server import Program, RedisServer, program
from restart import LOWEST, free_port

SLOTS = 16_384
BUS = 10_000  # a node's port for other nodes is so far above that for clients; Redis 6.2 knows no other


class RedisCluster:
    """`nodes` are masters, each with an equal range of the slots. `url` is that of the first: clients find the others.

    What a node may, it may as RedisServer: be killed, paused and started again. Without one of them all slots are down.
    """

    def __init__(self, program: Program, *, masters: int = 3, password: str = "") -> None:
        self.prefix = ""
        self.nodes: list[RedisServer] = []
        self._owners: dict[int, RedisServer] = {}
        self._stack = contextlib.ExitStack()
        options = {
            "cluster-enabled": "yes",
            "cluster-node-timeout": "2000",
            "cluster-config-file": "nodes.conf",
        }
        for _ in range(masters):
            node = RedisServer(program, password=password, options=options, port=_port())
            self.nodes.append(self._stack.enter_context(node))

    @property
    def url(self) -> str:
        return self.nodes[0].url

    def start(self) -> None:
        """All slots can be read and written when this returns: Redis takes two seconds."""
        for epoch, node in enumerate(self.nodes, 1):
            node.start()
            node.command("CLUSTER", "SET-CONFIG-EPOCH", epoch)
        count = len(self.nodes)
        for index, node in enumerate(self.nodes):
            slots = range(SLOTS * index // count, SLOTS * (index + 1) // count)
            node.command("CLUSTER", "ADDSLOTS", *slots)
            self._owners.update(dict.fromkeys(slots, node))
            self.nodes[0].command("CLUSTER", "MEET", "127.0.0.1", node.port)
        self.wait_for_all()

    def wait_for_all(self) -> None:
        """Until every node knows all others and holds the cluster for whole."""

        def whole() -> bool:
            states = [info_of(node) for node in self.nodes]
            return all(
                state["cluster_state"] == "ok" and int(state["cluster_size"]) == len(self.nodes) for state in states
            )

        wait_until(whole, "the cluster to be whole")

    def owner(self, key: str | int) -> RedisServer:
        """The node that serves a key, or a slot."""
        return self._owners[slot_of(key)]

    def another(self, key: str | int) -> RedisServer:
        """A node that does not serve it."""
        return next(node for node in self.nodes if node is not self.owner(key))

    def command(self, key: str, *arguments: Any) -> Any:
        """What the node says that serves `key`."""
        return self.owner(key).command(*arguments)

    def keys(self, pattern: str = "") -> set[str]:
        """As Redis.keys, of all nodes."""
        return set[str]().union(*(node.keys(pattern or f"{self.prefix}*") for node in self.nodes))

    def count_keys(self, pattern: str = "") -> int:
        return len(self.keys(pattern))

    def cut_clients(self) -> int:
        return sum(node.cut_clients() for node in self.nodes)

    def begin_move(self, slot: str | int, to: RedisServer) -> None:
        """Begin to hand a slot, or that of a key, over: for keys that its node has not, clients are told to ASK."""
        slot = slot_of(slot)
        source = self._owners[slot]
        assert source is not to, "it has the slot"
        to.command("CLUSTER", "SETSLOT", slot, "IMPORTING", id_of(source))
        source.command("CLUSTER", "SETSLOT", slot, "MIGRATING", id_of(to))

    def move_slot(self, slot: str | int, to: RedisServer) -> None:
        """Hand a slot, or that of a key, over with all its keys, also one that has begun to move: clients that do not
        know are told that it is MOVED.
        """
        slot = slot_of(slot)
        source = self._owners[slot]
        self.begin_move(slot, to)
        credentials = ["AUTH", source.password] if source.password else []
        while keys := source.command("CLUSTER", "GETKEYSINSLOT", slot, 100):
            source.command("MIGRATE", "127.0.0.1", to.port, "", 0, 5000, *credentials, "KEYS", *keys)
        # The new owner first: who is told so before it would send clients to and fro.
        for node in (to, source, *(node for node in self.nodes if node not in (to, source))):
            node.command("CLUSTER", "SETSLOT", slot, "NODE", id_of(to))
        self._owners[slot] = to

    def clear(self) -> None:
        """Delete all that is in it."""
        for node in self.nodes:
            node.command("FLUSHALL")
            node.command("SCRIPT", "FLUSH")

    def close(self) -> None:
        self._stack.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def slot_of(key: str | int) -> int:
    return key if isinstance(key, int) else key_slot(key.encode())


def info_of(node: RedisServer) -> dict[str, str]:
    """CLUSTER INFO, as words."""
    with contextlib.closing(node.client()) as client:
        return dict(client.execute_command("CLUSTER INFO"))


def id_of(node: RedisServer) -> str:
    return str(node.command("CLUSTER", "MYID"))


def _port() -> int:
    """One below those that others are given, with that of the bus free, too."""
    while True:
        bus = free_port()
        if bus < LOWEST + BUS:
            with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", bus - BUS)):
                return bus - BUS


@pytest.fixture
def own_cluster() -> Iterator[Callable[..., RedisCluster]]:
    """Makes clusters, with what RedisCluster takes: `own_cluster(masters=2)`. `version` as in `redis_server.versions`.

    They are whole."""
    with contextlib.ExitStack() as clusters:

        def make(*, version: str = "", **options: Any) -> RedisCluster:
            cluster = clusters.enter_context(RedisCluster(program(version), **options))
            cluster.start()
            return cluster

        yield make
