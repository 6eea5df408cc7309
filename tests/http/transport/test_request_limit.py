"""Limits of running requests, per connection and in total, and of HTTP/2 frames without a request."""

from __future__ import annotations

import struct
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest
import structlog.testing
import trio

from jobqueue.http import limits
from tests.support.http import RecordingNode, Served, open_files, problem, read_all, read_until, serving
from tests.support.http2 import Client
from tests.support.waiting import until

BOUND = 3

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0"

PLAIN = b"POST /submit HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 2\r\n"

SUBMIT = PLAIN + b"Connection: close\r\n\r\n"

HEADERS, PRIORITY, RESET, SETTINGS, PING, CONTINUATION = 1, 2, 3, 4, 6, 9
END_STREAM, END_HEADERS = 1, 4


@pytest.fixture
def bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_REQUESTS", BOUND)


@asynccontextmanager
async def client(served: Served) -> AsyncIterator[Client]:
    async with await served.connect() as stream:
        connected = Client(stream)
        await connected.start()
        yield connected


def frame(kind: int, flags: int = 0, stream: int = 0, content: bytes = b"") -> bytes:
    return struct.pack("!I", len(content))[1:] + bytes([kind, flags]) + struct.pack("!I", stream) + content


def get(path: bytes = b"/queues") -> bytes:
    """Return the header block of a GET without compression: its fields are literals that are not indexed."""
    fields = [(b":method", b"GET"), (b":path", path), (b":scheme", b"http"), (b":authority", b"localhost")]
    return b"".join(b"\0" + bytes([len(name)]) + name + bytes([len(value)]) + value for name, value in fields)


# ------------------------------------------------------------------------------------------------------------ of all connections


@pytest.mark.usefixtures("bound")
async def test_requests_over_the_limit_are_rejected_before_their_bodies_except_for_health() -> None:
    async with serving() as served, AsyncExitStack() as stack:
        held = served.node.hold = trio.Event()
        streams = [await stack.enter_async_context(await served.connect()) for _ in range(BOUND)]
        for stream in streams[:-1]:
            await stream.send_all(SUBMIT + b"{}")
        await streams[-1].send_all(SUBMIT)  # counts too, without its body
        await served.node.entered.wait()
        await eventually_refused(served)

        problem(await served.http.get("/queues"), 503)
        async with await served.connect() as beyond:
            await beyond.send_all(SUBMIT)
            refused = await read_until(beyond, b"}")
        assert b"503" in refused
        assert b"urn:jobqueue:too-many-requests" in refused
        assert b"retry-after: 1\r\n" in refused.lower()
        assert b"x-content-type-options: nosniff" in refused.lower()

        for path in ("/health", "/health/ready"):
            assert (await served.http.get(path)).status_code == 200
            assert (await served.http.head(path)).status_code == 200
        served.node.hold = None
        async with await served.connect() as express:
            await express.send_all(PLAIN + b"\r\n{}")
            assert b"201" in await read_until(express, b"}")

        await streams[-1].send_all(b"{}")
        held.set()
        for stream in streams:
            assert b"201" in await read_all(stream)
        assert (await served.http.get("/queues")).status_code == 200


async def eventually_refused(served: Served) -> None:
    with trio.fail_after(60):
        while (await served.http.get("/queues")).status_code != 503:  # noqa: ASYNC110 - the server sets no event of the test
            await trio.sleep(0.01)


@pytest.mark.usefixtures("bound")
async def test_every_end_of_a_request_frees_its_place() -> None:
    node = RecordingNode()
    async with serving(node) as served:
        for _ in range(2):
            node.hold = trio.Event()
            for _ in range(BOUND):
                async with await served.connect() as stream:
                    await stream.send_all(SUBMIT + b"{}")
                    await until(node.entered.is_set)
            await until(lambda: node.cancelled == BOUND)
            node.hold, node.cancelled, node.entered = None, 0, trio.Event()
            for path in ("/queues", "/nowhere", "/jobs/x", "/queues?a=1&a=2"):
                assert (await served.http.get(path)).status_code != 503
        node.error = RuntimeError("an internal error")
        with structlog.testing.capture_logs():
            for _ in range(BOUND + 1):
                assert (await served.http.post("/submit?", json={})).status_code == 500


@pytest.mark.usefixtures("bound")
async def test_streams_of_http_2_count_as_requests() -> None:
    async with serving() as served, client(served) as one:
        served.node.hold = trio.Event()
        for _ in range(BOUND + 2):
            stream = one.begin("/submit", "POST", ends=False, content_type="application/json")
            one.h2.send_data(stream, b"{}", end_stream=True)
        await one.send()
        await one.until(lambda: list(one.statuses.values()) == [503, 503])
        served.node.hold.set()
        await one.until(lambda: len(one.ended) == BOUND + 2)
        assert sorted(one.statuses.values()) == [201] * BOUND + [503] * 2


# ------------------------------------------------------------------------------------------------------------- of one connection


async def test_streams_of_one_connection_are_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_STREAMS", 5)
    async with serving() as served:
        before = open_files()
        async with client(served) as one:
            assert one.h2.remote_settings.max_concurrent_streams == 5
            held = served.node.hold = trio.Event()
            for _ in range(5):
                stream = one.begin("/submit", "POST", ends=False, content_type="application/json")
                one.h2.send_data(stream, b"{}", end_stream=True)
            await one.send()
            await served.node.entered.wait()
            held.set()
            await one.until(lambda: len(one.ended) == 5)
            assert set(one.statuses.values()) == {201}

        async with await served.connect() as stream:
            served.node.hold = trio.Event()
            opened = b"".join(frame(HEADERS, END_HEADERS, number, get()) for number in range(1, 12, 2))
            await stream.send_all(PREFACE + opened + frame(PING, content=b"too many"))
            assert b"too many" not in await read_all(stream)  # the connection ends before
        await until(lambda: open_files() == before)


async def test_streams_that_are_reset_at_once_leave_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rapid reset (CVE-2023-44487): a stream that is reset does not count, although its request has begun."""
    monkeypatch.setattr(limits, "MAX_REQUESTS", 10)
    reset = struct.pack("!I", 8)
    opened = [frame(HEADERS, END_HEADERS | END_STREAM, n, get()) + frame(RESET, 0, n, reset) for n in odd(300)]
    async with serving() as served:
        before = open_files()
        async with await served.connect() as stream:
            with structlog.testing.capture_logs() as logs:
                await stream.send_all(PREFACE + b"".join(opened))
                await stream.send_eof()
                await read_all(stream)
            assert not [line for line in logs if line["log_level"] in {"error", "critical"}]
        await until(lambda: open_files() == before)
        for _ in range(12):
            assert (await served.http.get("/queues")).status_code == 200


def odd(count: int) -> range:
    return range(1, 2 * count, 2)


@pytest.mark.parametrize(("pieces", "answered"), [(40, True), (80, False)])
async def test_the_pieces_of_a_header_block_are_limited(pieces: int, answered: bool) -> None:
    """Too many pieces (CVE-2024-27316 and similar attacks) end the connection."""
    async with serving() as served:
        before = open_files()
        async with await served.connect() as stream:
            block = get()
            cuts = [block[:20], *[b""] * (pieces - 2), block[20:]]
            frames = [frame(HEADERS, END_STREAM, 1, cuts[0]), *(frame(CONTINUATION, 0, 1, cut) for cut in cuts[1:-1])]
            frames.append(frame(CONTINUATION, END_HEADERS, 1, cuts[-1]))
            await stream.send_all(PREFACE + b"".join(frames))
            if answered:
                assert b"default" in await read_until(stream, b"}]")
            else:
                assert b"default" not in await read_all(stream)
        await until(lambda: open_files() == before)


@pytest.mark.parametrize(("times", "answered"), [(3, True), (200, False)])
async def test_the_decoded_size_of_a_header_list_is_limited(times: int, answered: bool) -> None:
    """A few bytes can repeat the same large header many times (HPACK bomb)."""
    async with serving() as served:
        before = open_files()
        async with await served.connect() as stream:
            value = b"x" * 3_900
            indexed = b"\x40\x01x" + b"\x7f" + bytes([(3_900 - 127) % 128 | 128, (3_900 - 127) // 128]) + value
            block = get() + indexed + b"\xbe" * times
            await stream.send_all(PREFACE + frame(HEADERS, END_HEADERS | END_STREAM, 1, block))
            if answered:
                assert b"default" in await read_until(stream, b"}]")
            else:
                assert b"default" not in await read_all(stream)
        await until(lambda: open_files() == before)


@pytest.mark.parametrize(
    "flood",
    [frame(PING, content=b"12345678"), frame(SETTINGS)],
    ids=["pings", "settings"],
)
async def test_a_client_that_does_not_read_its_responses_is_disconnected(flood: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "SEND_TIMEOUT", 0.3)
    async with serving() as served:
        before = open_files()
        async with await served.connect(receive_buffer=4096) as stream:
            await stream.send_all(PREFACE)
            with trio.fail_after(60), pytest.raises(trio.BrokenResourceError):
                await stream.send_all(flood * 2_000_000)
        await until(lambda: open_files() == before)
        assert (await served.http.get("/queues")).status_code == 200


async def test_priorities_of_nonexistent_streams_are_limited() -> None:
    async with serving() as served:
        before = open_files()
        async with await served.connect() as stream:
            told = b"".join(frame(PRIORITY, 0, number, b"\0\0\0\0\x10") for number in odd(3_000))
            await stream.send_all(PREFACE + told + frame(PING, content=b"too many"))
            assert b"too many" not in await read_all(stream)
        await until(lambda: open_files() == before)
