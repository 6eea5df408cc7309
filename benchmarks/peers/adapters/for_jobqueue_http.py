"""jobqueue over HTTP: one job per request, or many jobs as NDJSON.

The client is minimal, because it shares the cores with the measured service.
"""

# mypy: disable-error-code="import-not-found, misc"

from __future__ import annotations

import asyncio
import json
from typing import Any
from urllib.parse import urlsplit

from adapter import Adapter, Payload, main


class Connection(asyncio.Protocol):
    """One keep-alive connection for one request at a time."""

    transport: asyncio.Transport

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self._received = b""

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._status.done():
            self._status.set_exception(exc or ConnectionError("the service closed the connection"))

    async def post(self, content_type: str, body: bytes) -> int:
        """Submit jobs. Return the status when the response is complete."""
        self._status = asyncio.get_running_loop().create_future()
        head = f"POST /submit HTTP/1.1\r\nHost: localhost\r\nContent-Type: {content_type}\r\nContent-Length: {len(body)}\r\n\r\n"
        self.transport.write(head.encode() + body)
        return int(await self._status)

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, separator, body = self._received.partition(b"\r\n\r\n")
        if not separator:
            return
        length = head.lower().partition(b"\r\ncontent-length:")[2].partition(b"\r\n")[0]
        if len(body) >= int(length):
            self._received = b""
            self._status.set_result(head[9:12])


class JobqueueHttp(Adapter):
    """One connection for each concurrent caller."""

    async def open(self, address: str) -> None:
        parts = urlsplit(address)
        assert parts.hostname
        assert parts.port
        self._address = (parts.hostname, parts.port)
        self._free: list[Connection] = []

    async def submit(self, job: Payload) -> None:
        await self._post("application/json", _encoded(job))

    async def submit_many(self, jobs: list[Payload]) -> None:
        await self._post("application/x-ndjson", b"\n".join(map(_encoded, jobs)))

    async def _post(self, content_type: str, body: bytes) -> None:
        connection = self._free.pop() if self._free else await self._connect()
        status = await connection.post(content_type, body)
        if status != 201:
            raise RuntimeError(f"a submission failed with status {status}")
        self._free.append(connection)

    async def _connect(self) -> Connection:
        return (await asyncio.get_running_loop().create_connection(Connection, *self._address))[1]


def _encoded(job: Payload) -> bytes:
    return json.dumps({"kind": "noop", "payload": job}).encode()


if __name__ == "__main__":
    main(JobqueueHttp())
