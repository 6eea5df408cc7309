"""The two clients: the same calls over an asynchronous and a blocking transport."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator
from functools import wraps
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

import httpx

from jobqueue.client.calls import Calls
from jobqueue.client.retries import PATIENCE
from jobqueue.client.transports import AsyncTransport, BlockingTransport, run

P = ParamSpec("P")
T = TypeVar("T")


class Client(Calls):
    """A client for Trio and asyncio, with persistent connections. Use it only in the event loop that created it.

    Args:
        url: the service's URL, such as ``"http://127.0.0.1:8080"``.
        token: the bearer token, if the service requires one.
        patience: seconds for which a failed request is retried if that is safe; 0 tries once.
        transport: replaces the connections to the service.

    Raises:
        ValueError: the URL or the token is invalid.
    """

    def __init__(
        self, url: str, token: str | None = None, *, patience: float = PATIENCE, transport: httpx.AsyncBaseTransport | None = None
    ) -> None:
        http = httpx.AsyncClient(base_url=_checked(url), headers=_headers(token), transport=transport)
        super().__init__(AsyncTransport(http), patience)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        await self.close()


def _blocking(call: Callable[Concatenate[Calls, P], Coroutine[Any, Any, T]]) -> Callable[Concatenate[SyncClient, P], T]:
    @wraps(call)
    def blocking(self: SyncClient, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return run(call(self._calls, *args, **kwargs))

    return blocking


def _iterating(call: Callable[Concatenate[Calls, P], AsyncGenerator[T, None]]) -> Callable[Concatenate[SyncClient, P], Iterator[T]]:
    @wraps(call)
    def iterating(self: SyncClient, /, *args: P.args, **kwargs: P.kwargs) -> Iterator[T]:
        generator = call(self._calls, *args, **kwargs)
        try:
            while True:
                yield run(generator.__anext__())
        except StopAsyncIteration:
            return
        finally:
            run(generator.aclose())

    return iterating


class SyncClient:
    """A client for code without an event loop, with persistent connections. Threads may share it.

    Args:
        url: the service's URL, such as ``"http://127.0.0.1:8080"``.
        token: the bearer token, if the service requires one.
        patience: seconds for which a failed request is retried if that is safe; 0 tries once.
        transport: replaces the connections to the service.

    Raises:
        ValueError: the URL or the token is invalid.
    """

    def __init__(
        self, url: str, token: str | None = None, *, patience: float = PATIENCE, transport: httpx.BaseTransport | None = None
    ) -> None:
        http = httpx.Client(base_url=_checked(url), headers=_headers(token), transport=transport)
        self._calls = Calls(BlockingTransport(http), patience)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    request = _blocking(Calls.request)
    submit = _blocking(Calls.submit)
    submit_many = _blocking(Calls.submit_many)
    submit_chunks = _iterating(Calls.submit_chunks)
    job = _blocking(Calls.job)
    jobs = _iterating(Calls.jobs)
    cancel = _blocking(Calls.cancel)
    retry = _blocking(Calls.retry)
    discard = _blocking(Calls.discard)
    update = _blocking(Calls.update)
    cancel_jobs = _blocking(Calls.cancel_jobs)
    result = _blocking(Calls.result)
    events = _iterating(Calls.events)
    dead = _iterating(Calls.dead)
    dead_causes = _blocking(Calls.dead_causes)
    retry_dead = _blocking(Calls.retry_dead)
    discard_dead = _blocking(Calls.discard_dead)
    queues = _blocking(Calls.queues)
    queue = _blocking(Calls.queue)
    configure = _blocking(Calls.configure)
    pause = _blocking(Calls.pause)
    resume = _blocking(Calls.resume)
    nodes = _blocking(Calls.nodes)
    tasks = _blocking(Calls.tasks)
    schedules = _blocking(Calls.schedules)
    schedule = _blocking(Calls.schedule)
    put_schedule = _blocking(Calls.put_schedule)
    unschedule = _blocking(Calls.unschedule)
    pause_schedule = _blocking(Calls.pause_schedule)
    resume_schedule = _blocking(Calls.resume_schedule)
    trigger_schedule = _blocking(Calls.trigger_schedule)
    close = _blocking(Calls.close)


def _checked(url: str) -> httpx.URL:
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise ValueError(f"the service's URL is not valid: {error}; use a URL such as http://127.0.0.1:8080") from None
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise ValueError("the service's URL needs http or https and a host, such as http://127.0.0.1:8080")
    return parsed


def _headers(token: str | None) -> dict[str, str]:
    if token is None:
        return {}
    if not re.fullmatch(r"[\x21-\x7e]+", token):
        raise ValueError("token must be printable ASCII without spaces, and not empty")
    return {"Authorization": f"Bearer {token}"}
