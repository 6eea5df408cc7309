"""The two clients: the same calls over an asynchronous and over a blocking wire."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator
from functools import wraps
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

import httpx

from jobqueue.client.calls import Calls
from jobqueue.client.patience import PATIENCE
from jobqueue.client.wires import AsyncWire, BlockingWire, run

P = ParamSpec("P")
T = TypeVar("T")


class Client(Calls):
    """One service, for Trio and asyncio, over connections that are kept. Use it in the loop that it was made in.

    Args:
        url: of the service, such as ``"http://127.0.0.1:8080"``.
        token: its bearer token, if it has any.
        patience: seconds for which a request that fails is sent again, where that can do no harm; 0 tries once.
        transport: what carries the requests, in place of connections to the service.

    Raises:
        ValueError: the URL or the token cannot be one.
    """

    def __init__(
        self, url: str, token: str | None = None, *, patience: float = PATIENCE, transport: httpx.AsyncBaseTransport | None = None
    ) -> None:
        http = httpx.AsyncClient(base_url=_checked(url), headers=_headers(token), transport=transport)
        super().__init__(AsyncWire(http), patience)

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
    """One service, for code without a loop, over connections that are kept. Threads may share it.

    Args:
        url: of the service, such as ``"http://127.0.0.1:8080"``.
        token: its bearer token, if it has any.
        patience: seconds for which a request that fails is sent again, where that can do no harm; 0 tries once.
        transport: what carries the requests, in place of connections to the service.

    Raises:
        ValueError: the URL or the token cannot be one.
    """

    def __init__(
        self, url: str, token: str | None = None, *, patience: float = PATIENCE, transport: httpx.BaseTransport | None = None
    ) -> None:
        http = httpx.Client(base_url=_checked(url), headers=_headers(token), transport=transport)
        self._calls = Calls(BlockingWire(http), patience)

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
        raise ValueError(f"the service's URL cannot be read: {error}") from None
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise ValueError("the service's URL must be such as http://127.0.0.1:8080")
    return parsed


def _headers(token: str | None) -> dict[str, str]:
    if token is None:
        return {}
    if not re.fullmatch(r"[\x21-\x7e]+", token):
        raise ValueError("a token is of printable ASCII characters without spaces, and not empty")
    return {"Authorization": f"Bearer {token}"}
