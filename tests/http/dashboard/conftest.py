"""A real browser, Chromium, that Playwright controls, and a service for it.

These tests run only if JOBQUEUE_TEST_CHROMIUM names the binary of Chromium.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import pytest

from tests.support import postgres
from tests.support.postgres import Database, ServerPool
from tests.support.service import Service

collect_ignore_glob = [] if "JOBQUEUE_TEST_CHROMIUM" in os.environ else ["test_*.py"]

if "JOBQUEUE_TEST_CHROMIUM" in os.environ:
    from playwright.sync_api import Browser, ConsoleMessage, Page, Request, expect, sync_playwright

PATIENCE_MS = 60_000
"""How long a test waits for a change of the page. A loaded machine may need a long time."""


@pytest.fixture(scope="module")
def board(servers: ServerPool) -> Iterator[Board]:
    """A service with the handlers of these tests, on a separate database, for all tests of a module."""
    with ExitStack() as stack:
        url = stack.enter_context(postgres.database(servers.url("embedded")))
        board = Board(url)
        stack.callback(board.close)
        yield board


class Board:
    """A service that can be stopped and started again on the same port, and plain SQL on its database."""

    def __init__(self, database_url: str) -> None:
        self._database_url = database_url
        self._port = 0
        self.start()
        self.database = Database(database_url)

    def start(self, *arguments: str, env: dict[str, str] | None = None) -> None:
        given = ["tests.http.dashboard.handlers", "--port", str(self._port), "--database-url", self._database_url, *arguments]
        self.service = Service(given, env or {})
        self._port = urlsplit(self.service.url).port or 0

    @property
    def url(self) -> str:
        return self.service.url

    def close(self) -> None:
        self.database.close()
        self.service.kill()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A browser for all tests of a module. While it runs, no other test can run asyncio."""
    expect.set_options(timeout=PATIENCE_MS)
    with sync_playwright() as playwright:
        # The sandbox does not work as root, and the browser visits only trusted pages.
        browser = playwright.chromium.launch(
            executable_path=os.environ["JOBQUEUE_TEST_CHROMIUM"], args=["--no-sandbox"], timeout=3 * PATIENCE_MS
        )
        yield browser
        browser.close()


class Complaints:
    """The faults of a page: requests to other origins, policy violations, uncaught exceptions, and console messages.

    Attributes:
        expected: parts of messages that a test causes.
    """

    def __init__(self, page: Page, origin: str) -> None:
        self.expected: list[str] = []
        self._said: list[str] = []
        self._origin = origin
        page.on("console", self._console)
        page.on("pageerror", lambda error: self._said.append(f"exception: {error}"))
        page.on("dialog", lambda dialog: self._said.append(f"dialog: {dialog.message}"))
        page.on("request", self._request)

    def _console(self, message: ConsoleMessage) -> None:
        if message.type in {"error", "warning"}:
            self._said.append(f"{message.type}: {message.text}")

    def _request(self, request: Request) -> None:
        if not request.url.startswith((self._origin, "data:")):
            self._said.append(f"fetched from elsewhere: {request.url}")

    @property
    def unexpected(self) -> list[str]:
        return [said for said in self._said if not any(part in said for part in self.expected)]


Scheme = Literal["light", "dark"]
Visit = Callable[..., "Page"]


@pytest.fixture
def visit(browser: Browser) -> Iterator[Visit]:
    """Open a page: ``visit(board.url, "#/jobs", width=360, scheme="dark")``. At the end, assert that no page has complaints.

    The page has an attribute `complaints`.
    """
    with ExitStack() as stack:
        opened: list[Complaints] = []

        def visit(
            url: str, address: str = "", *, width: int = 1280, height: int = 900, scheme: Scheme = "light", **options: Any
        ) -> Page:
            context = browser.new_context(
                viewport={"width": width, "height": height},
                color_scheme=scheme,
                locale="en-GB",
                timezone_id="Europe/Berlin",
                **options,
            )
            stack.callback(context.close)
            context.set_default_timeout(PATIENCE_MS)
            page = context.new_page()
            complaints = Complaints(page, url)
            opened.append(complaints)
            page.complaints = complaints  # type: ignore[attr-defined]
            page.goto(f"{url}/{address}")
            return page

        yield visit
        for complaints in opened:
            assert complaints.unexpected == []


SHOTS = Path(os.environ["JOBQUEUE_TEST_SHOTS"]) if "JOBQUEUE_TEST_SHOTS" in os.environ else None
"""The directory for the screenshots of docs/, if any."""
