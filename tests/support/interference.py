"""A proxy between a client and a service that loses requests, loses responses, or sends its own responses."""

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
"""Drop a request and close the connection: the request does not arrive."""

LOSE = "lose"
"""Forward a request and close the connection: the service processes it, but the client gets no response."""


class Answer(NamedTuple):
    """Respond instead of the service."""

    status: int
    headers: Mapping[str, str] = MappingProxyType({})
    body: str = '{"title": "a mishap"}'


class Passage(NamedTuple):
    """A request, its time, and the status of its response, if there was one."""

    at: float
    method: str
    path: str
    body: bytes
    status: int | None


class Interference(ThreadingHTTPServer):
    """A proxy in front of a service. It forwards requests after its list of mishaps is used up.

    Attributes:
        mishaps: the mishaps of the next requests, in this order.
        passed: the requests so far.
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
        """Do not report clients that have disconnected."""


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

    do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = _handle  # noqa: N815 - BaseHTTPRequestHandler looks for these names

    def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002 - the name in the base class
        """Log nothing."""


@contextmanager
def interfering(service_url: str) -> Iterator[Interference]:
    """Run a proxy in front of a service while the context is open."""
    with Interference(service_url) as interference:
        serving = threading.Thread(target=interference.serve_forever, args=(0.01,))
        serving.start()
        try:
            yield interference
        finally:
            interference.shutdown()
            serving.join()
            interference.onward.close()
