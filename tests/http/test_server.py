"""The HTTP layer on real sockets, with a node that only records its calls."""

import re
import resource
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import h2.config
import h2.connection
import h2.events
import httpx
import msgspec
import pytest
import structlog.testing
import trio
import trio.testing

from jobqueue.errors import ConnectionLost, DatabaseUnavailable, Overloaded, SettingsError, ShuttingDown, UnprocessableJob
from jobqueue.http import app as api
from jobqueue.http import limits, server
from jobqueue.http.access.auth import Authorizer, require_token_off_loopback
from jobqueue.http.express import lane as express
from jobqueue.http.transport.listeners import max_connections, open_listeners, urls
from jobqueue.tokens import parse
from tests.support.http import (
    JOB_ID,
    UNKNOWN_ID,
    RecordingNode,
    Served,
    both_lanes,
    open_files,
    problem,
    read_all,
    read_until,
    serving,
    status_of,
)
from tests.support.waiting import until

TOKEN = "correct-horse"
LARGE = 32_000_000
# ---------------------------------------------------------------------------------------------------------------------- submit


@both_lanes
async def test_submit_one() -> None:
    async with serving() as served:
        response = await served.post("/submit", '{"priority": 5, "max_retries": 3}')
        assert response.status_code == 201
        (job,) = served.node.submitted
        assert response.json() == {"id": job["id"]}
        assert response.headers["location"] == f"/jobs/{job['id']}"
        assert (job["priority"], job["max_retries"]) == (5, 3)


@both_lanes
async def test_submit_with_the_original_field_names() -> None:
    async with serving() as served:
        response = await served.post("/submit", '{"id": "job-17", "priority": 2, "payload": "hello", "maxRetries": 4}')
        assert response.status_code == 201
        assert response.json()["ignored"] == ["id"]
        (job,) = served.node.submitted
        assert (job["id"], job["payload"], job["max_retries"]) == (response.json()["id"], "hello", 4)


@both_lanes
@pytest.mark.parametrize(("content_type", "body"), [("application/json", "[{}, {}]"), ("application/x-ndjson", "{}\n{}\n")])
async def test_submit_many(content_type: str, body: str) -> None:
    async with serving() as served:
        response = await served.post("/submit", body, content_type)
        assert response.status_code == 201
        assert response.json() == {"ids": [job["id"] for job in served.node.submitted]}
        assert "location" not in response.headers


@both_lanes
async def test_submit_a_body_that_is_parsed_in_a_thread() -> None:
    async with serving() as served:
        jobs = [{"payload": "x" * 1000}] * 1000
        assert len((await served.post("/submit", msgspec.json.encode(jobs))).json()["ids"]) == 1000
        assert problem(await served.post("/submit", msgspec.json.encode([*jobs, {"priority": -1}])), 400)["index"] == 1000


@both_lanes
async def test_refusals_name_the_field_and_the_place() -> None:
    async with serving() as served:
        body = problem(await served.post("/submit", '[{}, {"priority": -1}]'), 400)
        assert (body["field"], body["index"], body["type"]) == ("priority", 1, "urn:jobqueue:invalid-job")
        assert "priority must be" in body["detail"]
        assert problem(await served.post("/submit", '{"payload": "\\u0000"}'), 422)["field"] == "payload"
        assert problem(await served.post("/submit", '{"payload": "' + "x" * (1 << 20) + '"}'), 413)["field"] == "payload"
        assert "index" not in problem(await served.post("/submit", ""), 400)
        assert "empty" in problem(await served.post("/submit", "", None), 400)["detail"]
        assert served.node.submitted == []


@both_lanes
@pytest.mark.parametrize("content_type", [None, "text/plain", "application/x-www-form-urlencoded"])
async def test_submit_accepts_only_json(content_type: str | None) -> None:
    async with serving() as served:
        assert "-H 'Content-Type: application/json'" in problem(await served.post("/submit", "{}", content_type), 415)["detail"]
        problem(await served.post("/submit", "{}", **{"Content-Encoding": "gzip"}), 415)


@both_lanes
@pytest.mark.parametrize(
    ("error", "status", "retry_after"),
    [
        (Overloaded("secret"), 503, "1"),
        (ShuttingDown("secret"), 503, "1"),
        (DatabaseUnavailable("secret"), 503, "1"),
        (ConnectionLost("secret", backend=(1, "")), 503, None),
        (RuntimeError("secret"), 500, None),
        (ExceptionGroup("secret", [RuntimeError("secret")]), 500, None),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else None,
)
async def test_failures_of_the_node(error: Exception, status: int, retry_after: str | None) -> None:
    async with serving() as served:
        served.node.error = error
        with structlog.testing.capture_logs() as logs:
            response = await served.post("/submit", "{}")
        problem(response, status)
        assert response.headers.get("retry-after") == retry_after
        assert "secret" not in response.text
        assert len(logs) == (status == 500)


@both_lanes
async def test_a_job_that_no_handler_serves() -> None:
    async with serving() as served:
        served.node.error = UnprocessableJob("this node has no handler for kind 'x'", field="kind")
        assert problem(await served.post("/submit", "{}"), 422)["field"] == "kind"


# ------------------------------------------------------------------------------------------------------------- inspect, operate


async def test_health_and_readiness() -> None:
    async with serving() as served:
        assert (await served.http.get("/health")).json() == {"status": "ok"}
        assert (await served.http.get("/health/ready")).status_code == 200
        served.node.reasons = ["the lease is not renewed"]
        response = await served.http.get("/health/ready")
        assert (response.status_code, response.json()["reasons"]) == (503, ["the lease is not renewed"])
        assert (await served.http.get("/health")).status_code == 200


async def test_metrics_queues_and_nodes() -> None:
    async with serving() as served:
        response = await served.http.get("/metrics")
        assert (response.text, response.headers["content-type"]) == ("jobs 1\n", "text/plain; version=0.0.4; charset=utf-8")
        [queue] = (await served.http.get("/queues")).json()
        assert (queue["name"], queue["paused"]) == ("default", False)
        assert (await served.http.get("/nodes")).json() == [{"id": "n1"}]


async def test_get_a_job() -> None:
    async with serving() as served:
        job = (await served.http.get(f"/jobs/{JOB_ID}")).json()
        assert (job["id"], job["state"]) == (JOB_ID, "pending")
        assert (await served.http.get(f"/jobs/{JOB_ID.upper()}")).status_code == 200
        problem(await served.http.get(f"/jobs/{UNKNOWN_ID}"), 404)
        problem(await served.http.get("/jobs/17"), 400)
        problem(await served.http.get("/jobs/%00"), 400)


async def test_cancel_retry_and_discard_a_job() -> None:
    async with serving() as served:
        path = f"/jobs/{JOB_ID}"
        assert "pending" in problem(await served.http.post(f"{path}/retry"), 409)["detail"]
        assert "pending" in problem(await served.http.delete(path), 409)["detail"]
        assert (await served.http.post(f"{path}/cancel")).json()["state"] == "cancelled"
        assert "cancelled" in problem(await served.http.post(f"{path}/cancel"), 409)["detail"]
        served.node.jobs[JOB_ID]["state"] = "dead"
        assert (await served.http.post(f"{path}/retry")).json()["state"] == "pending"
        served.node.jobs[JOB_ID]["state"] = "dead"
        assert (await served.http.delete(path)).json()["state"] == "discarded"
        for response in [
            await served.http.delete(path),
            await served.http.post(f"{path}/cancel"),
            await served.http.post(f"{path}/retry"),
        ]:
            problem(response, 404)
        problem(await served.http.post("/jobs/17/cancel"), 400)


async def test_change_a_waiting_job() -> None:
    async with serving() as served:
        path = f"/jobs/{JOB_ID}"
        answer = await served.http.patch(path, json={"priority": 5, "run_at": "2030-01-31T08:00:00+01:00"})
        assert (answer.status_code, answer.json()["priority"]) == (200, 5)
        assert (await served.http.patch(path, json={"priority": 1_000_000, "delay": 0})).status_code == 200
        for body, field in [
            ({}, "priority"),
            ({"priority": None}, "priority"),
            ({"priority": -1}, "priority"),
            ({"priority": 1_000_001}, "priority"),
            ({"priority": 1.5}, "priority"),
            ({"run_at": "2030-01-31T08:00:00"}, "run_at"),
            ({"delay": -1}, "delay"),
            ({"delay": 5, "run_at": "2030-01-31T08:00:00Z"}, "delay"),
            ({"queue": "other"}, "queue"),
        ]:
            assert problem(await served.http.patch(path, json=body), 400)["field"] == field
        problem(await served.http.patch(path, content=b"priority=5", headers={"Content-Type": "text/plain"}), 415)
        problem(await served.http.patch(f"/jobs/{UNKNOWN_ID}", json={"priority": 5}), 404)
        problem(await served.http.patch("/jobs/17", json={"priority": 5}), 400)
        served.node.jobs[JOB_ID]["state"] = "inflight"
        assert "inflight" in problem(await served.http.patch(path, json={"priority": 5}), 409)["detail"]


async def test_settings_of_queues_of_any_name() -> None:
    async with serving() as served:
        answer = await served.http.put("/queues/a%2Fb%2Fpause", json={"rate": 2, "max_running": None})
        assert answer.status_code == 200
        assert {"name": "a/b/pause", "rate": 2.0, "max_running": None}.items() <= answer.json().items()
        # A slash in a name is encoded: with one that is not, this would set limits for a queue that nobody has.
        assert problem(await served.http.put("/queues/a%2Fb/pause", json={"rate": 2}), 405)
        problem(await served.http.put("/queues/a/b", json={"rate": 2}), 404)
        problem(await served.http.put("/queues/%00", json={}), 400)
        problem(await served.http.put("/queues/q", content=b"rate=1", headers={"Content-Type": "text/plain"}), 415)


async def test_pause_and_resume_queues_of_any_name() -> None:
    async with serving() as served:
        assert (await served.http.post("/queues/default/pause")).json() == {"queue": "default", "paused": True}
        await served.http.post("/queues/default/resume")
        await served.http.post("/queues/a%2Fb%20%C3%BC/pause")
        assert served.node.paused == {"default": False, "a/b ü": True}
        problem(await served.http.post(f"/queues/{'x' * 201}/pause"), 400)
        problem(await served.http.post("/queues/%00/pause"), 400)


@both_lanes
async def test_methods() -> None:
    async with serving() as served:
        response = await served.http.get("/submit")
        problem(response, 405)
        assert set(response.headers["allow"].split(", ")) == {"OPTIONS", "POST"}
        assert (await served.http.options("/submit")).headers["allow"]
        response = await served.http.head("/health")
        assert (response.status_code, response.content, response.headers["content-length"]) == (200, b"", "15")
        problem(await served.http.get("/nowhere"), 404)
        problem(await served.http.get("/", extensions={"target": b"//submit"}), 404)


@both_lanes
async def test_every_answer_is_secured() -> None:
    async with serving() as served:
        for response in [await served.http.get(path) for path in ("/health", "/nowhere", "/submit", "/jobs/17")]:
            assert response.headers["x-content-type-options"] == "nosniff"
            assert response.headers["cache-control"] == "no-store"
            assert "server" not in response.headers


# --------------------------------------------------------------------------------------------------------------------- authorizer


@both_lanes
async def test_tokens() -> None:
    async with serving(authorizer=Authorizer([parse(f"admin:{TOKEN}"), parse("admin:another")])) as served:
        for path in ("/metrics", "/nowhere", "/jobs/17", "/health/", "//health", "/health/../metrics"):
            response = await served.http.get("/", extensions={"target": path.encode()})
            problem(response, 401)
            assert response.headers["www-authenticate"] == "Bearer"
        problem(await served.post("/submit", "{}"), 401)
        problem(await served.http.post("/health"), 401)
        assert (await served.http.get("/health")).status_code == 200
        assert (await served.http.head("/health/ready")).status_code == 200
        for value in (f"Bearer {TOKEN}", "bearer another", f"Bearer  {TOKEN}"):
            assert (await served.http.get("/metrics", headers={"Authorization": value})).status_code == 200
        for value in ("Bearer", f"Basic {TOKEN}", TOKEN, f"Bearer {TOKEN}x", "Bearer \u00fc"):
            problem(await served.http.get("/metrics", headers=[(b"Authorization", value.encode())]), 401)
        response = await served.http.get("/metrics", headers={"Authorization": f"Bearer {TOKEN}", "Host": "jobs.example"})
        assert response.status_code == 200


def request_head(length: int, *, token: str = "unknown") -> bytes:
    """Return the head of a submission whose body arrives later."""
    return (
        "POST /submit HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"Authorization: Bearer {token}\r\nContent-Length: {length}\r\n\r\n"
    ).encode()


async def read_answer(stream: trio.abc.ReceiveStream) -> bytes:
    """Read one response, or all data until the connection ends."""
    received = b""
    while not (b"\r\n\r\n" in received and received.endswith(b"}")) and (more := await stream.receive_some()):
        received += more
    return received


@both_lanes
async def test_a_rejected_body_that_arrives_later_does_not_end_the_connection() -> None:
    async with serving(authorizer=Authorizer([parse(f"admin:{TOKEN}")])) as served, await served.connect() as stream:
        with trio.fail_after(60):
            for length in (2, limits.MAX_REFUSED_BODY_BYTES):
                await stream.send_all(request_head(length))
                answer = await read_answer(stream)
                assert answer.startswith(b"HTTP/1.1 401")
                assert b"connection: close" not in answer.lower()
                half = length // 2
                await stream.send_all(b" " * half)
                await trio.testing.wait_all_tasks_blocked(0.05)
                await stream.send_all(b" " * (length - half))
                await stream.send_all(request_head(2, token=TOKEN) + b"{}")
                assert (await read_answer(stream)).startswith(b"HTTP/1.1 201")
            # The next request may arrive in one piece with the rest.
            await stream.send_all(request_head(10))
            assert (await read_answer(stream)).startswith(b"HTTP/1.1 401")
            await stream.send_all(b" " * 10 + request_head(2, token=TOKEN) + b"{}")
            assert (await read_answer(stream)).startswith(b"HTTP/1.1 201")


@both_lanes
@pytest.mark.parametrize(
    "head",
    [
        request_head(limits.MAX_REFUSED_BODY_BYTES + 1),
        request_head(2).replace(b"Content-Length: 2", b"Transfer-Encoding: chunked"),
    ],
    ids=["too long", "of unknown length"],
)
async def test_a_rejected_body_that_may_be_long_or_endless_ends_the_connection(head: bytes) -> None:
    async with serving(authorizer=Authorizer([parse(f"admin:{TOKEN}")])) as served:
        assert (await served.raw(head)).startswith(b"HTTP/1.1 401")


@both_lanes
async def test_a_rejected_body_that_never_arrives_does_not_delay_the_shutdown() -> None:
    authorizer = Authorizer([parse(f"admin:{TOKEN}")])
    async with serving(authorizer=authorizer, drain_timeout=600) as served, await served.connect() as stream:
        with trio.fail_after(60):
            await stream.send_all(request_head(2))
            assert (await read_answer(stream)).startswith(b"HTTP/1.1 401")
            served.stopping.set()
            await served.stopped.wait()
            assert await stream.receive_some() == b""


@both_lanes
async def test_dns_rebinding_and_foreign_pages() -> None:
    async with serving(authorizer=Authorizer(None, ["my-host"])) as served:
        for host in ("localhost", "LOCALHOST:1", "127.0.0.1:8080", "[::1]:80", "my-host", "localhost.:80"):
            assert (await served.http.get("/metrics", headers={"Host": host})).status_code == 200, host
        for host in (
            "evil.example",
            "localhost.evil.example",
            "localhost:80@evil.example",
            "[::1",
            "::1",
            "",
            "my-host:x",
            "127.0.0.1.nip.io",
        ):
            problem(await served.http.get("/metrics", headers={"Host": host}), 403)
        own = f"127.0.0.1:{served.port}"
        assert (await served.post("/submit", "{}", Origin=f"http://{own}")).status_code == 201
        for origin in (
            "http://evil.example",
            f"http://localhost:{served.port}",
            "http://127.0.0.1:1",
            "null",
            "http://[::1",
            "",
            f"http://{own}.evil.example",
        ):
            problem(await served.post("/submit", "{}", Origin=origin), 403)
        assert "access-control-allow-origin" not in (await served.http.options("/submit")).headers


async def test_http_1_0_without_a_host() -> None:
    async with serving() as served:
        assert status_of(await served.raw(b"GET /health HTTP/1.0\r\n\r\n")) == 200
        assert status_of(await served.raw(b"GET /metrics HTTP/1.0\r\n\r\n")) == 403


def test_off_loopback_a_token_is_required() -> None:
    for host in ("127.0.0.1", "127.1.2.3", "::1", "localhost"):
        require_token_off_loopback(host, [])
    for host in ("0.0.0.0", "::", "192.0.2.1", "example.org", ""):
        require_token_off_loopback(host, [parse(f"admin:{TOKEN}")])
        with pytest.raises(SettingsError, match=r"or listen on 127.*jobqueue token create --role submit"):
            require_token_off_loopback(host, [])


# ------------------------------------------------------------------------------------------------------------ malformed requests

WEBSOCKET = (
    b"GET /submit HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
)


def h2_request(path: bytes) -> bytes:
    client = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding=None, validate_outbound_headers=False))
    client.initiate_connection()
    headers = [(b":method", b"GET"), (b":path", path), (b":scheme", b"http"), (b":authority", b"localhost")]
    client.send_headers(1, headers, end_stream=True)
    return client.data_to_send()


@pytest.mark.parametrize(
    "request_",
    [
        h2_request("/ü".encode()),
        WEBSOCKET + b"\r\nx",
        WEBSOCKET + "Sec-WebSocket-Protocol: ü\r\n\r\n".encode(),
    ],
    ids=["h2c with raw UTF-8 in the path", "WebSocket with a trailing byte", "WebSocket with a non-ASCII protocol"],
)
async def test_requests_that_ended_the_process(request_: bytes) -> None:
    async with serving() as served:
        before = open_files()
        with structlog.testing.capture_logs() as logs:
            await served.raw(request_)
            await until(lambda: open_files() == before)
        shown = [line for line in logs if line["log_level"] != "debug"]
        assert shown
        assert not any("exc_info" in line for line in shown)
        assert (await served.http.get("/health")).status_code == 200


async def test_pipelined_requests_are_answered_in_order() -> None:
    async with serving() as served:
        paths = [b"/health", b"/nodes", b"/nowhere", b"/queues"]
        last = b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        received = await served.raw(b"".join(b"GET %s HTTP/1.1\r\nHost: localhost\r\n\r\n" % path for path in paths) + last)
        assert re.findall(rb"HTTP/1.1 (\d+)", received) == [b"200", b"200", b"404", b"200", b"200"]


@both_lanes
async def test_h2c_works_and_stops(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "LINGER_TIMEOUT", 0.2)
    async with serving(drain_timeout=600) as served, await served.connect() as stream:
        served.node.hold = trio.Event()
        client = h2.connection.H2Connection()
        client.initiate_connection()
        request = {
            ":method": "POST",
            ":path": "/submit",
            ":scheme": "http",
            ":authority": "localhost",
            "content-type": "application/json",
        }
        client.send_headers(1, list(request.items()))
        client.send_data(1, b"{}", end_stream=True)
        await stream.send_all(client.data_to_send())
        await served.node.entered.wait()
        served.stopping.set()
        await trio.testing.wait_all_tasks_blocked()
        served.node.hold.set()
        with trio.fail_after(60):
            events = client.receive_data(await read_all(stream))
            await served.stopped.wait()
        assert {h2.events.ResponseReceived, h2.events.StreamEnded} <= {type(event) for event in events}


async def test_a_body_that_arrives_after_its_response_does_not_end_an_http_2_connection() -> None:
    async with serving(authorizer=Authorizer([parse(f"admin:{TOKEN}")])) as served, await served.connect() as stream:
        client = h2.connection.H2Connection()
        client.initiate_connection()
        request = [(":method", "POST"), (":path", "/submit"), (":scheme", "http"), (":authority", "localhost")]
        client.send_headers(1, [*request, ("content-type", "application/json")])
        await stream.send_all(client.data_to_send())
        statuses = []

        async def answered(stream_id: int) -> None:
            while True:
                for event in client.receive_data(bytes(await stream.receive_some())):
                    if isinstance(event, h2.events.ResponseReceived):
                        statuses.append(dict(event.headers)[b":status"])
                    if isinstance(event, h2.events.StreamEnded) and event.stream_id == stream_id:
                        return

        with trio.fail_after(60):
            await answered(1)
            client.send_data(1, b"{}", end_stream=True)
            client.send_headers(3, [*request, ("content-type", "application/json"), ("authorization", f"Bearer {TOKEN}")])
            client.send_data(3, b"{}", end_stream=True)
            await stream.send_all(client.data_to_send())
            await answered(3)
        assert statuses == [b"401", b"201"]


@both_lanes
@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"GET ?x HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n", 400),
        (b"OPTIONS * HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n", 404),
        (b"GET http://localhost/health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n", 200),
        (b"GET http://localhost HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n", 200),
        (b"GET /health?\xff HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
        (b"GET /%ff%00 HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n", 404),
        (b"GET /metrics?%ff=%00&&= HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n", 200),
        (b"GET /metrics HTTP/1.1\r\n\r\n", 400),
        (b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n", 400),
        (b"GET /metrics HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n" % (b"x" * 63), 403),
        (b"GET /metrics HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n" % (b"x" * 64), 400),
        (b"GET /metrics HTTP/1.1\r\nHost: a..b\r\nConnection: close\r\n\r\n", 400),
        (b"GET /metrics HTTP/1.1\r\nHost: .\r\nConnection: close\r\n\r\n", 400),
        (b"nonsense\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * (17 << 10), 431),
        (
            (
                b"POST /submit HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                b"Content-Length: 7\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n"
            ),
            400,
        ),
        (b"POST /submit HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: -1\r\n\r\n{}", 400),
        (b"POST /submit HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nTransfer-Encoding: gzip\r\n\r\n{}", 501),
        (WEBSOCKET + b"\r\n", 403),
    ],
)
async def test_odd_requests(request_: bytes, status: int) -> None:
    async with serving() as served:
        assert status_of(await served.raw(request_)) == status
        assert served.node.submitted == []


# ------------------------------------------------------------------------------------------------------------- bounds, deadlines


@both_lanes
async def test_a_body_that_is_too_large_is_rejected_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_BODY_BYTES", 1000)
    async with serving() as served:
        before = open_files()
        fits = b"{}" + b" " * 998
        assert (await served.post("/submit", fits)).status_code == 201
        problem(await served.post("/submit", fits + b" "), 413)
        head = b"POST /submit HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        # The server responds before it has read everything. Closing at once would reset the connection and lose the response.
        assert status_of(await served.raw(head + b"Content-Length: 5000000\r\n\r\n" + b" " * 3_000_000)) == 413
        assert status_of(await served.raw(head + b"Transfer-Encoding: chunked\r\n\r\n" + b"400\r\n" + b" " * 1024 + b"\r\n")) == 413
        await served.http.aclose()
        await until(lambda: open_files() <= before)


@both_lanes
@pytest.mark.parametrize("whole", [True, False])
async def test_headers_up_to_their_bound(whole: bool) -> None:
    async with serving() as served:
        for target in (b"/health", b"/queues", b"/queues?%s" % (b"&" * 5_000)):
            for beyond in (0, 1):
                head = b"GET %s HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nX: \r\n\r\n" % target
                filled = head.replace(b"X: ", b"X: " + b"y" * (limits.MAX_HEADER_BYTES + beyond - len(head)))
                async with await served.connect() as stream:
                    for piece in [filled] if whole else [filled[:9_000], filled[9_000:]]:
                        await stream.send_all(piece)
                        await trio.testing.wait_all_tasks_blocked()
                    assert status_of(await read_all(stream)) == (431 if beyond else 200)
        lane_head = (
            b"POST /submit HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 2\r\nX: \r\n\r\n"
        )
        for beyond in (0, 1):
            filled = lane_head.replace(b"X: ", b"X: " + b"y" * (limits.MAX_HEADER_BYTES + beyond - len(lane_head)))
            async with await served.connect() as stream:
                await stream.send_all(filled + b"{}")
                assert status_of(await read_until(stream, b"}")) == (431 if beyond else 201)


@both_lanes
async def test_a_slow_body_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "BODY_TIMEOUT", 0.2)
    async with serving() as served:
        before = open_files()
        stream = await served.connect()
        await stream.send_all(
            b"POST /submit HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 9999\r\n\r\n"
        )
        async with trio.open_nursery() as nursery:
            nursery.start_soon(drip, stream)
            response = await read_until(stream, b"\r\n\r\n")
            nursery.cancel_scope.cancel()
        assert status_of(response) == 408
        await stream.aclose()
        await until(lambda: open_files() == before)


async def test_slow_headers_are_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "HEADERS_TIMEOUT", 0.2)
    async with serving() as served, await served.connect() as stream, trio.open_nursery() as nursery:
        await stream.send_all(b"GET /health HTTP/1.1\r\nX: ")
        nursery.start_soon(drip, stream)
        with trio.fail_after(60):
            assert await read_all(stream) == b""
        nursery.cancel_scope.cancel()


async def test_idle_connections_are_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "KEEP_ALIVE_TIMEOUT", 3)
    async with serving() as served:
        # Several connections: hypercorn lost its timer if its task was cancelled first.
        streams = [await served.connect() for _ in range(20)]
        for stream in streams:
            await stream.send_all(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        with trio.fail_after(60):
            for stream in streams:
                assert status_of(await read_all(stream)) == 200
                await stream.aclose()


@both_lanes
async def test_a_whole_request_has_a_deadline(lane: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "REQUEST_TIMEOUT", 0.2)
    async with serving() as served:
        served.node.hold = trio.Event()
        with pytest.raises(httpx.RemoteProtocolError):
            await served.post("/submit", "{}")
        assert served.node.cancelled == 1 or lane == "express"  # the express lane writes a running submission in any case


async def drip(stream: trio.SocketStream) -> None:
    try:
        while True:
            await stream.send_all(b" ")
            await trio.sleep(0.02)
    except trio.BrokenResourceError:
        pass


@both_lanes
@pytest.mark.parametrize("headers_too", [True, False])
async def test_clients_that_disconnect_during_a_request(headers_too: bool) -> None:
    head = b"POST /submit HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 99\r\n"
    async with serving() as served:
        before = open_files()
        for _ in range(10):
            async with await served.connect() as stream:
                await stream.send_all(head + (b"\r\n{" if headers_too else b""))
                await trio.testing.wait_all_tasks_blocked()
        await until(lambda: open_files() == before)
        assert (await served.http.get("/health")).status_code == 200


@both_lanes
async def test_a_client_that_disconnects_before_its_response(lane: str) -> None:
    async with serving() as served:
        served.node.hold = trio.Event()
        before = open_files()
        async with await served.connect() as stream:
            await stream.send_all(
                b"POST /submit HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"
            )
            await served.node.entered.wait()
        if lane == "express":  # the lane notices when it responds
            served.node.hold.set()
        else:
            await until(lambda: served.node.cancelled == 1)
        await until(lambda: open_files() == before)


async def test_a_client_that_does_not_read_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving() as served:
        monkeypatch.setattr(limits, "SEND_TIMEOUT", 0.2)  # not before: the server also passes it to the kernel
        before = open_files()
        async with not_reading(served) as stream:
            await until(lambda: open_files() == before + 1)  # the test's socket is open, the server's is closed
            assert len(await read_all(stream)) < LARGE


@asynccontextmanager
async def not_reading(served: Served) -> AsyncIterator[trio.SocketStream]:
    """Request more data than fits into the buffers of the kernel, and do not read it."""
    served.node.jobs[JOB_ID]["payload"] = "x" * LARGE
    async with await served.connect(receive_buffer=4096) as stream:
        await stream.send_all(f"GET /jobs/{JOB_ID} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        assert status_of(await read_until(stream, b"HTTP/1.1 200 \r\n")) == 200
        yield stream


async def test_connections_over_the_limit_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_CONNECTIONS", 2)
    request = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
    async with serving() as served:
        first, second, third = [await served.connect() for _ in range(3)]
        for stream in (first, second, third):
            await stream.send_all(request)
        for stream in (first, second):
            await read_until(stream, b"ok")
        with trio.move_on_after(0.1):
            pytest.fail(f"the third was served: {await third.receive_some()!r}")
        await first.aclose()
        await read_until(third, b"ok")
        await second.aclose()
        await third.aclose()


def test_connections_leave_file_descriptors_for_the_rest_of_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    for files, connections in [(1024, 512), (1 << 20, 4096), (resource.RLIM_INFINITY, 4096)]:
        monkeypatch.setattr(resource, "getrlimit", lambda _, files=files: (files, files))
        assert max_connections() == connections


# ---------------------------------------------------------------------------------------------------------------------- stopping


@both_lanes
async def test_stopping_answers_running_requests_and_closes_idle_connections() -> None:
    async with serving(drain_timeout=600) as served, await served.connect() as idle, trio.open_nursery() as nursery:
        await served.http.get("/health")
        await idle.send_all(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        await read_until(idle, b"ok")
        served.node.hold = trio.Event()
        responses: list[httpx.Response] = []

        async def submit() -> None:
            responses.append(await served.post("/submit", "{}"))

        nursery.start_soon(submit)
        await served.node.entered.wait()
        served.stopping.set()
        with trio.fail_after(60):
            assert await read_all(idle) == b""
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(OSError, match="refused"):
            await served.connect()
        assert not served.stopped.is_set()
        served.node.hold.set()
        with trio.fail_after(60):
            await served.stopped.wait()
        await until(lambda: bool(responses))
        assert responses[0].status_code == 201
        assert responses[0].headers["connection"] == "close"


@both_lanes
async def test_stopping_does_not_wait_forever(lane: str) -> None:
    async with serving(drain_timeout=0.2) as served:
        served.node.hold = trio.Event()
        async with trio.open_nursery() as nursery:

            async def submit() -> None:
                with pytest.raises(httpx.RemoteProtocolError):
                    await served.post("/submit", "{}")

            nursery.start_soon(submit)
            await served.node.entered.wait()
            served.stopping.set()
            with trio.fail_after(60):
                await served.stopped.wait()
        assert served.node.cancelled == 1 or lane == "express"


async def test_a_client_that_does_not_read_cannot_delay_the_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "SEND_TIMEOUT", 600)
    async with serving(drain_timeout=0.2) as served:
        before = open_files()
        async with not_reading(served):
            served.stopping.set()
            with trio.fail_after(60):
                await served.stopped.wait()
        assert open_files() < before


async def test_cancelling_the_server_closes_everything_at_once() -> None:
    before = open_files()
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            listeners = open_listeners("127.0.0.1", 0)
            node = RecordingNode()
            run = partial(server.run, api.build(node, Authorizer(None)), express.ExpressLane(node, Authorizer(None)), listeners)  # type: ignore[arg-type]
            await nursery.start(partial(run, stopping=trio.Event(), drain_timeout=600))
            served = Served(node, urls(listeners)[0], trio.Event())
            async with not_reading(served):
                nursery.cancel_scope.cancel()
        await served.http.aclose()
    assert open_files() == before


# ---------------------------------------------------------------------------------------------------------------------- listening


async def test_the_error_for_an_address_in_use_is_clear() -> None:
    (listener,) = open_listeners("127.0.0.1", 0)
    async with listener:
        with pytest.raises(SettingsError, match=r"127\.0\.0\.1 port \d+: another process listens there"):
            open_listeners("127.0.0.1", listener.socket.getsockname()[1])


@pytest.mark.parametrize(("host", "port"), [("192.0.2.1", 0), ("no-such-host.invalid", 0), ("127.0.0.1", 70000), ("127.0.0.1", -1)])
def test_addresses_that_cannot_be_listened_on(host: str, port: int) -> None:
    with pytest.raises(SettingsError, match=f"cannot listen on {re.escape(host)}"):
        open_listeners(host, port)


async def test_the_server_listens_on_all_addresses_of_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [(socket.AF_INET, 1, 6, "", (address, 0)) for address in ("127.0.0.1", "127.0.0.2", "192.0.2.1")]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    listeners = open_listeners("a-name", 0)
    port = listeners[0].socket.getsockname()[1]
    assert urls(listeners) == [f"http://127.0.0.1:{port}", f"http://127.0.0.2:{port}"]
    for listener in listeners:
        await listener.aclose()


@pytest.mark.skipif(not socket.has_ipv6, reason="no IPv6")
async def test_ipv6() -> None:
    try:
        listeners = open_listeners("::1", 0)
    except SettingsError:
        pytest.skip("no IPv6 on this machine")
    assert urls(listeners) == [f"http://[::1]:{listeners[0].socket.getsockname()[1]}"]
    await listeners[0].aclose()
