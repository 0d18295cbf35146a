"""Events from outside: published over HTTP, taken by a source, and streamed like all others."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, Field, model_validator

from eventmux import Context, DefinitionError, Event, Inbox, SourceError, source
from eventmux.errors import ConfigError, FullError
from eventmux.inbox import ROOM, ROOM_BYTES
from eventmux.settings import load_settings
from eventsource import wait_until
from service import Service, enable, serving, serving_file, settings_of


class Headline(Event):
    text: str = Field(max_length=20)
    grade: int = 0


class Odd(Event):
    text: str

    @model_validator(mode="before")
    @classmethod
    def _fail(cls, _: Any) -> Any:
        raise KeyError("hunter2")


class Message(BaseModel):
    text: str


class Shout(Event):
    text: str
    room: str


@source(shared=True)
async def news(inbox: Inbox[Headline]) -> AsyncIterator[Headline]:
    """Headlines."""
    async for headline in inbox:
        yield headline


@source(shared=True)
async def chat(ctx: Context, inbox: Inbox[Message], room: str = "hall") -> AsyncIterator[Shout]:
    assert ctx.source == "chat"
    async for message in inbox:
        if message.text == "fail":
            raise SourceError("as it was told")
        yield Shout(text=message.text.upper(), room=room)


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    enabled = [enable(news, linger=5), enable(chat, linger=5)]
    with serving(settings_of(*enabled), expect_quiet=False) as service:
        yield service


def publish(service: Service, path: str, body: object) -> int:
    return service.post(f"/publish/{path}", json=body).status_code


def test_what_is_published_is_streamed_to_all_who_listen(service: Service) -> None:
    with service.open("/sse/news") as one, service.open("/sse?sources=news,chat") as other:
        assert publish(service, "news", {"text": "a"}) == 202
        assert publish(service, "news", {"text": "b", "grade": 3}) == 202
        expected = [("headline", {"text": "a", "grade": 0}), ("headline", {"text": "b", "grade": 3})]
        assert [(event.event, event.data) for event in one.take(2)] == expected
        assert [(event.event, event.data) for event in other.take(2)] == expected


def test_what_is_published_while_nobody_listens_is_in_the_log() -> None:
    with serving(settings_of(news)) as service:
        for number in range(50):
            assert publish(service, "news", {"text": str(number)}) == 202
        wait_until(service.is_quiet)
        with service.open("/sse/news?since=earliest") as stream:
            assert [event.data["text"] for event in stream.take(50)] == [str(number) for number in range(50)]


def test_a_source_that_takes_its_time_has_it_for_the_last_message_too() -> None:
    @source(name="slow", shared=True)
    async def slow(inbox: Inbox[Headline]) -> AsyncIterator[Headline]:
        async for headline in inbox:
            await asyncio.sleep(0.7)
            yield headline

    with serving(settings_of(slow)) as service:
        for number in range(3):
            assert publish(service, "slow", {"text": str(number)}) == 202
        wait_until(service.is_quiet)
        with service.open("/sse/slow?since=earliest") as stream:
            assert [event.data["text"] for event in stream.take(3)] == ["0", "1", "2"]


def test_it_goes_to_the_run_with_the_parameters_of_its_query(service: Service) -> None:
    with service.open("/sse/chat?room=a") as one, service.open("/sse/chat?room=b") as other:
        assert publish(service, "chat?room=b", {"text": "for b"}) == 202
        assert publish(service, "chat?room=a", {"text": "for a"}) == 202
        assert one.take(1)[0].data == {"text": "FOR A", "room": "a"}
        assert other.take(1)[0].data == {"text": "FOR B", "room": "b"}


def test_a_reader_that_was_away_gets_what_was_published_meanwhile(service: Service) -> None:
    with service.open("/sse/chat?room=away") as stream:
        publish(service, "chat?room=away", {"text": "one"})
        cursor = stream.take(1)[0].id
    publish(service, "chat?room=away", {"text": "two"})
    with service.open("/sse/chat?room=away", cursor=cursor) as stream:
        assert stream.take(1)[0].data["text"] == "TWO"


def test_what_waits_while_the_source_is_started_again_is_not_lost() -> None:
    with (
        serving(settings_of(enable(chat, linger=5)), expect_quiet=False) as service,
        service.open("/sse/chat") as stream,
    ):
        for text in ("one", "fail", "two"):
            assert publish(service, "chat", {"text": text}) == 202
        assert [(event.event, event.data.get("text")) for event in stream.take(3)] == [
            ("shout", "ONE"),
            ("stream.error", None),
            ("shout", "TWO"),
        ]


@pytest.mark.parametrize(
    ("path", "body", "status", "told"),
    [
        ("news", {}, 422, "Field required"),
        ("news", {"text": "x" * 21}, 422, "at most 20 characters"),
        ("news", {"text": 5}, 422, "valid string"),
        ("news", [], 422, "Input should be an object"),
        ("news?x=1", {"text": "a"}, 422, "No source of this stream has the parameter 'x'"),
        ("chat?inbox=1", {"text": "a"}, 422, "No source of this stream has the parameter 'inbox'"),
        ("new", {"text": "a"}, 404, "no source or stream 'new': did you mean 'news'?"),
    ],
)
def test_what_cannot_be_taken_is_refused(service: Service, path: str, body: Any, status: int, told: str) -> None:
    response = service.post(f"/publish/{path}", json=body)
    assert response.status_code == status
    assert told in response.text


def test_a_plugin_that_cannot_check_what_is_published_fails_under_an_incident(caplog: pytest.LogCaptureFixture) -> None:
    @source(name="odd", shared=True)
    async def odd(inbox: Inbox[Odd]) -> AsyncIterator[Odd]:
        async for message in inbox:
            yield message

    with serving(settings_of(odd)) as service:
        answer = service.post("/publish/odd", json={"text": "a"})
    assert answer.status_code == 500
    told = re.fullmatch(
        "source 'odd' could not check what was published: incident ([0-9a-f]{8})", answer.json()["detail"]
    )
    assert told is not None
    assert f"incident {told[1]}" in caplog.text


def test_a_body_that_is_not_sent_as_json_is_refused(service: Service) -> None:
    headers = {"content-type": "text/plain"}
    assert service.post("/publish/news", content=b'{"text": "a"}', headers=headers).status_code == 415


def test_a_source_that_does_not_keep_up_takes_no_more_and_says_so() -> None:
    @source(name="stuck", shared=True)
    async def stuck(inbox: Inbox[Message]) -> AsyncIterator[Shout]:
        await asyncio.Event().wait()
        async for message in inbox:
            yield Shout(text=message.text, room="")

    inbox: Inbox[int] = Inbox()
    for number in range(ROOM):
        inbox.put(number)
    with pytest.raises(FullError, match="does not keep up"):
        inbox.put(0)
    with serving(settings_of(enable(stuck, linger=60)), expect_quiet=False) as service, service.open("/sse/stuck"):
        (run,) = service.hub._runs.of("stuck")
        run.inbox = inbox  # type: ignore[assignment] # full at once
        response = service.post("/publish/stuck", json={"text": "a"})
        assert response.status_code == 503
        assert "does not keep up" in response.json()["detail"]
        assert int(response.headers["retry-after"]) >= 1


def test_what_waits_for_a_source_is_bounded_in_bytes_too() -> None:
    @source(name="stuck", shared=True)
    async def stuck(inbox: Inbox[Message]) -> AsyncIterator[Shout]:
        await asyncio.Event().wait()
        async for message in inbox:
            yield Shout(text=message.text, room="")

    with serving(settings_of(enable(stuck, linger=60)), expect_quiet=False) as service:
        megabyte = {"text": "x" * 1_000_000}
        assert [publish(service, "stuck", megabyte) for _ in range(6)] == [*[202] * 4, 503, 503]
        assert publish(service, "stuck", {"text": "a"}) == 202


@pytest.mark.anyio
async def test_room_in_an_inbox_is_there_again_when_a_message_is_taken(anyio_backend: str) -> None:
    assert anyio_backend == "asyncio"
    inbox: Inbox[str] = Inbox()
    inbox.put("larger than all by itself", ROOM_BYTES + 1)
    with pytest.raises(FullError, match="does not keep up"):
        inbox.put("small", 1)
    assert await anext(aiter(inbox)) == "larger than all by itself"
    inbox.put("half", ROOM_BYTES // 2)
    inbox.put("half", ROOM_BYTES // 2)
    with pytest.raises(FullError, match="does not keep up"):
        inbox.put("small", 1)


def test_what_was_published_and_never_taken_is_told_when_its_source_is_gone(caplog: pytest.LogCaptureFixture) -> None:
    @source(name="deaf", shared=True)
    async def deaf(inbox: Inbox[Message]) -> AsyncIterator[Shout]:
        await asyncio.Event().wait()
        async for message in inbox:
            yield Shout(text=message.text, room="")

    with serving(settings_of(deaf)) as service:
        assert publish(service, "deaf", {"text": "a"}) == 202
        assert publish(service, "deaf", {"text": "b"}) == 202
        wait_until(service.is_quiet)
    assert "source deaf is gone with 2 published events it had not taken" in caplog.text


def test_only_sources_that_take_events_can_be_published_to_and_only_by_post(tmp_path: Path) -> None:
    with serving_file("sources: {clock: {}}", tmp_path) as service:
        response = service.post("/publish/clock", json={})
        assert response.status_code == 404
        assert "source 'clock' takes no events from outside" in response.json()["detail"]
    with serving(settings_of(news)) as service:
        assert service.get("/publish/news").status_code == 405


def test_what_can_be_published_stands_in_openapi(service: Service) -> None:
    document = service.get("/openapi.json").json()
    body = document["paths"]["/publish/chat"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert body == {"$ref": "#/components/schemas/chat.takes"}
    assert document["components"]["schemas"]["chat.takes"]["required"] == ["text"]
    names = [one["name"] for one in document["paths"]["/publish/chat"]["post"]["parameters"]]
    assert names == ["room"]


@pytest.mark.parametrize(
    ("shared", "annotation", "told"),
    [
        (False, Inbox[Message], "source 'odd': what is published is for all: write @source(shared=True)"),
        (True, Inbox, "say what its Inbox is of"),
        (True, Inbox[int], "say what its Inbox is of"),
    ],
)
def test_an_inbox_that_cannot_be_is_refused_where_it_is_defined(shared: bool, annotation: Any, told: str) -> None:
    async def odd(inbox: Any) -> AsyncIterator[Shout]:
        yield Shout(text="", room="")

    odd.__annotations__["inbox"] = annotation
    with pytest.raises(DefinitionError, match=told.replace("(", r"\(").replace(")", r"\)")):
        source(shared=shared)(odd)


def test_two_inboxes_are_one_too_many() -> None:
    with pytest.raises(DefinitionError, match="parameters one and two are both an Inbox: keep one"):

        @source(shared=True)
        async def odd(one: Inbox[Message], two: Inbox[Message]) -> AsyncIterator[Shout]:
            yield Shout(text="", room="")


def test_a_source_that_takes_events_cannot_be_made_private(tmp_path: Path) -> None:
    (tmp_path / "local").mkdir()
    (tmp_path / "local" / "board.py").write_text(BOARD, "utf-8")
    file = tmp_path / "plugins.yaml"
    file.write_text("plugins: {dir: local}\nsources: {board: {shared: false}}", "utf-8")
    with pytest.raises(ConfigError) as refused:
        load_settings(file, {})
    assert str(refused.value).endswith(
        "2:27: sources.board.shared: source 'board' takes events from outside, which are for all: leave it shared"
    )


BOARD = """
from collections.abc import AsyncIterator
from eventmux import Event, Inbox, source

class Note(Event):
    text: str

@source(shared=True)
async def board(inbox: Inbox[Note]) -> AsyncIterator[Note]:
    async for note in inbox:
        yield note
"""
