"""The main job on a real server: sources become streams, and streams merge."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from service import Service, serving_file

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
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with serving_file(CONFIG, tmp_path_factory.mktemp("service")) as service:
        yield service


def test_a_source_is_a_stream(service: Service) -> None:
    with service.open("/sse/echo?message=hello") as stream:
        assert stream.take(1)[0].data["message"] == "hello"


def test_two_sources_merge_and_interleave(service: Service) -> None:
    with service.open("/sse?sources=echo,reverse-echo&message=hello&interval=0.01") as stream:
        events = stream.take(6)
    assert [event.data["message"] for event in events if event.event == "echo"] == ["hello"] * 3
    assert [event.data["message"] for event in events if event.event == "reverse_echo"] == ["olleh"] * 3


def test_a_source_that_ends_says_so_and_closes_the_connection(service: Service) -> None:
    with service.open("/sse/counter", method="POST", body={"stop": 9, "interval": 0.1}) as stream:
        events = stream.rest()
    assert [event.data["value"] for event in events[:-1]] == list(range(10))
    assert (events[-1].event, events[-1].data) == ("stream.end", {"source": "counter", "reason": "completed"})
