"""The page and Chromium's own EventSource where a token is asked for."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from credentials import serving
from eventsource import wait_until
from proxy import Proxy, proxying
from service import Service
from test_chromium import ARGUMENTS

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = pytest.mark.needs("chromium")

CONFIG = """
sources: {open-clock: {}, secret: {}, mine: {}}
plugins: {dir: local}
server: {retry: 50}
auth:
  tokens: [{name: dash, token: dash-token, read: [open-clock, mine]}]
"""


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    with serving(CONFIG, tmp_path_factory.mktemp("page")) as service, proxying(service.url) as proxy:
        yield proxy


@pytest.fixture(scope="module")
def partly_open(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    config = CONFIG + "  anonymous: {read: [open-clock]}\n"
    with serving(config, tmp_path_factory.mktemp("partly")) as service:
        yield service


@pytest.fixture
def page(proxy: Proxy) -> Iterator[Page]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=ARGUMENTS)
        page = browser.new_page()
        page.goto(proxy.url)
        yield page
        browser.close()


def test_the_page_asks_for_a_token_and_opens_streams_that_survive_by_tickets(
    page: Page, proxy: Proxy, tmp_path: Path
) -> None:
    page.locator("#token").wait_for()
    page.locator("#token").fill("wrong")
    page.get_by_role("button", name="Use it").click()
    page.locator("#refusal").filter(has_text="the token is not valid").wait_for()
    page.screenshot(path=tmp_path / "asked.png")
    page.locator("#token").fill("dash-token")
    page.get_by_role("button", name="Use it").click()
    page.get_by_role("checkbox", name="mine").check()
    assert not page.locator("#login").is_visible()
    assert 0 == page.get_by_role("checkbox", name="secret").count()
    page.get_by_role("button", name="Open").click()
    page.locator("#log").filter(has_text='"n":3,"principal":"token:dash"').wait_for()
    proxy.cut()
    wait_until(lambda: proxy.last_event_ids()[-1], "the browser to come back")
    page.wait_for_timeout(300)
    page.screenshot(path=tmp_path / "open.png")
    page.get_by_role("button", name="Close").click()
    lines = [line for line in str(page.locator("#log").text_content()).splitlines() if line]
    assert not [line for line in lines if not line.startswith("mine")], "no gap, and no refusal"
    assert page.evaluate("[document.cookie, localStorage.length, sessionStorage.length]") == ["", 0, 0]
    assert "dash-token" not in page.content()


def test_the_page_takes_a_token_where_something_is_shown_without_one(page: Page, partly_open: Service) -> None:
    page.goto(partly_open.url)
    page.get_by_role("checkbox", name="open-clock").wait_for()
    page.locator("#token").fill("dash-token")
    page.get_by_role("button", name="Use it").click()
    page.get_by_role("checkbox", name="mine").wait_for()
    assert not page.locator("#login").is_visible()
