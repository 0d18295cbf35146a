"""What is asked of the server and what its answers mean, one function each way. Nothing is sent here."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from typing import Any, Literal, TypeAlias, cast

from ..contract import EMPTY_KEEP, Address, Append, Appended, Claim, Record, Standing
from . import scripts

Word: TypeAlias = "bytes | str | int"
Command: TypeAlias = "tuple[Word, ...]"

RUN_ID = b"\0run id\0"  # stands in a command for the identity of the server that it is sent to
EVENT_COST = 96  # bytes that an event costs in a stream beside its body, measured in tests/test_store_redis.py
MILLISECONDS = 1000


class Names:
    """The keys of one shard, which share a hash tag: a script may have several of them, and XREAD all."""

    def __init__(self, prefix: str, shard: int) -> None:
        self._base = f"{{{prefix}:{shard}}}"
        self.live = f"{self._base}:live:"

    def head(self, address: Address) -> str:
        return f"{self._base}:{address.source}:{address.name}:h"

    def stream(self, address: Address) -> str:
        return f"{self._base}:{address.source}:{address.name}:s"

    def value(self, key: str) -> str:
        return f"{self._base}:value:{key}"

    def wake(self, reader: str) -> str:
        return f"{self._base}:wake:{reader}"

    def probes(self) -> tuple[str, str]:
        return f"{self._base}:probe:h", f"{self._base}:probe:s"


def shard_of(text: str, shards: int) -> int:
    """The same in every process and version."""
    return zlib.crc32(text.encode()) % shards


def milliseconds(seconds: float) -> int:
    return max(1, int(seconds * MILLISECONDS))


def claim(names: Names, one: Claim) -> Command:
    keep = milliseconds(max(one.keep, 2 * one.lease))
    return (
        *_script(scripts.CLAIM, names.head(one.address), names.stream(one.address)),
        one.replica,
        names.live,
        int(one.lease * MILLISECONDS),
        keep,
        one.epoch,
        one.label,
        int(one.writes),
        int(one.reads),
        one.opens,
        RUN_ID,
    )


def standing(answer: Any) -> Standing | None:
    if answer is None:
        return None
    words, last, ended, label, term, owner, is_owned, *readers = answer
    return Standing(
        epoch=lineage_of(words)[-1][0],
        lineage=lineage_of(words),
        last=int(last),
        ended=None if ended is None else ended.decode(),
        label=label.decode(),
        term=int(term) or None,
        owner=owner.decode(),
        is_owned=bool(is_owned),
        readers=tuple(reader.decode() for reader in readers),
    )


def lineage_of(words: bytes) -> tuple[tuple[str, int], ...]:
    parts = words.decode().split(" ")
    return tuple((parts[i], int(parts[i + 1])) for i in range(0, len(parts), 2))


def append(names: Names, one: Append) -> Command:
    bounds = one.bounds
    return (
        *_script(scripts.APPEND, names.head(one.address), names.stream(one.address)),
        one.term,
        one.after,
        int(one.skips),
        RUN_ID,
        milliseconds(one.keep),
        bounds.events,
        bounds.bytes,
        -1 if bounds.age is None else int(bounds.age * MILLISECONDS),
        EVENT_COST,
        int(one.ended is not None),
        one.ended or "",
        one.epoch,
        *_of_records(one.records),
    )


def _of_records(records: Sequence[Record]) -> Iterator[Word]:
    for record in records:
        yield f"{record.at:x}"
        yield f"{'j' if record.is_json else 't'}{record.event}"
        yield record.body


def appended(answer: Any) -> Appended:
    if len(answer) == 1:
        return Appended(answer[0])
    return Appended(answer[0], cast("Literal['fenced', 'offset', 'epoch']", answer[1].decode()))


def release(names: Names, address: Address, replica: str) -> Command:
    return (*_script(scripts.RELEASE, names.head(address)), replica, names.live, milliseconds(EMPTY_KEEP))


def post(names: Names, address: Address, body: bytes, room: int, keep: float) -> Command:
    return (*_script(scripts.POST, names.stream(address)), body, room, milliseconds(keep))


def live(names: Names, replica: str, seconds: float) -> Command:
    return (*_script(scripts.LIVE, names.live + replica), milliseconds(seconds))


def swap(names: Names, key: str, before: bytes | None, after: bytes | None, seconds: float) -> Command:
    return (
        *_script(scripts.SWAP, names.value(key)),
        int(before is not None),
        before or b"",
        int(after is not None),
        after or b"",
        milliseconds(seconds),
    )


def packed(commands: Sequence[Command], run_id: str) -> bytes:
    """As the server reads them, in one piece: redis-py takes a call and two joins for each word, 6 µs of an event."""
    parts = []
    for command in commands:
        parts.append(b"*%d\r\n" % len(command))
        for word in command:
            data = word if type(word) is bytes else str(word).encode()
            if word is RUN_ID:
                data = run_id.encode()
            parts.append(b"$%d\r\n%b\r\n" % (len(data), data))
    return b"".join(parts)


def load(script: scripts.Script) -> Command:
    return "SCRIPT", "LOAD", script.text


def probe(names: Names) -> Command:
    return _script(scripts.PROBE, *names.probes())


def _script(script: scripts.Script, *keys: str) -> Command:
    return ("EVALSHA", script.sha, len(keys), *keys)


def records(entries: Sequence[tuple[bytes, Sequence[bytes]]]) -> list[Record]:
    """The entries of a stream."""
    found = []
    for name, (header, body) in entries:
        at, _, epoch, rest = header.decode().split(" ", 3)
        offset, kind = int(name[: name.index(b"-")]), rest[0]
        if kind == "e":
            found.append(Record(offset, epoch, int(at, 16), "", is_json=True, body=b"", ended=body.decode()))
        else:
            found.append(Record(offset, epoch, int(at, 16), rest[1:], kind == "j", body))
    return found
