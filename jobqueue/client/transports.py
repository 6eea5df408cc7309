"""Send requests and sleep, either asynchronously or with blocking calls.

Calls are written once, as coroutines over a `Transport`. The coroutines of a `BlockingTransport` block and
never suspend, so `run` can execute such a call in one step, without an event loop.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Protocol, TypeVar

import anyio
import httpx

T = TypeVar("T")

Stream = tuple[httpx.Response, AsyncIterator[bytes]]
"""A response and the chunks of its body. The chunks of an event stream arrive over time; any other body is already read."""

EVENT_STREAM = "text/event-stream"


class Transport(Protocol):
    """Connections to one service."""

    @property
    def http(self) -> httpx.AsyncClient | httpx.Client:
        """The httpx client that builds the requests."""
        ...

    async def send(self, request: httpx.Request) -> httpx.Response:
        """Send a request; return the complete response. Raises `httpx.RequestError`."""
        ...

    def stream(self, request: httpx.Request) -> AbstractAsyncContextManager[Stream]:
        """Send a request and stream the response. Raises `httpx.RequestError`, also while reading chunks."""
        ...

    async def sleep(self, seconds: float) -> None: ...

    def now(self) -> float:
        """Return the seconds of a monotonic clock."""
        ...

    async def close(self) -> None: ...


class AsyncTransport:
    """A transport for Trio and asyncio."""

    def __init__(self, http: httpx.AsyncClient) -> None:
        self.http = http

    async def send(self, request: httpx.Request) -> httpx.Response:
        return await self.http.send(request)

    @asynccontextmanager
    async def stream(self, request: httpx.Request) -> AsyncIterator[Stream]:
        answer = await self.http.send(request, stream=True)
        try:
            if not is_event_stream(answer):
                await answer.aread()
            yield answer, answer.aiter_bytes()
        finally:
            await answer.aclose()

    async def sleep(self, seconds: float) -> None:
        await anyio.sleep(seconds)

    def now(self) -> float:
        return anyio.current_time()

    async def close(self) -> None:
        await self.http.aclose()


class BlockingTransport:
    """A transport for code without an event loop: its coroutines block and never suspend."""

    def __init__(self, http: httpx.Client) -> None:
        self.http = http

    async def send(self, request: httpx.Request) -> httpx.Response:
        return self.http.send(request)

    @asynccontextmanager
    async def stream(self, request: httpx.Request) -> AsyncIterator[Stream]:
        answer = self.http.send(request, stream=True)
        try:
            if not is_event_stream(answer):
                answer.read()
            yield answer, _async(answer.iter_bytes())
        finally:
            answer.close()

    async def sleep(self, seconds: float) -> None:
        time.sleep(seconds)  # noqa: ASYNC251 - blocking is intended

    def now(self) -> float:
        return time.monotonic()

    async def close(self) -> None:
        self.http.close()


def is_event_stream(answer: httpx.Response) -> bool:
    """Return whether a response contains server-sent events."""
    content_type = answer.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    return answer.is_success and content_type == EVENT_STREAM


async def _async(chunks: Iterator[bytes]) -> AsyncIterator[bytes]:
    for chunk in chunks:
        yield chunk


def run(call: Coroutine[Any, Any, T]) -> T:
    """Run a call over a `BlockingTransport` until it ends."""
    try:
        call.send(None)
    except StopIteration as done:
        result: T = done.value
        return result
    call.close()
    raise RuntimeError(f"{call!r} waits for something other than its transport")
