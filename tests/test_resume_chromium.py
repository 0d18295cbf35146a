"""Chromium's own EventSource, when connections are lost and servers killed: it goes on, or is told what is gone."""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from eventsource import PATIENCE, Received
from openai_server import SLOW_TOKENS, Upstream, openai_server
from proxy import proxying
from restart import restartable
from service import Service, serving_file
from test_chromium import ARGUMENTS

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.needs("chromium")

CONFIG = """
server: {retry: 50}
sources:
  clock: {}
  counter: {}
  pulse: {use: counter, shared: true, params: {interval: 0.005, stop: 400}}
  openai: {params: {api_key: "${KEY:-sk-test-0123456789}", base_url: "${UPSTREAM}"}}
"""

NAMES = [
    "tick",
    "count",
    "counter/count",
    "pulse/count",
    "started",
    "delta",
    "usage",
    "done",
    "stream.gap",
    "stream.error",
    "stream.end",
]
ANSWER = "".join(f"{number} " for number in range(SLOW_TOKENS))

RECORD = """
([url, names]) => {
  const source = new EventSource(url), events = [], states = [];
  window.recorder = {source, events, states};
  source.onopen = () => states.push("open");
  source.onerror = () => states.push(source.readyState === EventSource.CLOSED ? "closed" : "connecting");
  for (const name of names)
    source.addEventListener(name, e => events.push({event: e.type, data: JSON.parse(e.data), id: e.lastEventId}));
}
"""


class Tab:
    """A page with one EventSource, and what that has seen."""

    def __init__(self, page: Page, origin: str, path: str) -> None:
        self._page = page
        page.goto(f"{origin}/healthz")
        page.evaluate(RECORD, [path, NAMES])

    def wait_for(self, condition: str) -> None:
        """`condition` is JavaScript about `source`, its `events` and its `states` so far."""
        function = f"() => {{ const {{source, events, states}} = window.recorder; return {condition}; }}"
        self._page.wait_for_function(function, polling=10, timeout=PATIENCE * 1000)

    def wait_for_count(self, event: str, count: int) -> None:
        self.wait_for(f"events.filter(e => e.event === '{event}').length >= {count}")

    def wait_for_close(self) -> None:
        self.wait_for("source.readyState === EventSource.CLOSED")

    @property
    def states(self) -> list[str]:
        return list(self._page.evaluate("window.recorder.states"))

    @property
    def events(self) -> list[Received]:
        return [Received(**event) for event in self._page.evaluate("window.recorder.events")]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    with browser.new_page() as page:
        yield page


@pytest.fixture(scope="module")
def upstream() -> Iterator[Upstream]:
    with openai_server() as upstream:
        yield upstream


@pytest.fixture(scope="module")
def service(upstream: Upstream, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    environ = {"UPSTREAM": upstream.base_url}
    with serving_file(CONFIG, tmp_path_factory.mktemp("resume-chromium"), environ) as service:
        yield service


def times_asked(upstream: Upstream, prompt: str) -> int:
    return sum(prompt in str(asked.body) for asked in upstream.requests)


def data_of(events: list[Received], event: str, key: str) -> list[Any]:
    return [e.data[key] for e in events if e.event == event]


def test_a_shared_stream_tells_that_the_service_was_killed_and_restarted_and_goes_on(
    page: Page, tmp_path: Path
) -> None:
    with restartable(CONFIG, tmp_path) as service:
        tab = Tab(page, service.url, "/sse/clock?interval=0.02")
        tab.wait_for_count("tick", 5)
        service.kill()
        tab.wait_for("states.filter(state => state === 'connecting').length >= 3")  # it tries while nobody listens
        before = tab.events
        service.start()
        tab.wait_for_count("tick", len(before) + 5)
        gap, *after = tab.events[len(before) :]
    assert {event.event for event in before} == {"tick"}
    assert gap.event == "stream.gap"
    assert gap.data == {"source": "clock", "reason": "restarted", "missed": None}
    assert {event.event for event in after} == {"tick"}
    times = [event.data["now"] for event in before + after]
    assert times == sorted(set(times))
    assert "closed" not in tab.states


def test_a_merged_stream_tells_it_of_each_source_and_goes_on_with_all(page: Page, tmp_path: Path) -> None:
    with restartable(CONFIG, tmp_path) as service:
        tab = Tab(page, service.url, "/sse?sources=clock,counter&interval=0.02")
        tab.wait_for_count("tick", 5)
        tab.wait_for_count("count", 5)
        service.kill()
        tab.wait_for("states.at(-1) === 'connecting'")
        before = tab.events
        service.start()
        tab.wait_for(f"['tick', 'count'].every(name => events.slice({len(before)}).filter(e => e.event === name)[4])")
        after = tab.events[len(before) :]
    assert {event.event for event in before} == {"tick", "count"}
    assert [event.data for event in after if event.event == "stream.gap"] == [
        {"source": "clock", "reason": "restarted", "missed": None},
        {"source": "counter", "reason": "unknown", "missed": None},
    ]
    assert [event.event for event in after[:2]] == ["stream.gap", "stream.gap"]
    assert {event.event for event in after[2:]} == {"tick", "count"}
    values = data_of(after, "count", "value")
    assert values == list(range(len(values)))  # a new run
    assert "closed" not in tab.states


@pytest.mark.parametrize("reset", [True, False], ids=["reset", "closed"])
def test_a_connection_cut_in_mid_answer_costs_no_token_and_no_second_question(
    page: Page, service: Service, upstream: Upstream, reset: bool
) -> None:
    prompt = f"cut-{reset}"
    with proxying(service.url) as proxy:
        tab = Tab(page, proxy.url, f"/sse/openai?model=slow&prompt={prompt}")
        for count in (10, 60, 110):
            tab.wait_for_count("delta", count)
            proxy.cut(reset=reset)
        tab.wait_for_close()
        asked = proxy.last_event_ids()
    events = tab.events
    assert "".join(data_of(events, "delta", "text")) == ANSWER
    assert [e.data for e in events if e.event.startswith("stream.")] == [{"source": "openai", "reason": "completed"}]
    assert [e.event for e in events][-3:] == ["usage", "done", "stream.end"]
    assert len({event.id for event in events}) == len(events)
    assert times_asked(upstream, prompt) == 1
    assert len(asked) >= 5  # the first, one after each cut, and the one that is answered by 204
    assert (asked[0], asked[-1]) == (None, "openai!")
    assert tab.states[-1] == "closed"


def test_a_stream_that_something_ends_before_its_first_event_asks_no_second_question(
    page: Page, service: Service, upstream: Upstream
) -> None:
    with proxying(service.url) as proxy:
        proxy.end_after_first_write()  # that is the cursor, and nothing else
        tab = Tab(page, proxy.url, "/sse/openai?prompt=early")
        tab.wait_for_close()
    assert "".join(data_of(tab.events, "delta", "text")) == "Hello, world!"
    assert data_of(tab.events, "stream.end", "reason") == ["completed"]
    assert times_asked(upstream, "early") == 1


def test_a_merged_stream_cut_again_and_again_at_any_byte_brings_every_value_once_and_in_order(
    page: Page, service: Service
) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")  # noqa: T201 - pytest shows it if the test fails
    chance = random.Random(seed)
    # They break in the opening, in an event, and some events later.
    sizes = [chance.randrange(2**bits) for bits in (6, 8, 8, 10, 12, 12, 13)]
    chance.shuffle(sizes)
    with proxying(service.url) as proxy:
        tab = Tab(page, proxy.url, "/sse?sources=counter,pulse&qualify=true&counter.stop=300&counter.interval=0.005")
        tab.wait_for_count("counter/count", 10)
        proxy.cut_after(*sizes)
        proxy.cut()
        tab.wait_for_close()
        assert proxy.statuses[-1] == 204
        assert proxy.cuts_left == 0
        assert proxy.last_event_ids()[-1] == "counter!,pulse!"
    events = tab.events
    assert data_of(events, "counter/count", "value") == list(range(301))
    assert data_of(events, "pulse/count", "value") == list(range(401))
    assert [e.data for e in events if e.event.startswith("stream.")] == [
        {"source": "counter", "reason": "completed"},
        {"source": "pulse", "reason": "completed"},
    ]
    assert len({event.id for event in events}) == len(events)


def test_a_paid_answer_whose_service_was_restarted_ends_as_lost_and_is_not_asked_for_again(
    page: Page, upstream: Upstream, tmp_path: Path
) -> None:
    with restartable(CONFIG, tmp_path, {"UPSTREAM": upstream.base_url}) as service:
        tab = Tab(page, service.url, "/sse/openai?model=slow&prompt=lost")
        tab.wait_for_count("delta", 10)
        service.kill()
        service.start()
        tab.wait_for_close()
    events = tab.events
    text = "".join(data_of(events, "delta", "text"))
    assert ANSWER.startswith(text)
    assert text != ANSWER
    assert events[-1].event == "stream.end"
    assert events[-1].data == {"source": "openai", "reason": "lost"}
    assert [event.event for event in events].count("stream.end") == 1
    assert times_asked(upstream, "lost") == 1
