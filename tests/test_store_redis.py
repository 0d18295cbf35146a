"""The store in Redis when its server is away, slow, full, changed, or somebody's hand is in it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from eventmux.errors import ConfigError, StoreAwayError
from eventmux.policy import Bounds
from eventmux.store.contract import Address, Append, Store
from eventmux.store.redis import RedisStore
from eventmux.store.redis.greeting import check, check_version
from eventmux.testing.store import (
    KEEP,
    LEASE,
    address,
    append,
    begin,
    claim,
    eventually,
    numbered,
    record,
    until,
)
from redis_server import Redis, RedisServer
from redis_writer import BLOCK, TIMEOUT, Reader, Returns, Writer, opened, patiently
from relay import relaying

pytestmark = pytest.mark.anyio

Make = Callable[..., RedisServer]
PASSWORD = "p@ss/w:rd#%41"  # noqa: S105

# What the user of the store has to be allowed, as docs/decisions/0018-store.md says.
RULES = (
    "~{eventmux:*}:* -@all +info +client|setname +select +script|load +evalsha +time +exists +pttl +pexpire +get +set "
    "+del +unlink +hset +hdel +hmget +hgetall +xadd +xlen +xrange +xread +xtrim +xinfo|stream"
)


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What the log says of the store, in a few words."""
    texts = [one.getMessage() for one in caplog.records if one.name.startswith("eventmux.store")]
    return [text.partition(":")[0].partition(",")[0] for text in texts]


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


@pytest.mark.parametrize("transport", ["tcp", "tls", "unix"])
async def test_it_is_reached_by_tcp_tls_and_a_socket_as_a_user_that_may_do_what_is_needed(
    own_redis: Make, transport: str
) -> None:
    server = own_redis(transport=transport, user="store", password=PASSWORD, rules=RULES, appendonly=False)
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


@pytest.mark.parametrize("version", ["2.8.24", "5.0.14", "6.0.20", "6.1.242"])
def test_a_server_that_is_too_old_is_refused_by_its_version(version: str) -> None:
    with pytest.raises(ConfigError, match=rf"^store: there is Redis {version}: 6.2 or newer is needed, or Valkey$"):
        check("there", [info(redis_version=version, run_id="7"), MASTER, b""])


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
    assert check("there", [info(**server, run_id="7"), MASTER, b""]) == "7"
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
    redis_server: Redis, own_redis: Make
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
