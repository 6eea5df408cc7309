"""Generate HTTP load. `benchmarks.loads` runs this module in a separate process, so that it does not slow down the benchmark.

Each connection has a thread with a blocking socket. In a closed loop, each connection sends its next request after the last
response. In an open loop, requests are due at random times (a Poisson process), and the next free connection sends each request.
The latency of a request counts from its due time, so requests that are due while the service stalls have a long latency.
"""

from __future__ import annotations

import itertools
import random
import re
import socket
import sys
import threading
import time
from collections.abc import Iterator
from urllib.parse import urlsplit

import msgspec

NOW = b"@" * 20
"""Placeholder in a body for the request's due time, in nanoseconds of CLOCK_MONOTONIC."""

TIMEOUT = 60.0
"""Maximum time for one response, in seconds."""

RECEIVE_BYTES = 1 << 18

_HEAD = re.compile(rb"HTTP/1\.1 (\d{3})[^\0]*?\r\ncontent-length: *(\d+)[^\0]*?\r\n\r\n", re.IGNORECASE)


class Load(msgspec.Struct, frozen=True, kw_only=True):
    """The requests of a load, and how to send them.

    Attributes:
        seconds: how long to send.
        requests: if given, a closed loop ends after this number of requests, not after `seconds`.
        pause: seconds between a response and the next request of a connection.
        rate: requests per second of an open loop; None for a closed loop.
    """

    url: str
    body: bytes
    path: str = "/submit"
    content_type: str = "application/json"
    connections: int = 1
    seconds: float = 1.0
    requests: int | None = None
    pause: float = 0.0
    rate: float | None = None

    @property
    def head(self) -> bytes:
        """Return the request without its body."""
        lines = [
            f"POST {self.path} HTTP/1.1",
            f"Host: {urlsplit(self.url).netloc}",
            f"Content-Type: {self.content_type}",
            f"Content-Length: {len(self.body)}",
        ]
        return "".join(f"{line}\r\n" for line in [*lines, ""]).encode()


class Sent(msgspec.Struct):
    """The result of a load: seconds until the last response, latencies of responses with status 201, and number of failures."""

    seconds: float = 0.0
    latencies: list[float] = []
    failures: int = 0


def send(load: Load) -> Sent:
    """Run the load."""
    sent = Sent()
    began = threading.Barrier(load.connections + 1)
    started = time.monotonic_ns() + int(5e6)
    dues = _closed(started, load) if load.rate is None else _open(started, load, load.rate)
    threads = [threading.Thread(target=_drive, args=[load, dues, sent, began], daemon=True) for _ in range(load.connections)]
    for thread in threads:
        thread.start()
    began.wait()
    for thread in threads:
        thread.join()
    sent.seconds = (time.monotonic_ns() - started) / 1e9
    return sent


def _closed(started: int, load: Load) -> Iterator[int]:
    """Return the due times of a closed loop. All of them are 0, which means at once."""
    if load.requests is not None:
        return itertools.repeat(0, load.requests)
    ends = started + int(load.seconds * 1e9)
    return iter(lambda: 0 if time.monotonic_ns() < ends else -1, -1)


def _open(started: int, load: Load, rate: float) -> Iterator[int]:
    """Return the due times of an open loop, which do not depend on the service."""
    chance = random.Random(0)
    gaps = (int(chance.expovariate(rate) * 1e9) for _ in range(int(rate * load.seconds)))
    return iter(list(itertools.accumulate(gaps, initial=started)))  # a list iterator, because several threads use it


def _drive(load: Load, dues: Iterator[int], sent: Sent, began: threading.Barrier) -> None:
    parts = urlsplit(load.url)
    with socket.create_connection((parts.hostname or "", parts.port or 80), TIMEOUT) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        began.wait()
        for when in dues:
            due = when or time.monotonic_ns()
            if (early := due - time.monotonic_ns()) > 0:
                time.sleep(early / 1e9)
            if _exchange(connection, load.head + load.body.replace(NOW, b"%20d" % due)) == 201:
                sent.latencies.append((time.monotonic_ns() - due) / 1e9)
            else:
                sent.failures += 1
            time.sleep(load.pause)


def _exchange(connection: socket.socket, request: bytes) -> int:
    """Send a request, read the response, and return its status."""
    connection.sendall(request)
    received = b""
    while (head := _HEAD.match(received)) is None:
        received += _receive(connection)
    left = head.end() + int(head[2]) - len(received)
    while left > 0:
        left -= len(_receive(connection))
    return int(head[1])


def _receive(connection: socket.socket) -> bytes:
    data = connection.recv(RECEIVE_BYTES)
    if not data:
        raise ConnectionError("the service closed the connection before the end of its response")
    return data


if __name__ == "__main__":
    sys.stdout.buffer.write(msgspec.msgpack.encode(send(msgspec.msgpack.decode(sys.stdin.buffer.read(), type=Load))))
