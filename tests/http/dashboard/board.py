"""A service for the dashboard, and the faults of the pages that a browser shows."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from tests.support.postgres import Database
from tests.support.service import Service

if "JOBQUEUE_TEST_CHROMIUM" in os.environ:
    from playwright.sync_api import ConsoleMessage, Page, Request

PATIENCE_MS = 60_000
"""How long a test waits for a change of the page. A loaded machine may need a long time."""


SHOTS = Path(os.environ["JOBQUEUE_TEST_SHOTS"]) if "JOBQUEUE_TEST_SHOTS" in os.environ else None
"""The directory for the screenshots of docs/, if any."""


Visit = Callable[..., "Page"]


Scheme = Literal["light", "dark"]


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
