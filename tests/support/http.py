"""The HTTP server on real sockets, with a node that only records its calls."""

from __future__ import annotations

import re
import socket
import ssl
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
import trio
import trio.testing

from jobqueue.admission import Admitted, Receipt
from jobqueue.concurrency.group_commit import Told
from jobqueue.http import app as api
from jobqueue.http import server
from jobqueue.http.access.auth import Authorizer
from jobqueue.http.express import lane as express
from jobqueue.http.transport.listeners import open_listeners, urls
from jobqueue.job import Change
from jobqueue.queue_settings import QueueSettings
from jobqueue.storage.roles.inspect import QueueEntry, StoredJob

JOB_ID = "0190a0b0-0000-7000-8000-000000000001"
UNKNOWN_ID = "0190a0b0-0000-7000-8000-00000000ffff"

JOB = b'{"kind": "mail", "payload": {"to": ["a", "b"], "n": 1}}'
JSON = b"Content-Type: application/json"


NO_FIELDS: dict[str, Any] = dict.fromkeys(StoredJob.__struct_fields__)


class RecordingNode:
    """A node that records its calls and returns values of its attributes. It is also its own store."""

    def __init__(self) -> None:
        self.submitted: list[Any] = []
        self.error: Exception | None = None
        self.reasons: list[str] = []
        self.jobs: dict[str, dict[str, Any]] = {JOB_ID: {"id": JOB_ID, "state": "pending"}}
        self.paused: dict[str, bool] = {}
        self.receipt: Receipt | None = None
        self.hold: trio.Event | None = None
        self.entered = trio.Event()
        self.cancelled = 0
        self.settings = {"default": QueueSettings()}
        self.store = self.depths = self

    async def submit(self, jobs: Admitted) -> Receipt | None:
        self.entered.set()
        if self.hold is not None:
            try:
                await self.hold.wait()
            except trio.Cancelled:
                self.cancelled += 1
                raise
        if self.error is not None:
            raise self.error
        self.submitted += [msgspec.json.decode(document) for document in jobs.documents]
        return self.receipt

    def begin(self, jobs: Admitted, told: Told[Receipt | None]) -> None:
        async def submit() -> None:
            try:
                receipt = await self.submit(jobs)
            except Exception as error:  # noqa: BLE001 - reported like by the real node
                told(None, error)
            else:
                told(receipt, None)

        trio.lowlevel.spawn_system_task(submit)

    def health(self) -> dict[str, str]:
        return {"status": "ok"}

    def troubles(self) -> list[str]:
        return self.reasons

    async def metrics(self) -> tuple[bytes, str]:
        return b"jobs 1\n", "text/plain; version=0.0.4; charset=utf-8"

    async def job(self, job_id: str) -> StoredJob | None:
        return StoredJob(**NO_FIELDS | self.jobs[job_id]) if job_id in self.jobs else None

    async def change(self, job_id: str, change: Change) -> bool:
        self.jobs.get(job_id, {}).update({"priority": change.priority})
        return self._move(job_id, "pending", "pending")

    async def cancel(self, job_id: str) -> bool:
        return self._move(job_id, "pending", "cancelled")

    async def retry(self, job_id: str) -> bool:
        return self._move(job_id, "dead", "pending")

    async def discard(self, job_id: str) -> bool:
        return self._move(job_id, "dead", "gone") and bool(self.jobs.pop(job_id))

    async def queues(self) -> list[QueueEntry]:
        return [QueueEntry(name=name, **msgspec.to_builtins(settings)) for name, settings in self.settings.items()]

    async def pause(self, queue: str, *, paused: bool) -> None:
        self.paused[queue] = paused

    async def configure(self, queue: str, settings: QueueSettings) -> None:
        self.settings[queue] = settings

    async def nodes(self) -> list[dict[str, Any]]:
        return [{"id": "n1"}]

    def _move(self, job_id: str, before: str, after: str) -> bool:
        job = self.jobs.get(job_id)
        if job is None or job["state"] != before:
            return False
        self.jobs[job_id] = {**job, "state": after}
        return True


class Served:
    """A running server, with clients for it."""

    def __init__(self, node: RecordingNode, url: str, stopping: trio.Event, **client: Any) -> None:
        self.node = node
        self.url = url
        self.port = int(url.rsplit(":", 1)[1])
        self.stopping = stopping
        self.stopped = trio.Event()
        self.http = httpx.AsyncClient(base_url=url, timeout=60, **client)

    async def post(
        self, path: str, body: bytes | str = b"", content_type: str | None = "application/json", **headers: str
    ) -> httpx.Response:
        if content_type is not None:
            headers["Content-Type"] = content_type
        return await self.http.post(path, content=body, headers=headers)

    async def connect(self, receive_buffer: int | None = None) -> trio.SocketStream:
        sock = trio.socket.socket()
        if receive_buffer is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        try:
            await sock.connect(("127.0.0.1", self.port))
        except OSError:
            sock.close()
            raise
        return trio.SocketStream(sock)

    async def raw(self, request: bytes) -> bytes:
        """Send bytes, and return all data until the server closes the connection."""
        with trio.fail_after(60):
            async with await self.connect() as stream:
                await stream.send_all(request)
                return await read_all(stream)


both_lanes = pytest.mark.usefixtures("lane")


@asynccontextmanager
async def serving(
    node: RecordingNode | None = None,
    *,
    authorizer: Authorizer | None = None,
    drain_timeout: float = 1.0,
    tls: ssl.SSLContext | None = None,
    **client: Any,
) -> AsyncIterator[Served]:
    node = node or RecordingNode()
    listeners = open_listeners("127.0.0.1", 0)
    served = Served(node, urls(listeners, "http" if tls is None else "https")[0], trio.Event(), **client)
    authorizer = authorizer or Authorizer(None)

    async def run(task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        await server.run(
            api.build(node, authorizer),  # type: ignore[arg-type]
            express.ExpressLane(node, authorizer),
            listeners,
            stopping=served.stopping,
            drain_timeout=drain_timeout,
            tls=lambda: tls,
            task_status=task_status,
        )
        served.stopped.set()

    async with trio.open_nursery() as nursery:
        await nursery.start(run)
        async with served.http:
            yield served
        served.stopping.set()
        with trio.fail_after(60):
            await served.stopped.wait()


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def problem(response: httpx.Response, status: int) -> Any:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    body = response.json()
    assert body["status"] == status
    assert body["title"]
    return body


async def read_all(stream: trio.abc.ReceiveStream) -> bytes:
    received = b""
    try:
        async for data in stream:
            received += data
    except trio.BrokenResourceError:
        pass
    return received


async def read_until(stream: trio.abc.ReceiveStream, end: bytes) -> bytes:
    received = b""
    with trio.fail_after(60):
        while end not in received:
            received += await stream.receive_some() or pytest.fail(f"closed after {received!r}")
    return received


def status_of(response: bytes) -> int:
    matched = re.match(rb"HTTP/1.1 (\d+) ", response)
    assert matched, response
    return int(matched.group(1))


def request(
    *lines: bytes, body: bytes = JOB, first: bytes = b"POST /submit HTTP/1.1", host: bytes = b"Host: localhost", length: bool = True
) -> bytes:
    """Build a request with these lines and the usual ones."""
    head = [first, host, *lines]
    if length:
        head.append(b"Content-Length: %d" % len(body))
    return b"\r\n".join(line for line in head if line) + b"\r\n\r\n" + body


async def exchange(served: Served, pieces: Sequence[bytes], answers: int = 1) -> bytes:
    """Send a request in pieces, and return that many responses, or all data until the server closes. Mask ids and the date."""
    received = b""
    with trio.fail_after(60):
        async with await served.connect() as stream, trio.open_nursery() as nursery:
            nursery.start_soon(send, stream, pieces)
            while not complete(received, answers):
                more = b""
                async with trio.open_nursery() as receiving:
                    if received:  # some responses of hypercorn have no length
                        receiving.start_soon(cancel_when_idle, receiving.cancel_scope)
                    more = await stream.receive_some(65536)
                    receiving.cancel_scope.cancel()
                if not more:
                    break
                received += more
            nursery.cancel_scope.cancel()
    received = re.sub(rb"(?<=date: )[^\r]*", b"DATE", received)
    return re.sub(rb"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", b"ID", received)


async def cancel_when_idle(scope: trio.CancelScope) -> None:
    await trio.testing.wait_all_tasks_blocked(0.3)
    scope.cancel()


async def send(stream: trio.SocketStream, pieces: Sequence[bytes]) -> None:
    for piece in pieces:
        await stream.send_all(piece)
        await trio.sleep(0.001)


def complete(received: bytes, answers: int) -> bool:
    """Return whether the data has that many responses. None of them may be for HEAD."""
    for _ in range(answers):
        head = re.match(rb"HTTP/1\.1 \d+ [^\r]*\r\n(?:[^\r]+\r\n)*?(?i:content-length): (\d+)\r\n(?:[^\r]+\r\n)*\r\n", received)
        if head is None or len(received) < head.end() + int(head.group(1)):
            return False
        received = received[head.end() + int(head.group(1)) :]
    return True
