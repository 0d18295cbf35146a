"""The main job, by the command as a user starts it: sources become streams, and streams merge."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from service import Client, serve_process

CONFIG = """
sources:
  counter: {}
  echo: {}
  reverse-echo: {}
  clock: {}
  fast-clock: {use: clock, params: {interval: 0.05}}
streams:
  dashboard: [fast-clock, counter]
"""


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    folder = tmp_path_factory.mktemp("service")
    (folder / "plugins.yaml").write_text(CONFIG, "utf-8")
    with serve_process(cwd=folder) as process:
        yield Client(process.wait_for_url())
        assert process.stop() == 0


def test_a_source_is_a_stream(service: Client) -> None:
    with service.open("/sse/echo?message=hello") as stream:
        assert stream.take(1)[0].data["message"] == "hello"


def test_two_sources_merge_and_interleave(service: Client) -> None:
    with service.open("/sse?sources=echo,reverse-echo&message=hello&interval=0.01") as stream:
        events = stream.take(12)
    messages = {"echo": "hello", "reverse_echo": "olleh"}
    assert all(event.data["message"] == messages[event.event] for event in events)
    for start in range(0, 12, 4):  # neither waits for the other to be done
        assert {event.event for event in events[start : start + 4]} == messages.keys()


def test_a_source_that_ends_says_so_and_closes_the_connection(service: Client) -> None:
    with service.open("/sse/counter", method="POST", body={"stop": 9, "interval": 0.1}) as stream:
        events = stream.rest()
    assert [event.data["value"] for event in events[:-1]] == list(range(10))
    assert (events[-1].event, events[-1].data) == ("stream.end", {"source": "counter", "reason": "completed"})


def test_the_same_source_answers_in_plain_json(service: Client) -> None:
    body = {"stop": 9, "interval": 0}
    answer = service.post("/sse/counter", json=body, headers={"accept": "application/json"})
    assert answer.headers["content-type"] == "application/json"
    assert [line["data"] for line in answer.json()] == [
        *({"value": value} for value in range(10)),
        {"source": "counter", "reason": "completed"},
    ]


def test_a_named_stream_merges_shared_and_private_sources(service: Client) -> None:
    with service.open("/sse/dashboard?counter.interval=0.01") as stream:
        assert {event.event for event in stream.take(30)} == {"tick", "count"}


def test_two_clients_of_a_shared_source_see_the_same_events(service: Client) -> None:
    with service.open("/sse/fast-clock") as one, service.open("/sse/fast-clock") as two:
        theirs = {event.id: event.data for event in two.take(5)}
        ours = {event.id: event.data for event in one.take(10)}
    assert theirs.items() <= ours.items()
