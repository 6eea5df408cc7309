"""What is between a client and a service on a bad day: a proxy that loses requests, loses answers, or answers by itself."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import MappingProxyType
from typing import NamedTuple

import httpx

CUT = "cut"
"""Take a request and break the connection: it does not arrive."""

LOSE = "lose"
"""Hand a request on and break the connection: it is carried out, and nobody hears of it."""


class Answer(NamedTuple):
    """Answer in place of the service."""

    status: int
    headers: Mapping[str, str] = MappingProxyType({})
    body: str = '{"title": "a mishap"}'


class Passage(NamedTuple):
    """A request that came by, when, and the status that it was answered with, if it was."""

    at: float
    method: str
    path: str
    body: bytes
    status: int | None


class Interference(ThreadingHTTPServer):
    """Serves in front of a service, whose requests it hands on, as soon as its list of mishaps is used up.

    Attributes:
        mishaps: what befalls the requests that come next, in their order.
        passed: what came by so far.
    """

    daemon_threads = True

    def __init__(self, service_url: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.mishaps: list[str | Answer] = []
        self.passed: list[Passage] = []
        self.on_status: Callable[[int], None] = lambda _: None
        self.onward = httpx.Client(base_url=service_url, timeout=60)

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing of clients that have gone."""


class _Handler(BaseHTTPRequestHandler):
    server: Interference
    protocol_version = "HTTP/1.1"

    def _handle(self) -> None:
        at = time.monotonic()
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        mishap = self.server.mishaps.pop(0) if self.server.mishaps else None
        answer: httpx.Response | None = None
        if isinstance(mishap, Answer):
            answer = httpx.Response(mishap.status, headers=mishap.headers, content=mishap.body)
        elif mishap != CUT:
            headers = {name: self.headers[name] for name in ("Content-Type", "Authorization") if name in self.headers}
            answer = self.server.onward.request(self.command, self.path, content=body, headers=headers)
        answered = answer if mishap != LOSE else None
        self.server.passed.append(
            Passage(at, self.command, self.path, body, None if answered is None else answered.status_code),
        )
        if answered is None:
            self.close_connection = True
            return
        self.server.on_status(answered.status_code)
        self.send_response(answered.status_code)
        for name in ("Content-Type", "Retry-After"):
            if name in answered.headers:
                self.send_header(name, answered.headers[name])
        self.send_header("Content-Length", str(len(answered.content)))
        self.end_headers()
        self.wfile.write(answered.content)

    do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = _handle  # noqa: N815 - the names that it looks for

    def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002 - its name
        """Say nothing."""


@contextmanager
def interfering(service_url: str) -> Iterator[Interference]:
    """Serve in front of a service for as long as the context is open."""
    with Interference(service_url) as interference:
        serving = threading.Thread(target=interference.serve_forever, args=(0.01,))
        serving.start()
        try:
            yield interference
        finally:
            interference.shutdown()
            serving.join()
            interference.onward.close()
