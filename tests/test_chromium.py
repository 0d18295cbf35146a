"""Chromium's own EventSource on a real service."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from service import Service, serving_file

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = pytest.mark.needs("chromium")

CONFIG = """
sources:
  counter: {}
  echo: {}
  reverse-echo: {}
  clock: {}
"""

ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]

COLLECT = """
([url, names, count]) => new Promise((resolve, reject) => {
  const found = [], source = new EventSource(url);
  const done = () => { source.close(); resolve(found); };
  source.onerror = () => { if (source.readyState === EventSource.CLOSED) done(); };
  for (const name of names) source.addEventListener(name, e => {
    found.push({event: e.type, data: JSON.parse(e.data), id: e.lastEventId});
    if (found.length === count) done();
  });
})
"""


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with serving_file(CONFIG, tmp_path_factory.mktemp("chromium")) as service:
        yield service


@pytest.fixture(scope="module")
def page(service: Service) -> Iterator[Page]:
    import shutil

    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=ARGUMENTS)
        page = browser.new_page()
        page.goto(service.url)
        yield page
        browser.close()


def collect(page: Page, url: str, names: list[str], count: int) -> list[dict[str, Any]]:
    return list(page.evaluate(COLLECT, [url, names, count]))


def test_a_merged_stream_arrives_with_typed_events(page: Page) -> None:
    url = "/sse?sources=echo,reverse-echo,clock&message=h%C3%A9llo%F0%9F%91%8D%F0%9F%8F%BD&interval=0.05"
    found = collect(page, url, ["echo", "reverse_echo", "tick"], 9)
    assert {event["event"] for event in found} == {"echo", "reverse_echo", "tick"}
    assert {e["data"]["message"] for e in found if e["event"] == "echo"} == {"héllo👍🏽"}
    assert {e["data"]["message"] for e in found if e["event"] == "reverse_echo"} == {"👍🏽olléh"}
    assert all("echo=" in event["id"] and "clock=" in event["id"] for event in found)


def test_a_stream_that_has_ended_is_not_opened_again(page: Page) -> None:
    """It closes, EventSource comes back with the last cursor, gets 204 and stops: `onerror` with CLOSED."""
    asked: list[str | None] = []
    page.on(
        "request", lambda request: asked.append(request.header_value("last-event-id")) if "sse" in request.url else None
    )
    found = collect(page, "/sse/counter?stop=3&interval=0.01", ["count", "stream.end"], 1000)
    assert [event["data"].get("value") for event in found] == [0, 1, 2, 3, None]
    assert found[-1]["id"] == "counter!"


def test_the_page_lists_the_sources_and_opens_a_selection(page: Page, service: Service, tmp_path: Path) -> None:
    page.goto(service.url)
    page.get_by_role("checkbox", name="echo", exact=True).check()
    page.get_by_role("checkbox", name="clock").check()
    assert page.locator("#url").input_value() == "/sse?sources=echo,clock&message=hello"
    page.get_by_role("button", name="Open").click()
    page.locator("#log").filter(has_text="tick").filter(has_text="hello").wait_for()
    page.screenshot(path=tmp_path / "dashboard.png")
    page.get_by_role("button", name="Close").click()
    assert page.locator("#state").text_content() == "closed"
