"""What is between a call and the service: sending and sleeping, in a loop or blocking.

Calls are written once, as coroutines over a `Wire`. Those of a `BlockingWire` do their work before they return, so a coroutine that
waits for nothing else never stops in the middle: `run` takes it from its beginning to its end in one step, without any loop.
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
"""A response, and the chunks of its body as they come if it is an event stream; any other body has been read already."""

EVENT_STREAM = "text/event-stream"


class Wire(Protocol):
    """Connections to one service."""

    @property
    def http(self) -> httpx.AsyncClient | httpx.Client:
        """What makes the requests."""
        ...

    async def send(self, request: httpx.Request) -> httpx.Response:
        """Send a request and return the whole answer; raises `httpx.RequestError`."""
        ...

    def stream(self, request: httpx.Request) -> AbstractAsyncContextManager[Stream]:
        """Send a request and go on while the answer comes; raises `httpx.RequestError`, also from the chunks."""
        ...

    async def sleep(self, seconds: float) -> None: ...

    def now(self) -> float:
        """Seconds on a clock that only goes forward."""
        ...

    async def close(self) -> None: ...


class AsyncWire:
    """For Trio and asyncio."""

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


class BlockingWire:
    """For code without a loop: each coroutine of it blocks, and ends without ever having been suspended."""

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
        time.sleep(seconds)  # noqa: ASYNC251 - to block is what it is for

    def now(self) -> float:
        return time.monotonic()

    async def close(self) -> None:
        self.http.close()


def is_event_stream(answer: httpx.Response) -> bool:
    """Tell whether a response carries server-sent events."""
    content_type = answer.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    return answer.is_success and content_type == EVENT_STREAM


async def _async(chunks: Iterator[bytes]) -> AsyncIterator[bytes]:
    for chunk in chunks:
        yield chunk


def run(call: Coroutine[Any, Any, T]) -> T:
    """Run a call over a `BlockingWire` to its end."""
    try:
        call.send(None)
    except StopIteration as done:
        result: T = done.value
        return result
    call.close()
    raise RuntimeError(f"{call!r} waits for something that is not its wire")
