"""A generator of HTTP load; `benchmarks.loads` runs it in a process of its own, so that it shares no interpreter with who measures.

A thread with a blocking socket for each connection. In a closed loop each of them sends when its last answer is there. In an open
loop the requests are due at random times (a Poisson process), each is sent by the next connection that is free, and its latency
counts from when it was due: a service that stalls is not spared the requests that would have come meanwhile.
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
"""In a body: when the request was due, in nanoseconds of CLOCK_MONOTONIC."""

TIMEOUT = 60.0
"""Seconds for one answer."""

RECEIVE_BYTES = 1 << 18

_HEAD = re.compile(rb"HTTP/1\.1 (\d{3})[^\0]*?\r\ncontent-length: *(\d+)[^\0]*?\r\n\r\n", re.IGNORECASE)


class Load(msgspec.Struct, frozen=True, kw_only=True):
    """What to POST, and how.

    Attributes:
        seconds: how long to go on sending.
        requests: send so many instead, in a closed loop.
        pause: seconds between an answer and the next request of a connection.
        rate: requests a second of an open loop; None for a closed loop.
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
        """The request up to its body."""
        lines = [
            f"POST {self.path} HTTP/1.1",
            f"Host: {urlsplit(self.url).netloc}",
            f"Content-Type: {self.content_type}",
            f"Content-Length: {len(self.body)}",
        ]
        return "".join(f"{line}\r\n" for line in [*lines, ""]).encode()


class Sent(msgspec.Struct):
    """What became of a load: seconds to the last answer, the latencies of what was answered with 201, and how many were not."""

    seconds: float = 0.0
    latencies: list[float] = []
    failures: int = 0


def send(load: Load) -> Sent:
    """Put the load on."""
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
    """Requests that are always due."""
    if load.requests is not None:
        return itertools.repeat(0, load.requests)
    ends = started + int(load.seconds * 1e9)
    return iter(lambda: 0 if time.monotonic_ns() < ends else -1, -1)


def _open(started: int, load: Load, rate: float) -> Iterator[int]:
    """Requests that are due whatever the service does."""
    chance = random.Random(0)
    gaps = (int(chance.expovariate(rate) * 1e9) for _ in range(int(rate * load.seconds)))
    return iter(list(itertools.accumulate(gaps, initial=started)))  # of a list, because several threads take from it


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
    """Send a request, read the answer, and return its status."""
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
        raise ConnectionError("the service closed the connection before its answer was whole")
    return data


if __name__ == "__main__":
    sys.stdout.buffer.write(msgspec.msgpack.encode(send(msgspec.msgpack.decode(sys.stdin.buffer.read(), type=Load))))
