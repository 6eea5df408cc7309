"""Slow, vanishing, and malicious clients against the real service: limits hold, and no resources leak.

With JOBQUEUE_TEST_SOAK=1 there are thousands of clients, and the service has its default timeouts: that takes two minutes.
Otherwise the timeouts are shorter.
"""

from __future__ import annotations

import json
import resource
import socket
import struct
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jobqueue.http import limits
from jobqueue.service import SHUTDOWN_MARGIN
from tests.support import SOAK
from tests.support.service import Service
from tests.support.waiting import wait_for

IDLE_CONNECTIONS = 2_000 if SOAK else 500

MALFORMED = 3_000 if SOAK else 600

PATIENCE = 5.0
"""The timeouts for slow clients in the short form, in seconds; see `tests.handlers.impatient`."""

HEADERS_TIMEOUT, BODY_TIMEOUT, SEND_TIMEOUT = (
    (limits.HEADERS_TIMEOUT, limits.BODY_TIMEOUT, limits.SEND_TIMEOUT) if SOAK else (PATIENCE, PATIENCE, PATIENCE)
)

SLACK = 60.0
"""Seconds that a loaded machine may be late."""

QUICK, TIMES_ALONE = 20.0, 20
"""The most seconds for good requests among bad ones, or the most multiples of their time without bad ones."""

SHUTDOWN_SECONDS = 1 + SHUTDOWN_MARGIN + SLACK
"""The most seconds for a shutdown with a grace period of one second."""

LIMITS = {"headers": HEADERS_TIMEOUT, "body": BODY_TIMEOUT}
"""Seconds after which the service closes the connection of a slow client."""

CONNECTION_BYTES = 100_000
"""The most memory for an idle connection."""

RESET = struct.pack("ii", 1, 0)
"""The SO_LINGER value that makes a close a reset."""

GROWTH_BYTES = 64 << 20
"""The most growth of the process. Allocators keep some memory."""

BODY = b'{"kind": "echo", "payload": {"n": 1}}'

REQUEST = (
    b"POST /submit HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    b"Content-Length: %d\r\nConnection: close\r\n\r\n%s" % (len(BODY), BODY)
)

LOCAL = b"Host: localhost\r\n"

JSON = b"Content-Type: application/json\r\n"

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

CORPUS = [
    REQUEST,
    b"GET /health HTTP/1.1\r\n" + LOCAL + b"\r\n",
    b"GET /jobs/0190a0b0-0000-7000-8000-000000000001 HTTP/1.1\r\n" + LOCAL + b"\r\n",
    b"POST /submit HTTP/1.1\r\n" + LOCAL + JSON + b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
    b"POST /submit HTTP/1.1\r\n" + LOCAL + JSON + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n{}",
    b"POST /submit HTTP/1.1\r\n" + LOCAL + JSON + b"Content-Length: 99999999999999999999\r\n\r\n",
    b"POST /submit HTTP/1.1\r\n" + LOCAL + JSON + b"Content-Length: -1\r\n\r\n",
    b"POST /submit HTTP/1.1\r\n" + LOCAL + JSON + b"Transfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n",
    b"POST /submit HTTP/1.1\r\n" + LOCAL + JSON + b"Expect: 100-continue\r\nContent-Length: 2\r\n\r\n",
    b"GET ?x HTTP/1.1\r\n" + LOCAL + b"\r\n",
    b"GET http://[ HTTP/1.1\r\n" + LOCAL + b"\r\n",
    b"GET /%ff%00%2e%2e/ HTTP/1.1\r\n" + LOCAL + b"\r\n",
    b"GET /\xc3\xa9\xff HTTP/1.1\r\n" + LOCAL + b"\r\n",
    b"GET / HTTP/1.1\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
    b"GET / HTTP/9.9\r\n" + LOCAL + b"\r\n",
    b"GET /" + b"x" * 20_000 + b" HTTP/1.1\r\n" + LOCAL + b"\r\n",
    b"GET / HTTP/1.1\r\n" + b"".join(b"X-%d: y\r\n" % number for number in range(2_000)) + b"\r\n",
    b"GET / HTTP/1.1\r\n" + LOCAL + b"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n\r\n",
    b"GET / HTTP/1.1\r\n" + LOCAL + b"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Protocol: \xff\r\n\r\n\x00",
    b"GET / HTTP/1.1\r\n" + LOCAL + b"Upgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\nConnection: Upgrade\r\n\r\n",
    PREFACE,
    # HEADERS with raw UTF-8 in :path, after an empty SETTINGS.
    PREFACE + b"\0\0\0\4\0\0\0\0\0" + b"\0\0\x10\1\5\0\0\0\1" + b"\x82\x86\x41\1a\x44\x08/caf\xc3\xa9\xff!",
    PREFACE + b"\xff" * 100,
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 200,  # the beginning of TLS
    b"\0" * 1_000,
    b"\r\n" * 1_000,
]
"""Good and bad requests: requests that broke similar servers, and starting points of mutations."""


class Process:
    """A service as its clients and the kernel see it."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.url = service.url
        self.address = (urlsplit(service.url).hostname, urlsplit(service.url).port)
        self._proc = Path(f"/proc/{service.process.pid}")
        self._alone = max(self.serve() for _ in range(3))

    def memory(self) -> int:
        """Return the resident memory in bytes."""
        return int((self._proc / "statm").read_text().split()[1]) * resource.getpagesize()

    def open_files(self) -> int:
        """Return the number of open file descriptors."""
        return len(list((self._proc / "fd").iterdir()))

    def connect(self, *, receive_buffer: int | None = None, timeout: float = 60) -> socket.socket:
        client = socket.socket()
        client.settimeout(timeout)
        if receive_buffer is not None:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        client.connect(self.address)
        return client

    def serve(self) -> float:
        """Send good requests, and return the seconds until their responses."""
        begun = time.monotonic()
        assert httpx.get(f"{self.url}/health", timeout=60).status_code == 200
        assert httpx.post(f"{self.url}/submit", json={"kind": "echo"}, timeout=60).status_code == 201
        return time.monotonic() - begun

    def assert_quick(self) -> None:
        """Assert that bad clients do not delay good requests."""
        assert self.serve() < max(QUICK, TIMES_ALONE * self._alone)


@pytest.fixture
def process(service: Callable[..., Service]) -> Process:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if hard != resource.RLIM_INFINITY and hard < 2 * IDLE_CONNECTIONS + 500:
        pytest.skip(f"the machine allows only {hard} open files")
    resource.setrlimit(resource.RLIMIT_NOFILE, (2 * IDLE_CONNECTIONS + 500, hard))
    module = "tests.handlers.plain" if SOAK else "tests.handlers.impatient"
    return Process(service(module, "--no-workers", "--grace-period", "1", env={"PATIENCE": str(PATIENCE)}))


@pytest.fixture(autouse=True)
def open_files() -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def drip(client: socket.socket, begun: float, within: float) -> float:
    """Send a byte now and then until the server closes the connection; return the seconds since the beginning."""
    client.setblocking(False)
    while time.monotonic() - begun < within:
        with suppress(BlockingIOError):
            try:
                client.send(b"x")
                if client.recv(65_536) == b"":
                    break
            except (ConnectionError, BrokenPipeError):
                break
        time.sleep(0.25)
    return time.monotonic() - begun


def exchange(process: Process, request: bytes, *, patience: float = 0.2) -> bytes:
    """Send bytes; return the data until the server closes the connection, or sends nothing for some seconds."""
    with process.connect(timeout=patience) as client, suppress(OSError):
        client.sendall(request)
        received = b""
        with suppress(TimeoutError):
            while data := client.recv(65_536):
                received += data
        return received
    return b""


def warm_up(process: Process) -> tuple[int, int]:
    """Use everything once; return the memory and the number of file descriptors of the service afterwards."""
    with ThreadPoolExecutor(50) as pool:
        list(pool.map(lambda request: exchange(process, request), CORPUS * 20))
    with httpx.Client(base_url=process.url, timeout=60) as client:
        for _ in range(20):
            client.get("/metrics")
    time.sleep(limits.CLOSE_TIMEOUT)
    # The connection for claims may open later: without workers, the first audit opens it.
    return process.memory(), process.open_files() + 1


# ---------------------------------------------------------------------------------------------------------------- ways to misbehave


def dawdle(process: Process, pool: ThreadPoolExecutor, open_sockets: ExitStack) -> dict[str, list[Future[float]]]:
    """Be slow in every way, with 20 connections each; return the seconds after which the server closed each of them."""
    job = {"payload": "x" * 1_000_000, "delay": 3600}
    large = httpx.post(f"{process.url}/submit", json=job, timeout=60).json()["id"]
    slow_body = b"POST /submit HTTP/1.1\r\n" + LOCAL + JSON + b"Content-Length: 100000\r\n\r\n"
    slow_reader = f"GET /jobs/{large} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode() * 10
    ends: dict[str, list[Future[float]]] = {"headers": [], "body": []}
    for sort, request in [("headers", b"POST /submit HTTP/1.1\r\nX: "), ("body", slow_body), ("reader", slow_reader)]:
        for _ in range(20):
            begun = time.monotonic()
            client = open_sockets.enter_context(process.connect(receive_buffer=4096))
            client.sendall(request)
            if sort in ends:
                ends[sort].append(pool.submit(drip, client, begun, LIMITS[sort] + SLACK))
    return ends


def vanish(process: Process, length: int) -> None:
    """Disconnect after some bytes of a request: once with a FIN, once with a reset."""
    for reset in (False, True):
        with process.connect() as client:
            if reset:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            client.sendall(REQUEST[:length])


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """Take a request of the corpus, and cut, repeat, insert, and overwrite pieces of it."""
    request = bytearray(draw(st.sampled_from(CORPUS)))
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(request)))
        end = min(len(request), start + draw(st.integers(0, 40)))
        piece = draw(st.one_of(st.binary(max_size=12), st.sampled_from([b"\r\n", b":", b" ", b"\0", b"HTTP/1.1", b"\xff", b"%"])))
        request[start:end] = draw(st.sampled_from([piece, bytes(request[start:end]) * 2, b""]))
    return bytes(request)


def send_garbage(process: Process, pool: ThreadPoolExecutor) -> dict[int, bytes]:
    """Send many malformed requests; return the statuses of the responses, with a request for each."""
    by_status: dict[int, bytes] = {}

    @settings(max_examples=MALFORMED // 20, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
    @given(st.lists(mutated(), min_size=20, max_size=20))
    def send(requests: list[bytes]) -> None:
        answers = pool.map(lambda request: exchange(process, request, patience=0.5), requests)
        for request, answer in zip(requests, answers, strict=True):
            if answer.startswith(b"HTTP/1.1 "):
                by_status[int(answer[9:12])] = request

    send()
    return by_status


# ---------------------------------------------------------------------------------------------------------------------- the tests


@pytest.mark.long
def test_slow_vanishing_and_malicious_clients_affect_nobody_and_leave_nothing(process: Process) -> None:
    memory, sockets = warm_up(process)
    with ExitStack() as stack:
        slow = stack.enter_context(ThreadPoolExecutor(40))
        fast = stack.enter_context(ThreadPoolExecutor(16))
        ends = dawdle(process, slow, stack.enter_context(ExitStack()))
        process.assert_quick()

        assert b"201" in exchange(process, REQUEST, patience=60)
        for _ in fast.map(partial(vanish, process), [*range(len(REQUEST) + 1)] * 3):
            pass
        process.assert_quick()

        by_status = send_garbage(process, fast)
        assert {201, 400} <= by_status.keys()
        assert 500 not in by_status, by_status[500]
        process.assert_quick()

        for sort, futures in ends.items():
            for future in futures:
                assert LIMITS[sort] - 1 < future.result() < LIMITS[sort] + SLACK, sort
        wait_for(
            lambda: process.open_files() <= sockets,
            "the connections of the slow readers are closed too",
            seconds=SEND_TIMEOUT + SLACK,
        )

    process.assert_quick()
    assert process.memory() - memory < GROWTH_BYTES
    wait_for(lambda: process.open_files() <= sockets, "every connection is closed", seconds=SLACK)
    assert process.service.stop(SHUTDOWN_SECONDS) == 0
    assert "Traceback" not in process.service.log
    assert not [line for line in map(json.loads, process.service.log_lines) if line["level"] in {"error", "critical"}]


def test_idle_connections_by_the_hundred(process: Process) -> None:
    memory, sockets = warm_up(process)
    with ExitStack() as stack:
        clients = [stack.enter_context(process.connect()) for _ in range(IDLE_CONNECTIONS)]
        for client in clients:
            client.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        for client in clients:
            assert client.recv(4096).startswith(b"HTTP/1.1 200")
        process.assert_quick()
        assert process.open_files() >= IDLE_CONNECTIONS
        assert process.memory() - memory < IDLE_CONNECTIONS * CONNECTION_BYTES
        for client in clients[::2]:
            client.close()
        wait_for(lambda: process.open_files() <= sockets + IDLE_CONNECTIONS // 2, "half of the connections are closed")
        process.assert_quick()
        # The other half is open when the service stops.
        assert process.service.stop(SHUTDOWN_SECONDS) == 0
    assert "Traceback" not in process.service.log
