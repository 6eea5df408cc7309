"""A real browser, Chromium, that Playwright controls, and a service for it.

These tests run only if JOBQUEUE_TEST_CHROMIUM names the binary of Chromium.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from tests.http.dashboard.board import PATIENCE_MS, Board, Complaints, Scheme, Visit
from tests.support import postgres
from tests.support.postgres import ServerPool

collect_ignore_glob = [] if "JOBQUEUE_TEST_CHROMIUM" in os.environ else ["test_*.py"]

if "JOBQUEUE_TEST_CHROMIUM" in os.environ:
    from playwright.sync_api import Browser, Page, expect, sync_playwright


@pytest.fixture(scope="module")
def board(servers: ServerPool) -> Iterator[Board]:
    """A service with the handlers of these tests, on a separate database, for all tests of a module."""
    with ExitStack() as stack:
        url = stack.enter_context(postgres.database(servers.url("embedded")))
        board = Board(url)
        stack.callback(board.close)
        yield board


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
