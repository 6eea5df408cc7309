"""The express lane and the Quart routes give the same responses, byte for byte, except for ids and the date."""

from __future__ import annotations

import json
import os
import re
import socket
import struct
import time
from collections.abc import Callable
from itertools import pairwise

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from jobqueue.admission import Receipt
from jobqueue.errors import ConflictingJob, ConnectionLost, DatabaseUnavailable, Overloaded, ShuttingDown, UnprocessableJob
from jobqueue.http.access.auth import Authorizer
from jobqueue.http.express import lane as express
from jobqueue.http.express import wire_format
from jobqueue.http.express.wire_format import Request
from jobqueue.http.transport.hypercorn_connection import RECEIVE_BYTES
from jobqueue.tokens import parse
from tests.support.http import JOB, JSON, RecordingNode, complete, exchange, open_files, request, serving
from tests.support.waiting import until

pytestmark = pytest.mark.slow

CLOSED = Authorizer([parse("submit:secret")])

PLAIN = {
    "one": request(JSON),
    "an array": request(JSON, body=b"[" + JOB + b"," + JOB + b"]"),
    "lines": request(b"Content-Type: application/x-ndjson", body=JOB + b"\n" + JOB),
    "names in any case": request(b"CONTENT-TYPE: application/json", b"x-Any: 1", host=b"hOST: LOCALHOST:80"),
    "spaces around values": request(b"Content-Type: \t application/json  ", b"X-Empty:"),
    "keep-alive said": request(JSON, b"Connection: keep-alive", b"Accept: */*", b"User-Agent: any/1.0 (x; y)"),
    "charset": request(b"Content-Type: application/json; charset=UTF-8"),
    "an unknown field": request(JSON, body=b'{"kind": "mail", "kinds": 1}'),
    "the same origin": request(JSON, b"Origin: http://localhost"),
    "health": request(first=b"GET /health HTTP/1.1", body=b"", length=False),
    "health with a length": request(first=b"GET /health HTTP/1.1", body=b""),
    "a large batch": request(JSON, body=b"[" + b",".join([JOB] * 9_000) + b"]"),
    "a key": request(JSON, b'Idempotency-Key: "8e03978e"'),
    "a bare key": request(JSON, b"idempotency-key:8e03978e", body=b'{"idempotency_key": "8e03978e", "more": 1}'),
    "keys in a batch": request(JSON, body=b'[{"idempotency_key": "a"}, {"unique": true}, {}]'),
    # The express lane rejects these requests itself.
    "no key": request(JSON, b'Idempotency-Key: "'),
    "an empty key": request(JSON, b"Idempotency-Key: "),
    "two keys": request(JSON, b"Idempotency-Key: a", body=b'{"idempotency_key": "b"}'),
    "a key for a batch": request(JSON, b"Idempotency-Key: a", body=b"[{}]"),
    "no content type": request(),
    "another content type": request(b"Content-Type: text/plain"),
    "a form": request(b"Content-Type: application/x-www-form-urlencoded", body=b"kind=mail"),
    "compressed": request(JSON, b"Content-Encoding: gzip"),
    "a foreign origin": request(JSON, b"Origin: https://evil.example"),
    "a foreign host": request(JSON, host=b"Host: evil.example"),
    "an empty body": request(JSON, body=b""),
    "half a body of JSON": request(JSON, body=JOB[:-1]),
    "a number": request(JSON, body=b"1"),
    "a field out of range": request(JSON, body=b'{"priority": -1}'),
    "a field given twice": request(JSON, body=b'{"kind": "a", "kind": "b"}'),
    "one bad job of two": request(JSON, body=b'[{}, {"delay": 1, "run_at": "2030-01-01T00:00:00Z"}]'),
    "a NUL": request(JSON, body=rb'{"payload": "\u0000"}'),
    "not UTF-8": request(JSON, body=b'{"kind": "\xff"}'),
    "too deep": request(JSON, body=b'{"payload": ' + b"[" * 101 + b"]" * 101 + b"}"),
    "a payload too large": request(JSON, body=b'{"payload": "' + b"x" * (1 << 20) + b'"}'),
}

NOT_PLAIN = {
    "another route": request(first=b"GET /queues HTTP/1.1", body=b"", length=False),
    "no route": request(JSON, first=b"POST /submitt HTTP/1.1"),
    "another method": request(first=b"GET /submit HTTP/1.1", body=b"", length=False),
    "head": request(first=b"HEAD /health HTTP/1.1", body=b"", length=False),
    "a query": request(JSON, first=b"POST /submit?x=1 HTTP/1.1"),
    "a whole URL": request(JSON, first=b"POST http://localhost/submit HTTP/1.1"),
    "HTTP/1.0": request(JSON, first=b"POST /submit HTTP/1.0"),
    "to be closed": request(JSON, b"Connection: close"),
    "to be closed, and an empty line behind": request(JSON, b"Connection: close") + b"\r\n",
    "to be closed, and nonsense behind": request(JSON, b"Connection: close") + b"\0\xff" * 100_000,
    "to be closed, and a request behind": request(JSON, b"Connection: close") + request(JSON),
    "HTTP/1.0 and an empty line behind": request(JSON, first=b"POST /submit HTTP/1.0") + b"\r\n",
    "refused, to be closed, and an empty line behind": request(b"Connection: close") + b"\r\n",
    "an empty line before": b"\r\n" + request(JSON),
    "empty lines before": b"\r\n" * 3 + request(JSON),
    "half an empty line before": b"\r" + request(JSON),
    "a bare line feed before": b"\n" + request(JSON),
    "a space before": b" " + request(JSON),
    "chunked": request(JSON, b"Transfer-Encoding: chunked", body=b"2\r\n{}\r\n0\r\n\r\n", length=False),
    "chunked and a length": request(JSON, b"Transfer-Encoding: chunked", body=b"0\r\n\r\n"),
    "expects": request(JSON, b"Expect: 100-continue"),
    "two hosts": request(JSON, b"Host: localhost"),
    "no host": request(JSON, host=b""),
    "two lengths": request(JSON, b"Content-Length: 2"),
    "a list of lengths": request(JSON, b"Content-Length: 2, 2", body=b"{}", length=False),
    "a signed length": request(JSON, b"Content-Length: +2", body=b"{}", length=False),
    "a length too long": request(JSON, b"Content-Length: 99999999999", body=b"{}", length=False),
    "a body too large": request(JSON, b"Content-Length: 67108865", body=b"{}", length=False),
    "no length": request(JSON, body=b"", length=False),
    "two keys in headers": request(JSON, b"Idempotency-Key: a", b"Idempotency-Key: a"),
    "two content types": request(JSON, b"Content-Type: text/plain"),
    "a header beyond ASCII": request(JSON, b"X-Name: \xc3\xa9"),
    "a header with a control character": request(JSON, b"X-Name: a\x01b"),
    "a header without a colon": request(JSON, b"X-Name"),
    "a space before the colon": request(JSON, b"X-Name : 1"),
    "a folded header": request(JSON, b"X-Name: 1", b" 2"),
    "bare line feeds": request(JSON).replace(b"\r\n", b"\n"),
    "no HTTP": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
    "the preface of HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0",
    "an upgrade": request(b"Connection: Upgrade", b"Upgrade: websocket", first=b"GET /health HTTP/1.1", body=b"", length=False),
}


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The paths of the requests that the express lane handles."""
    answer, begin, paths = express.ExpressLane.answer, express.ExpressLane.begin, []

    async def noting(lane: express.ExpressLane, request: Request, body: bytes) -> express.Answer:
        paths.append(request.path)
        return await answer(lane, request, body)

    def noting_too(lane: express.ExpressLane, request: Request, body: bytes, answered: Callable[[express.Answer], None]) -> None:
        paths.append(request.path)
        begin(lane, request, body, answered)

    monkeypatch.setattr(express.ExpressLane, "answer", noting)
    monkeypatch.setattr(express.ExpressLane, "begin", noting_too)
    return paths


@pytest.mark.parametrize("name", [*PLAIN, *NOT_PLAIN])
@pytest.mark.parametrize("authorizer", [Authorizer(None), CLOSED], ids=["open", "with a token"])
async def test_both_lanes_give_the_same_response(
    name: str, authorizer: Authorizer, without_lane: Callable[[bool], None], taken: list[str]
) -> None:
    sent = (PLAIN | NOT_PLAIN)[name]
    got, submitted = [], []
    for without in (False, True):
        without_lane(without)
        async with serving(authorizer=authorizer) as served:
            got.append(await exchange(served, [sent]))
            submitted.append([{**job, "id": ""} for job in served.node.submitted])
    assert got[0] == got[1]
    assert submitted[0] == submitted[1]
    # Without a token, the express lane does not wait for a body that arrives after its head.
    assert len(taken) == (name in PLAIN and not (authorizer is CLOSED and len(sent) > RECEIVE_BYTES))


@pytest.mark.parametrize(
    "error",
    [
        Overloaded("x"),
        ShuttingDown("x"),
        DatabaseUnavailable("x"),
        ConnectionLost("x", backend=(1, "")),
        UnprocessableJob("no such kind", field="kind"),
        ConflictingJob("somebody has it", field="idempotency_key", index=3),
        RuntimeError("a bug"),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_both_lanes_report_errors_in_the_same_way(error: Exception, without_lane: Callable[[bool], None]) -> None:
    got = []
    for without in (False, True):
        without_lane(without)
        node = RecordingNode()
        node.error = error
        async with serving(node) as served:
            got.append(await exchange(served, [PLAIN["one"]]))
    assert got[0] == got[1]
    assert got[0].startswith((b"HTTP/1.1 503", b"HTTP/1.1 422", b"HTTP/1.1 409", b"HTTP/1.1 500"))


@pytest.mark.parametrize(
    ("name", "existing", "status"),
    [
        ("a key", [], 201),
        ("a key", [0], 200),
        ("keys in a batch", [], 201),
        ("keys in a batch", [0, 2], 201),
        ("keys in a batch", [0, 1, 2], 200),
    ],
)
async def test_both_lanes_report_existing_jobs(
    name: str, existing: list[int], status: int, without_lane: Callable[[bool], None]
) -> None:
    got = []
    for without in (False, True):
        without_lane(without)
        node = RecordingNode()
        ids = [f"01a209ba-188d-7241-b752-38e62b10c81{place}" for place in range(3 if "batch" in name else 1)]
        node.receipt = Receipt(ids, existing)
        async with serving(node) as served:
            got.append(await exchange(served, [PLAIN[name]]))
    assert got[0] == got[1]
    assert got[0].startswith(b"HTTP/1.1 %d" % status)
    if "batch" in name:
        expected = {"ids": ["ID"] * 3, "existing": existing}
        assert b"location" not in got[0].lower()
    else:
        expected = {"id": "ID"}
        assert b"location: /jobs/ID\r\n" in got[0]
    assert json.loads(got[0].partition(b"\r\n\r\n")[2]) == expected


async def test_both_lanes_accept_a_token(without_lane: Callable[[bool], None]) -> None:
    got = []
    for without in (False, True):
        without_lane(without)
        async with serving(authorizer=Authorizer([parse("submit:secret")])) as served:
            got.append(await exchange(served, [request(JSON, b"Authorization: Bearer secret")]))
    assert got[0] == got[1]
    assert got[0].startswith(b"HTTP/1.1 201")


async def test_pipelined_requests_are_answered_in_order_across_both_lanes(taken: list[str]) -> None:
    sequence = [PLAIN["one"], PLAIN["health"], PLAIN["half a body of JSON"], PLAIN["one"], NOT_PLAIN["another route"], PLAIN["one"]]
    async with serving() as served:
        received = await exchange(served, [b"".join(sequence)], answers=len(sequence))
    assert re.findall(rb"HTTP/1\.1 (\d+)", received) == [b"201", b"200", b"400", b"201", b"200", b"201"]
    assert taken == ["/submit", "/health", "/submit", "/submit"]
    assert len(served.node.submitted) == 3


@pytest.mark.parametrize("name", ["one", "health", "no content type", "to be closed", "chunked", "HTTP/1.0"])
async def test_an_empty_line_after_a_request_changes_nothing(name: str) -> None:
    sent = (PLAIN | NOT_PLAIN)[name]
    got = []
    for behind in (b"", b"\r\n"):
        async with serving() as served:
            got.append((await exchange(served, [sent + behind]), len(served.node.submitted)))
    assert got[0] == got[1]


@pytest.mark.parametrize("way", ["express", "hypercorn"])
@pytest.mark.parametrize("pieces", [[b"\r\n"], [b"\r", b"\n"], [b"\r\n", b"\r", b"\n"]], ids=["whole", "in halves", "several"])
async def test_empty_lines_between_requests_are_skipped(
    pieces: list[bytes], way: str, without_lane: Callable[[bool], None]
) -> None:
    without_lane(way == "hypercorn")
    sent = [*pieces, PLAIN["one"], *pieces, PLAIN["health"], *pieces, NOT_PLAIN["to be closed"], *pieces, PLAIN["one"]]
    for sending in (sent, [b"".join(sent)]):
        async with serving() as served:
            received = await exchange(served, sending, answers=4)
            assert re.findall(rb"HTTP/1\.1 (\d+)", received) == [b"201", b"200", b"201"]
            assert len(served.node.submitted) == 2


async def test_a_connection_with_an_empty_line_after_its_request_is_idle() -> None:
    async with serving(drain_timeout=600) as served, await served.connect() as stream:
        await stream.send_all(PLAIN["one"] + b"\r\n")
        received = b""
        with trio.fail_after(60):
            while not complete(received, 1):
                received += await stream.receive_some(65536)
            served.stopping.set()
            assert await stream.receive_some(10) == b"", "a shutdown does not wait for the connection"


@given(cuts=st.lists(st.integers(0, len(PLAIN["one"])), max_size=6), follow=st.booleans())
@settings(max_examples=25)
def test_requests_may_arrive_in_any_pieces(cuts: list[int], follow: bool) -> None:
    sent = PLAIN["one"] + (PLAIN["lines"] if follow else b"")
    edges = [0, *sorted(cuts), len(sent)]

    async def check() -> None:
        async with serving() as served:
            pieces = [sent[begin:end] for begin, end in pairwise(edges)]
            received = await exchange(served, pieces, answers=1 + follow)
            assert received.count(b"HTTP/1.1 201") == 1 + follow
            assert len(served.node.submitted) == (3 if follow else 1)

    trio.run(check)


async def test_a_slow_body_is_passed_to_hypercorn(taken: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(express, "BODY_PATIENCE", 0.05)
    sent = PLAIN["one"]
    async with serving() as served, await served.connect() as stream:
        await stream.send_all(sent[:-3])
        await trio.sleep(0.2)
        await stream.send_all(sent[-3:])
        with trio.fail_after(60):
            assert (await stream.receive_some(65536)).startswith(b"HTTP/1.1 201")
    assert taken == []
    assert len(served.node.submitted) == 1


async def test_a_response_larger_than_the_send_buffer_is_sent_whole(taken: list[str]) -> None:
    async with serving() as served, await served.connect(receive_buffer=4096) as stream:
        await stream.send_all(PLAIN["a large batch"])
        await trio.sleep(0.3)
        received = b""
        with trio.fail_after(60):
            while not complete(received, 1):
                received += await stream.receive_some(4096)
    assert taken == ["/submit"]
    assert len(re.findall(rb"[0-9a-f]{8}-", received)) == 9_000


async def test_a_stop_answers_the_current_request_and_closes_the_connection(taken: list[str]) -> None:
    async with serving() as served:
        served.node.hold = trio.Event()
        async with await served.connect() as stream, await served.connect() as resting:
            await stream.send_all(PLAIN["one"])
            await served.node.entered.wait()
            served.stopping.set()
            with trio.fail_after(60):
                assert await resting.receive_some(10) == b""
            served.node.hold.set()
            with trio.fail_after(60):
                received = await stream.receive_some(65536)
                assert received.startswith(b"HTTP/1.1 201")
                assert b"connection: close" in received.lower()
                assert await stream.receive_some(65536) in {b"", received[received.find(b"\r\n\r\n") + 4 :]}
    assert taken == ["/submit"]


@pytest.mark.parametrize(
    "head",
    [
        b"POST /submit HTTP/1.1\r\n" + b"A: b\r\n" * 2_000 + b"\x80",
        b"POST /submit HTTP/1.1\r\nA:" + b" " * 16_000 + b"\x80",
        b"POST /submit HTTP/1.1\r\nHost: a\r\nA: x" + b" " * 16_000 + b"x\r\n\r\n",
    ],
    ids=["lines", "spaces", "spaces inside"],
)
def test_every_head_is_recognized_quickly(head: bytes) -> None:
    times = []
    for _ in range(5):
        begun = time.process_time()
        wire_format.recognize(head)
        times.append(time.process_time() - begun)
    assert min(times) < 0.1, "the regular expression backtracks, which blocks the event loop"


async def test_a_request_that_begins_just_before_the_timeout_is_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(express.limits, "HEADERS_TIMEOUT", 4)
    sent = PLAIN["one"]
    async with serving() as served, await served.connect() as stream:
        await trio.sleep(2)
        await stream.send_all(sent[:-3])
        await trio.sleep(3)
        await stream.send_all(sent[-3:])
        with trio.fail_after(60):
            assert (await stream.receive_some(65536)).startswith(b"HTTP/1.1 201")


async def test_a_request_without_a_token_is_rejected_before_its_body_is_read(taken: list[str]) -> None:
    async with serving(authorizer=Authorizer([parse("submit:secret")])) as served, await served.connect() as stream:
        await stream.send_all(request(JSON, b"Content-Length: 60000000", body=b"{", length=False))
        with trio.fail_after(60):
            assert (await stream.receive_some(65536)).startswith(b"HTTP/1.1 401")
    assert taken == []


# --------------------------------------------------------------------------------- what the reactor answers while the task sleeps


async def answered(stream: trio.SocketStream) -> bytes:
    received = b""
    with trio.fail_after(60):
        while not complete(received, 1):
            received += await stream.receive_some(65536) or pytest.fail(f"closed after {received!r}")
    return received


async def test_requests_after_a_running_one_are_answered_after_it(taken: list[str]) -> None:
    async with serving() as served, await served.connect() as stream:
        served.node.hold = trio.Event()
        await stream.send_all(PLAIN["one"])
        await served.node.entered.wait()
        await stream.send_all(PLAIN["health"] + PLAIN["one"])
        await trio.sleep(0.05)
        assert taken == ["/submit"]
        served.node.hold.set()
        received = b""
        with trio.fail_after(60):
            while not complete(received, 3):
                received += await stream.receive_some(65536)
    assert re.findall(rb"HTTP/1\.1 (\d+)", received) == [b"201", b"200", b"201"]


@pytest.mark.parametrize("reset", [False, True])
async def test_the_connection_of_a_client_that_disconnects_is_closed_after_its_response(reset: bool) -> None:
    async with serving() as served:
        served.node.hold = trio.Event()
        before = open_files()
        async with await served.connect() as stream:
            await stream.send_all(PLAIN["one"])
            await served.node.entered.wait()
            if reset:
                stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        await trio.sleep(0.05)
        served.node.hold.set()
        await until(lambda: open_files() == before)
        assert len(served.node.submitted) == 1


async def test_a_running_request_has_a_deadline_and_its_late_response_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(express.limits, "REQUEST_TIMEOUT", 0.1)
    async with serving() as served:
        served.node.hold = trio.Event()
        before = open_files()
        async with await served.connect() as stream:
            await stream.send_all(PLAIN["one"])
            with trio.fail_after(60):
                assert await stream.receive_some(65536) == b""
        await until(lambda: open_files() == before)
        async with await served.connect() as another:  # its socket has the number of the first one
            served.node.hold.set()
            await until(lambda: len(served.node.submitted) == 1)
            await another.send_all(PLAIN["health"])
            assert (await answered(another)).endswith(b'{"status":"ok"}')


async def test_the_idle_timeout_starts_again_with_each_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(express.limits, "HEADERS_TIMEOUT", 2)
    monkeypatch.setattr(express.limits, "KEEP_ALIVE_TIMEOUT", 3)
    async with serving() as served, await served.connect() as stream:
        for _ in range(4):
            await trio.sleep(1)
            await stream.send_all(PLAIN["one"])
            begun = trio.current_time()
            await answered(stream)
        with trio.fail_after(60):
            assert await stream.receive_some(65536) == b""
        assert trio.current_time() - begun > 2.9


async def test_a_stop_cuts_off_a_request_that_does_not_end() -> None:
    async with serving(drain_timeout=0.1) as served, await served.connect() as stream:
        served.node.hold = trio.Event()
        await stream.send_all(PLAIN["one"])
        await served.node.entered.wait()
        served.stopping.set()
        with trio.fail_after(60):
            assert await stream.receive_some(65536) == b""
            await served.stopped.wait()
        served.node.hold.set()
        await until(lambda: len(served.node.submitted) == 1)


@pytest.mark.parametrize("broken", ["recognize", "encode"])
async def test_an_internal_error_ends_only_its_connection(broken: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("a bug")

    async with serving() as served:
        before = open_files()
        async with await served.connect() as stream, await served.connect() as other:
            await other.send_all(PLAIN["one"])
            await answered(other)
            with monkeypatch.context() as patched:
                patched.setattr(wire_format, broken, fail)
                await stream.send_all(PLAIN["one"])
                with trio.fail_after(60):
                    assert await stream.receive_some(65536) == b""
            await other.send_all(PLAIN["one"])
            await answered(other)
        await until(lambda: open_files() == before)


async def test_a_response_that_is_written_in_pieces_is_sent_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(express.ExpressConnection, "_write", lambda connection, data: os.write(connection._fd(), data[:7]))
    async with serving() as served, await served.connect() as stream:
        for _ in range(2):
            await stream.send_all(PLAIN["one"])
            received = await answered(stream)
            assert received.startswith(b"HTTP/1.1 201")
            assert complete(received, 1)
