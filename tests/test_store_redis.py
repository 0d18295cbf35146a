"""The store in Redis when its server is away, slow, full, changed, or somebody's hand is in it."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from redis.exceptions import ResponseError

from eventmux.cursor import private_epoch
from eventmux.errors import ConfigError, StoreAwayError
from eventmux.policy import Bounds
from eventmux.store.contract import EMPTY_KEEP, Address, Append, Appended, Claim, Store
from eventmux.store.redis import RedisStore
from eventmux.store.redis.commands import EVENT_COST
from eventmux.store.redis.greeting import check, check_version
from eventmux.store.redis.shard import FULL
from eventmux.store.redis.target import Target
from eventmux.testing.store import (
    KEEP,
    LEASE,
    address,
    append,
    begin,
    bodies,
    claim,
    eventually,
    numbered,
    record,
    until,
)
from eventsource import wait_until
from redis_server import Redis, RedisServer
from redis_writer import BLOCK, TIMEOUT, Reader, Returns, Writer, opened, patiently, told
from relay import relaying

pytestmark = pytest.mark.anyio

Make = Callable[..., RedisServer]
PASSWORD = "p@ss/w:rd#%41"  # noqa: S105

# What the user of the store has to be allowed, as docs/decisions/0018-store.md says.
RULES = (
    "~{eventmux:*}:* -@all +info +client|setname +select +script|load +evalsha +time +exists +pttl +pexpire +get +set "
    "+del +unlink +hset +hdel +hmget +hgetall +xadd +xlen +xrange +xread +xtrim +xinfo|stream"
)


async def works(store: Store) -> None:
    """All that there is to ask."""
    log = address()
    reader = Reader(store, log)
    await store.live("writer", LEASE)
    writer = Writer(store, log)
    await writer.begin()
    await writer.write(10)
    assert await append(store, log, writer.term, 10, [], ended="completed")
    await eventually(lambda: reader.records and reader.records[-1].ended)
    assert reader.offsets == [*range(1, 11), 10]
    assert len(await store.read(log, 0, 100)) == 11
    assert list(await store.release(log, "writer")) == []
    assert await store.post(address("box"), b"x", 10, KEEP)
    await store.trim(log, 1)
    assert await store.swap("key", None, b"1", LEASE)
    assert await store.get("key") == b"1"
    assert await store.swap("key", b"1", None, LEASE)
    await store.drop([log])
    assert store.fault is None


# Where it is, and as whom


@pytest.mark.parametrize(
    ("transport", "version"), [("tcp", "installed"), ("tcp", "oldest"), ("unix", "oldest"), ("tls", "installed")]
)
async def test_it_is_reached_by_tcp_tls_and_a_socket_as_a_user_that_may_do_what_is_needed(
    own_redis: Make, transport: str, version: str
) -> None:
    server = own_redis(
        transport=transport, version=version, user="store", password=PASSWORD, rules=RULES, appendonly=False
    )
    url = server.url.replace("/0", "/3").replace("db=0", "db=3")
    if transport == "tls":
        url += f"?ssl_ca_certs={server.certificate}"
    async with opened(server, url, prefix="eventmux") as store:
        await works(store)
        await begin(store, address())
    assert server.keys("*") == set(), "they are in another database"
    with server.client() as client:
        client.select(3)
        assert client.dbsize() > 0
        assert all(key.startswith("{eventmux:0}:") for key in client.scan_iter())


def test_the_rights_that_the_documentation_names_are_those_that_suffice() -> None:
    text = (Path(__file__).parents[1] / "docs/decisions/0018-store.md").read_text("utf-8")
    assert RULES.replace(" -@all", "") in " ".join(text.split())


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ({"password": "other"}, "WRONGPASS|invalid username-password"),
        ({"password": ""}, "Authentication required"),
        ({"path": "/99"}, "DB index is out of range"),
        ({"rules": "~* +@all -xadd"}, "XADD: .*can't run"),
        ({"rules": "~* +@all -evalsha"}, "evalsha"),
        ({"rules": "~* +@all -info"}, "info"),
        ({"rules": "~theirs:* +@all"}, "access one of the keys|access at least one"),
    ],
)
@pytest.mark.parametrize("version", ["installed", "oldest"])
async def test_what_waiting_does_not_mend_is_an_error_at_the_start_that_shows_no_secret(
    own_redis: Make, words: dict[str, str], reason: str, version: str
) -> None:
    rules = words.get("rules", "~* &* +@all")
    server = own_redis(version=version, user="ann", password=PASSWORD, rules=rules, appendonly=False)
    password = words.get("password", PASSWORD)
    url = server._at(("ann" if password else "", password), server.port).replace("/0", words.get("path", "/0"))
    before = asyncio.all_tasks()
    with pytest.raises(ConfigError, match=reason) as raised:
        async with opened(server, url):
            pass
    text = str(raised.value)
    assert text.startswith(f"store: 127.0.0.1:{server.port}")
    assert PASSWORD not in text
    assert "other" not in text
    assert asyncio.all_tasks() == before
    assert server.keys("*") == set()


def info(**said: str) -> bytes:
    return b"# Server\r\n" + b"".join(f"{key}:{value}\r\n".encode() for key, value in said.items()) + b"\r\n"


MASTER = info(role="master", connected_slaves="0")
NO_CLUSTER = ResponseError("ERR This instance has cluster support disabled")


@pytest.mark.parametrize("version", ["2.8.24", "5.0.14", "6.0.20", "6.1.242"])
def test_a_server_that_is_too_old_is_refused_by_its_version(version: str) -> None:
    with pytest.raises(ConfigError, match=rf"^store: there is Redis {version}: 6.2 or newer is needed, or Valkey$"):
        check("there", [info(redis_version=version, run_id="7"), MASTER, NO_CLUSTER, b""])


@pytest.mark.parametrize(
    "server",
    [
        {"redis_version": "6.2.0"},
        {"redis_version": "6.2.14"},
        {"redis_version": "7.0.15"},
        {"redis_version": "10.0.1"},
        {"redis_version": "255.255.255"},
        {"redis_version": "7.2.4", "server_name": "valkey", "valkey_version": "8.1.3"},
        {"redis_version": "7.2.4", "server_name": "valkey", "valkey_version": "9.0.0"},
        {"dragonfly_version": "df-v1.34.2"},
    ],
)
def test_newer_ones_and_valkey_are_not(server: dict[str, str]) -> None:
    assert check("there", [info(**server, run_id="7"), MASTER, NO_CLUSTER, b""]) == "7"
    check_version("there", server.get("redis_version", ""))


# Away


async def test_a_server_that_is_away_at_the_start_is_waited_for(
    own_redis: Make, caplog: pytest.LogCaptureFixture
) -> None:
    server, returns = own_redis(start=False, password=PASSWORD), Returns()
    log = address()
    async with opened(server, on_return=returns) as store:
        assert str(server.port) in str(store.fault)
        assert PASSWORD not in str(store.fault)
        reader = Reader(store, log)
        for ask in (
            lambda: claim(store, log),
            lambda: store.append([]),
            lambda: store.read(log, 0, 1),
            lambda: store.live("a", 1),
            lambda: store.post(log, b"", 1, 1),
            lambda: store.release(log, "a"),
            lambda: store.drop([log]),
            lambda: store.trim(log, 1),
            lambda: store.get("key"),
            lambda: store.swap("key", None, b"", 1),
        )[:1]:
            with pytest.raises(StoreAwayError, match=str(server.port)):
                await ask()
        server.start()
        writer = Writer(store, log)
        await writer.begin()
        await writer.write(3)
        await eventually(lambda: reader.has(3))
        await eventually(lambda: store.fault is None)
        assert returns.count == 1
    assert told(caplog) == ["the store is away", "the store is back"]


async def test_when_it_comes_back_all_goes_on_and_the_log_has_a_line_for_each(
    own_redis: Make, caplog: pytest.LogCaptureFixture
) -> None:
    server, returns, log = own_redis(), Returns(), address()
    async with opened(server, on_return=returns, shards=3) as store:
        readers = [Reader(store, log) for log in (log, address(), address())]
        writer = Writer(store, log)
        await writer.begin()
        for _ in range(3):
            await writer.write(5)
            await eventually(lambda: readers[0].has(writer.last))
            server.stop()
            await eventually(lambda: store.fault)
            with pytest.raises(StoreAwayError, match=str(server.port)):
                await claim(store, log)
            server.start()
            await eventually(lambda: store.fault is None)
            await writer.write(5)
        await eventually(lambda: readers[0].has(30))
        assert readers[0].offsets == list(range(1, 31))
        assert returns.count >= 3
    assert told(caplog) == ["the store is away", "the store is back"] * 3


async def test_one_that_answers_late_is_away_after_the_timeout_and_nothing_is_doubled_or_lost(
    own_redis: Make,
) -> None:
    server, log = own_redis(appendonly=False), address()
    with relaying(server.port) as relay:
        async with opened(server, server.url_at(relay.port), timeout=0.4) as store:
            reader, writer = Reader(store, log), Writer(store, log)
            await writer.begin()
            await writer.write(10)
            relay.delay(0.05)  # slow, and in time
            await writer.write(10)
            await eventually(lambda: reader.has(20))
            relay.delay(0.5)
            loop = asyncio.get_running_loop()
            began = loop.time()
            with pytest.raises(StoreAwayError, match=r"within 0\.4 s"):
                await append(store, log, writer.term, 20, numbered(21, 21))
            assert loop.time() - began < 2.0
            await eventually(lambda: store.fault)
            relay.delay(0)
            for _ in range(10):
                await writer.write(10)
            await eventually(lambda: reader.has(120))
            assert reader.offsets == list(range(1, 121))
            assert reader.bodies == [b"%d" % n for n in range(1, 121)]


async def test_a_connection_that_is_cut_in_the_middle_of_a_batch_doubles_nothing_and_loses_nothing(
    own_redis: Make,
) -> None:
    server, logs = own_redis(appendonly=False), [address() for _ in range(60)]
    with relaying(server.port) as relay:
        async with opened(server, server.url_at(relay.port), timeout=5.0) as store:
            readers = [Reader(store, log) for log in logs]
            standings = [await begin(store, log) for log in logs]
            large = [record(b"x" * 16_000) for _ in range(4)]
            wanted = [
                Append(log, standing.term or 0, 0, large, Bounds(), KEEP)
                for log, standing in zip(logs, standings, strict=True)
            ]
            # All of it has come, and no answer has gone; a part of it has come; nothing has.
            relay.delay(0.3)
            asked = asyncio.create_task(store.append(wanted[:1]))
            await until(lambda: length(server, store, logs[0]), "the batch on the server")
            relay.cut()
            with pytest.raises(StoreAwayError):
                await asked
            relay.delay(0.002)
            asked = asyncio.create_task(store.append(wanted[1:]))
            await until(lambda: length(server, store, logs[10]), "a part of the batch on the server")
            relay.cut()
            with pytest.raises(StoreAwayError):
                await asked
            assert await length(server, store, logs[-1]) == 0
            relay.delay(0)
            done = await patiently(lambda: store.append(wanted))
            assert {one.refused for one in done[:10]} == {"offset"}
            assert done[-1].refused is None
            assert {one.last for one in done} == {4}
            await eventually(lambda: all(reader.has(4) for reader in readers))
            assert all(reader.offsets == [1, 2, 3, 4] for reader in readers)


async def length(server: Redis, store: RedisStore, log: Address) -> int:
    """Of the stream of a log."""
    return int(await asyncio.to_thread(server.command, "XLEN", store._shard(log).names.stream(log)))


async def test_a_reader_whose_connection_is_dead_without_a_word_finds_out_and_misses_nothing(
    own_redis: Make,
) -> None:
    server, log = own_redis(appendonly=False), address()
    with relaying(server.port) as relay:
        async with opened(server, server.url_at(relay.port)) as reading, opened(server) as store:
            reader, writer = Reader(reading, log), Writer(store, log)
            await writer.begin()
            await writer.write(5)
            await eventually(lambda: reader.has(5))
            connected = relay.accepted
            relay.stall()
            began = asyncio.get_running_loop().time()
            await writer.write(5)
            await eventually(lambda: relay.accepted > connected, "another connection")
            assert asyncio.get_running_loop().time() - began < 3 * (BLOCK + TIMEOUT)
            await eventually(lambda: reading.fault)
            assert not reader.has(10)
            relay.cut()
            relay.resume()
            await eventually(lambda: reader.has(10))
            assert reader.offsets == list(range(1, 11))


async def test_who_is_cut_off_by_an_operator_or_whose_scripts_are_flushed_goes_on_at_once(
    own_redis: Make, caplog: pytest.LogCaptureFixture
) -> None:
    server, log = own_redis(appendonly=False), address()
    async with opened(server) as store:
        reader, writer = Reader(store, log), Writer(store, log)
        await writer.begin()
        for _ in range(5):
            await writer.write(3)
            server.command("SCRIPT", "FLUSH")
            await writer.write(3)
            assert server.cut_clients() >= 2
        await writer.write(3)
        await eventually(lambda: reader.has(33))
        assert reader.offsets == list(range(1, 34))
        assert writer.refusals == []
    assert told(caplog) == []


async def test_what_is_followed_while_the_reader_is_being_woken_is_read_at_once_and_not_when_its_time_is_over(
    own_redis: Make,
) -> None:
    server, logs = own_redis(appendonly=False), [address(), address()]
    with relaying(server.port) as relay:
        store = RedisStore(server.url_at(relay.port), max_block=60.0)
        store._shards[0]._reading._target = Target(server.url, TIMEOUT)  # only who asks is slow
        await store.open(lambda: None)
        try:
            for log in logs:
                await append(store, log, (await begin(store, log)).term, 0, numbered(1, 1))
            relay.delay(0.3)
            for log in logs:  # the second, when the first has been read, and nobody has heard yet that it was to be
                reader = Reader(store, log)
                await eventually(lambda reader=reader: reader.has(1))
        finally:
            await store.close()


# A server that is there, and takes nothing

Change = Callable[[RedisServer], object]


@pytest.mark.parametrize(
    ("breaks", "reason", "mends"),
    [
        (
            lambda server: server.command("ACL", "SETUSER", "ann", "resetpass", ">another"),
            "invalid username-password",
            lambda server: server.command("ACL", "SETUSER", "ann", f">{PASSWORD}"),
        ),
        (
            lambda server: server.command("ACL", "SETUSER", "ann", "-xadd"),
            "XADD: ",
            lambda server: server.command("ACL", "SETUSER", "ann", "+xadd"),
        ),
        (
            lambda server: server.command("ACL", "SETUSER", "ann", "-evalsha"),
            "evalsha",
            lambda server: server.command("ACL", "SETUSER", "ann", "+evalsha"),
        ),
        (
            lambda server: server.command("REPLICAOF", "127.0.0.1", "1"),
            "is a replica, which takes nothing",
            lambda server: server.promote(),
        ),
        (
            lambda server: server.command("CONFIG", "SET", "min-replicas-to-write", "1"),
            "NOREPLICAS|good replicas",
            lambda server: server.command("CONFIG", "SET", "min-replicas-to-write", "0"),
        ),
        (lambda server: cannot_save(server), "MISCONF", lambda server: can_save(server)),
    ],
    ids=["password", "command", "scripts", "replica", "too few replicas", "disk"],
)
@pytest.mark.parametrize("version", ["installed", "oldest"])
async def test_what_begins_to_refuse_us_is_away_with_the_reason_until_it_is_mended(
    own_redis: Make, version: str, breaks: Change, reason: str, mends: Change, caplog: pytest.LogCaptureFixture
) -> None:
    server = own_redis(version=version, user="ann", password=PASSWORD, appendonly=False)
    log, returns = address(), Returns()
    async with opened(server, on_return=returns) as store:
        reader, writer = Reader(store, log), Writer(store, log)
        await writer.begin()
        await writer.write(5)
        breaks(server)
        server.command("CLIENT", "KILL", "USER", "ann")
        await until(lambda: refuses(store, log), "the refusal")
        await until(lambda: says(store, reason), f"{reason} to be said")
        assert PASSWORD not in str(store.fault)
        mends(server)
        await writer.write(5)
        await eventually(lambda: reader.has(10))
        await eventually(lambda: store.fault is None)
        assert reader.offsets == list(range(1, 11))
        assert returns.count >= 1
    assert told(caplog) == ["the store is away", "the store is back"]


async def refuses(store: Store, log: Address) -> bool:
    try:
        await claim(store, log)
    except StoreAwayError:
        return True
    return False


async def says(store: Store, pattern: str) -> bool:
    return re.search(pattern, store.fault or "") is not None


def cannot_save(server: RedisServer) -> None:
    """A snapshot fails, so that Redis takes nothing (stop-writes-on-bgsave-error)."""
    server.command("CONFIG", "SET", "save", "3600 1")
    (server.path / "dump.rdb").mkdir()
    server.command("BGSAVE")
    wait_until(lambda: server.info("persistence")["rdb_last_bgsave_status"] == "err", "the failure")


def can_save(server: RedisServer) -> None:
    (server.path / "dump.rdb").rmdir()
    server.command("BGSAVE")
    wait_until(lambda: server.info("persistence")["rdb_last_bgsave_status"] == "ok", "the snapshot")


async def test_a_replica_at_the_address_is_waited_for_until_it_is_the_master(own_redis: Make) -> None:
    master, server = own_redis(), own_redis()
    server.replica_of(master)
    async with opened(server) as store:
        assert "is a replica, which takes nothing: name the master, or promote it" in str(store.fault)
        with pytest.raises(StoreAwayError, match="is a replica"):
            await begin(store, address())
        server.promote()
        await patiently(lambda: works(store))


@pytest.mark.parametrize("version", ["installed", "oldest"])
async def test_a_server_without_room_takes_no_more_events_and_keeps_who_owns_what(
    own_redis: Make, version: str, caplog: pytest.LogCaptureFixture
) -> None:
    server, log, box = own_redis(version=version, appendonly=False), address(), address("box")
    async with opened(server) as store, opened(server) as other:
        reader, writer = Reader(store, log), Writer(store, log)
        await store.live("writer", 60)
        standing = await writer.begin()
        await writer.write(5)
        server.command("CONFIG", "SET", "maxmemory", "1")
        assert await append(store, log, writer.term, 5, numbered(6, 9)) == Appended(5, "full")
        assert store.fault == FULL
        assert await claim(store, address(), epoch="E", opens="none", writes=True) is None
        assert not await store.post(box, b"1", 10, KEEP)
        # What is there goes on: leases, lives, what is read, and what is let go.
        again = await begin(store, log, "writer", reads=True, lease=LEASE)
        assert again.term == standing.term
        await store.live("writer", 600)
        await other.live("another", 600)
        assert server.command("PTTL", f"{{{server.prefix}:0}}:live:writer") > 60_000
        assert bodies(await other.read(log, 0, 10)) == [b"%d" % n for n in range(1, 6)]
        late = Reader(other, log)
        await eventually(lambda: late.has(5))
        assert (await begin(other, log, "another")).owner == "writer"
        await store.trim(box, 1)
        server.command("CONFIG", "SET", "maxmemory", "0")
        await writer.write(5)
        await store.live("writer", 60)
        assert store.fault is None
        assert await store.post(box, b"1", 10, KEEP)
        await eventually(lambda: reader.has(10))
        assert reader.offsets == list(range(1, 11))
    assert sorted(told(caplog)) == ["the store is away", "the store is away", "the store is back"], "of two stores"


# What it had is gone, or a part of it


async def test_after_a_restart_with_its_data_the_log_goes_on_under_another_epoch(own_redis: Make) -> None:
    server, log = own_redis(), address()
    async with opened(server) as store:
        reader, writer = Reader(store, log), Writer(store, log)
        await writer.begin()
        await writer.write(5)
        await eventually(lambda: reader.has(5))
        server.restart()
        await writer.write(5)
        assert "epoch" in writer.refusals
        standing = await begin(store, log, "writer")
        assert standing.lineage == (("E1", 0), ("E2", 5))
        await eventually(lambda: reader.has(10))
        assert reader.offsets == list(range(1, 11))
        assert [one.epoch for one in reader.records] == ["E1"] * 5 + ["E2"] * 5


async def test_the_log_of_one_who_has_all_of_it_goes_on_under_its_own_epoch(own_redis: Make) -> None:
    server, log = own_redis(), address()
    async with opened(server) as store:
        await store.live("a", LEASE)
        term = (await begin(store, log, lease=0.0)).term
        await append(store, log, term, 0, numbered(1, 5))
        server.restart()
        await patiently(lambda: store.live("a", LEASE))
        assert await append(store, log, term, 5, numbered(6, 6)) == Appended(5, "epoch")
        again = await begin(store, log, lease=0.0)
        assert (again.term, again.lineage) == (term, (("E1", 0),))
        assert await append(store, log, term, 5, numbered(6, 6)) == Appended(6)


async def test_after_a_restart_without_its_data_who_follows_gets_the_new_log_from_its_beginning(
    own_redis: Make,
) -> None:
    server, log = own_redis(appendonly=False), address()
    async with opened(server) as store:
        reader, writer = Reader(store, log), Writer(store, log)
        await writer.begin()
        await writer.write(5)
        await eventually(lambda: reader.has(5))
        server.restart()
        await writer.write(3)
        assert (await begin(store, log, "writer")).lineage == (("E2", 0),)
        await eventually(lambda: len(reader.records) == 8)
        assert [(one.offset, one.epoch) for one in reader.records[5:]] == [(1, "E2"), (2, "E2"), (3, "E2")]


async def test_after_a_failover_who_follows_goes_back_to_where_the_log_has_what_it_was_given(own_redis: Make) -> None:
    master, server, log = own_redis(), own_redis(), address()
    with relaying(master.port) as relay:
        async with opened(master, master.url_at(relay.port)) as store:
            reader, writer = Reader(store, log), Writer(store, log)
            await writer.begin()
            await writer.write(5)
            server.replica_of(master)
            server.promote()  # and so it lacks what comes now
            await writer.write(5)
            await eventually(lambda: reader.has(10))
            relay.point_at("127.0.0.1", server.port)
            relay.cut()
            master.kill()
            standing = await writer.begin()
            assert standing.lineage == (("E1", 0), ("E2", 5))
            assert (standing.last, standing.owner) == (5, "writer")
            assert await append(store, log, writer.term, 5, [record(b"other")]) == Appended(6)
            await eventually(lambda: len(reader.records) == 11)
            assert reader.records[-1][:2] == (6, "E2")
            assert await store.read(log, 5, 10) == reader.records[-1:]


@pytest.mark.parametrize("gone", ["head", "stream", "head and stream"])
async def test_where_somebody_deletes_a_key_the_log_begins_anew_or_goes_on_with_a_hole(
    own_redis: Make, gone: str
) -> None:
    """By hand, or by `maxmemory-policy allkeys-lru`."""
    server, log = own_redis(appendonly=False), address()
    async with opened(server) as store:
        names = store._shard(log).names
        keys = {"head": [names.head(log)], "stream": [names.stream(log)]}
        reader, writer = Reader(store, log), Writer(store, log)
        await writer.begin()
        await writer.write(5)
        await eventually(lambda: reader.has(5))
        server.command("DEL", *(key for word in gone.split(" and ") for key in keys[word]))
        await writer.write(8)
        await eventually(lambda: len(reader.records) == 13)
        standing = await begin(store, log, "writer")
        if gone == "stream":
            assert standing.lineage == (("E1", 0),)
            assert reader.offsets == list(range(1, 14))
            assert [one.offset for one in await store.read(log, 0, 10)] == list(range(6, 14))
        else:
            assert standing.lineage == (("E2", 0),)
            assert [(one.offset, one.epoch) for one in reader.records[5:]] == [(n, "E2") for n in range(1, 9)]
        for _ in range(20):
            await append(store, log, writer.term, writer.last, [record(b"x" * 10_000)], bounds=Bounds(bytes=30_000))
            writer.last += 1
        kept = [one.offset for one in await store.read(log, 0, 100)]
        assert kept == list(range(writer.last + 1 - len(kept), writer.last + 1))
        assert 2 <= len(kept) <= 3


async def test_a_key_that_somebody_has_put_in_the_place_of_a_log_spoils_no_other(
    own_redis: Make, caplog: pytest.LogCaptureFixture
) -> None:
    server, log, other = own_redis(appendonly=False), address(), address()
    async with opened(server) as store:
        server.command("SET", store._shard(log).names.head(log), "theirs")
        claims = [Claim(one, "a", LEASE, KEEP, "E1", writes=True, opens="none") for one in (log, other)]
        nothing, standing = await store.claim(claims)
        assert nothing is None
        assert standing
        wanted = [Append(one, standing.term or 0, 0, numbered(1, 2), Bounds(), KEEP) for one in (log, other)]
        assert list(await store.append(wanted)) == [Appended(0, "unable"), Appended(2)]
        assert store.fault is None
    assert "Redis refuses" in caplog.text


# What it costs


async def test_what_is_counted_for_an_event_is_what_it_costs_in_redis(each_redis: Redis) -> None:
    """And docs/decisions/0018-store.md says what a log costs beside its events."""
    async with opened(each_redis) as store:
        for size, slack in ((100, 1.1), (300, 1.25), (3_000, 1.35)):
            log, count = address("prices"), 1_000
            names = store._shard(log).names
            term = (await begin(store, log, "0123456789abcdef", reads=True, epoch=private_epoch(), label="x" * 32)).term
            for after in range(0, count, 100):
                records = [record(b"x" * size, "some.event") for _ in range(100)]
                assert await append(store, log, term, after, records, bounds=Bounds(bytes=10**9)) == Appended(
                    after + 100
                )
            head, stream = (
                int(each_redis.command("MEMORY", "USAGE", key, "SAMPLES", 0))
                for key in (names.head(log), names.stream(log))
            )
            assert head < 500
            assert 0.75 * slack < stream / count / (size + EVENT_COST) <= slack


async def test_a_log_without_an_event_has_little_time_left_when_nobody_reads_it(redis_server: Redis) -> None:
    store = RedisStore(redis_server.url, prefix=redis_server.prefix)
    await store.open(lambda: None)
    try:
        log = address()
        await store.claim([Claim(log, "one", 10.0, 3_600.0, epoch="E", reads=True, opens="none")])
        (head,) = redis_server.keys("*:h")
        assert redis_server.command("PTTL", head) > 3_000_000
        await store.release(log, "one")
        assert 0 < redis_server.command("PTTL", head) <= EMPTY_KEEP * 1_000
    finally:
        await store.close()
