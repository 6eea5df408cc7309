"""The clients on Trio, on asyncio, and without a loop. All have blocking methods here, so that one test can use each of them."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import ExitStack
from functools import partial
from typing import Any

from anyio.from_thread import BlockingPortal, start_blocking_portal

from jobqueue import Client, SyncClient

FORMS = ["trio", "asyncio", "sync"]


class InLoop:
    """A `Client` with its own loop in a thread."""

    def __init__(self, portal: BlockingPortal, *arguments: Any, **named: Any) -> None:
        self._portal = portal
        self._client = portal.call(partial(Client, *arguments, **named))

    def __getattr__(self, name: str) -> Any:
        call = getattr(self._client, name)

        def blocking(*arguments: Any, **named: Any) -> Any:
            made = call(*arguments, **named)
            return self._each(made) if isinstance(made, AsyncGenerator) else self._portal.call(lambda: made)

        return blocking

    def _each(self, generator: AsyncGenerator[Any, None]) -> Iterator[Any]:
        try:
            while True:
                try:
                    yield self._portal.call(generator.__anext__)
                except StopAsyncIteration:
                    return
        finally:
            self._portal.call(generator.aclose)


def opener(form: str, stack: ExitStack) -> Callable[..., Any]:
    """Return a function that opens clients of a form. The stack closes them."""
    if form == "sync":

        def open_client(*arguments: Any, **named: Any) -> Any:
            return stack.enter_context(SyncClient(*arguments, **named))

        return open_client
    portal = stack.enter_context(start_blocking_portal(form))

    def open_in_loop(*arguments: Any, **named: Any) -> Any:
        client = InLoop(portal, *arguments, **named)
        stack.callback(client.close)
        return client

    return open_in_loop
