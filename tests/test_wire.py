"""Any text in any field, encoded by us and read by an independent parser of the WHATWG rules, comes back equal."""

from __future__ import annotations

import contextlib
import itertools
import json
import re
from collections.abc import AsyncIterator
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from sse_starlette import ServerSentEvent

from eventmux import Event, source
from eventmux.cursor import (
    MARK,
    Cursor,
    CursorWriter,
    Position,
    mark_of,
    new_proof,
    parse_cursor,
    private_epoch,
    shared_epoch,
)
from eventmux.sse import Frame, block, data, encode, qualified
from whatwg import Message, Parser, parse

ANY_TEXT = st.text()
UNICODE = st.text(st.characters(exclude_categories=["Cs"]))
AWKWARD = st.sampled_from(
    ["\u2028", "\u2029", "\0", "\r", "\n", "\r\n", "\ufeff", " ", ":", "\x85", "\x0b", "data: ", "💥"]
)
TEXT = st.one_of(UNICODE, st.lists(AWKWARD).map("".join), st.tuples(AWKWARD, UNICODE, AWKWARD).map("".join))


class Thing(Event):
    text: str
    anything: Any = None


@source
async def things() -> AsyncIterator[Thing | ServerSentEvent]:
    yield Thing(text="")


def cut(text: bytes, places: list[int]) -> list[bytes]:
    ends = sorted({place % (len(text) + 1) for place in places} | {0, len(text)})
    return [text[start:end] for start, end in itertools.pairwise(ends)]


def read(text: bytes, places: list[int]) -> list[Message]:
    parser = Parser()
    return [message for chunk in cut(text, places) for message in parser.feed(chunk)]


@given(text=TEXT, other=TEXT, places=st.lists(st.integers(min_value=0)))
@example(text="\ufeff", other="\r", places=[1, 2, 3])
def test_any_text_in_an_event_comes_back_equal_however_the_bytes_are_cut(
    text: str, other: str, places: list[int]
) -> None:
    frame = encode(things, Thing(text=text, anything={other: [other, None, 1.5, True]}))
    (message,) = read(b"retry: 1\nid: e.0\n\n" + block(frame, b"e.1"), places)
    assert json.loads(message.data) == {"text": text, "anything": {other: [other, None, 1.5, True]}}
    assert (message.event, message.id) == ("thing", "e.1")


@given(text=st.text(st.characters(categories=["Cs", "L", "Cc"])))
def test_a_lone_surrogate_comes_back_equal_too(text: str) -> None:
    (message,) = parse(block(encode(things, Thing(text="", anything=text)), b"e.1"))
    assert json.loads(message.data)["anything"] == text


@given(text=TEXT, name=st.from_regex(r"[^\r\n\0]{1,100}", fullmatch=True), comment=st.none() | TEXT)
def test_any_text_of_a_relay_comes_back_with_its_line_ends_as_lf(text: str, name: str, comment: str | None) -> None:
    if re.search("[\ud800-\udfff]", name) or name in {"error", "open"} or name.startswith("stream."):
        return
    frame = encode(things, ServerSentEvent(text, event=name, comment=comment))
    normal = re.sub(r"\r\n|\r", "\n", text)
    for source_name, body in (("", block(frame, b"e.1")), ("src/", b"id: e.1\n" + qualified(frame, "src"))):
        assert parse(body) == [Message(source_name + name, normal, "e.1")]
    assert data(frame).decode() == normal


@given(st.lists(TEXT, max_size=5))
def test_frames_stand_side_by_side_without_touching(texts: list[str]) -> None:
    stream = b"".join(block(encode(things, ServerSentEvent(text)), b"e.%d" % n) for n, text in enumerate(texts))
    assert [message.data for message in parse(stream)] == [re.sub(r"\r\n|\r", "\n", text) for text in texts]


NAMES = st.from_regex(r"[a-z][a-z0-9]{0,7}(-[a-z0-9]{1,4})?", fullmatch=True)
OFFSETS = st.none() | st.integers(min_value=0, max_value=10**12)


MARKS = st.sampled_from([(b"", None), (MARK, "")]) | st.builds(new_proof).map(lambda proof: (mark_of(proof), proof))


@given(
    st.lists(st.tuples(NAMES, st.booleans(), OFFSETS), min_size=1, max_size=8, unique_by=lambda item: item[0]), MARKS
)
def test_a_cursor_comes_back_equal(
    sources: list[tuple[str, bool, int | None]], marked: tuple[bytes, str | None]
) -> None:
    private = private_epoch()
    positions = [(name, private if is_private else shared_epoch(), offset) for name, is_private, offset in sources]
    text, mark = marked
    cursor = parse_cursor(CursorWriter(positions, text).text().decode())
    assert mark == cursor.mark
    for name, epoch, offset in positions:
        if offset is None:
            assert cursor.has_ended(name)
        else:
            assert not cursor.has_ended(name)
            assert cursor.position(name) == Position(epoch, offset)


@given(st.text() | st.binary().map(lambda value: value.decode("latin-1")))
def test_a_cursor_from_anywhere_is_read_or_refused_and_never_breaks(text: str) -> None:
    with contextlib.suppress(ValueError):
        assert isinstance(parse_cursor(text), Cursor)


@given(
    st.lists(st.booleans(), min_size=5, max_size=5),
    st.lists(st.integers(min_value=0, max_value=9_999_999), min_size=5, max_size=5),
    st.sampled_from([b"", MARK]),
)
def test_a_cursor_of_five_sources_passes_cors_without_preflight(
    private: list[bool], offsets: list[int], mark: bytes
) -> None:
    epoch = private_epoch()
    names = ["counters", "messages", "readings", "tweets-x", "zebras-y"]
    epochs = [epoch if is_private else shared_epoch() for is_private in private]
    # The private ones of a request stand side by side where the client asks for them so; at worst they do not, and
    # then the epoch is still written once.
    text = CursorWriter(list(zip(names, epochs, offsets, strict=True)), mark).text()
    assert len(text) <= 128
    assert not set(text) & set(b'"():<>?@[\\]{}\x7f')
    assert all(32 < byte < 127 for byte in text)


def test_a_cursor_is_moved_and_ended_by_source() -> None:
    writer = CursorWriter([("a", "E", 0), ("b", "E", 0), ("c", "F", 7)])
    assert writer.text() == b"a=E.0,b=.0,c=F.7"
    writer.move(1, 3)
    writer.end(0)
    assert writer.text() == b"a!,b=E.3,c=F.7"
    writer.end(1)
    writer.end(2)
    assert writer.text() == b"a!,b!,c!"


@pytest.mark.parametrize(
    "text",
    [
        "",
        ".1",
        "a=.1",
        "a=E.1,a=E.2",
        "E.1,F.2",
        "E.x",
        "E.-1",
        "E.1!",
        "A!",
        "E.1 ",
        "E." + "9" * 19,
        "~",
        "~~E.1",
        "~short~E.1",
        "~AAAAAAAA~",
        "E.1~",
        "a=~E.1",
    ],
)
def test_what_is_no_cursor_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="cursor"):
        parse_cursor(text)


def test_a_frame_is_made_once_and_shared_by_all() -> None:
    frame = encode(things, Thing(text="x"))
    assert isinstance(frame, Frame)
    assert frame.body == b'event: thing\ndata: {"text":"x","anything":null}\n\n'
