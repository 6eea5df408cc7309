"""Limit the requests in flight. A limit on connections is not enough, because one HTTP/2 connection carries many requests."""

from __future__ import annotations

from hypercorn.typing import ASGIFramework, ASGIReceiveCallable, ASGISendCallable, Scope

from jobqueue.errors import TooManyRequests
from jobqueue.http import limits
from jobqueue.http.responses import problems
from jobqueue.http.responses.answers import respond

UNCOUNTED = frozenset({"/health", "/health/ready"})
"""Paths whose requests are never rejected: they need no database, and they are most important while a node is overloaded."""


def bounded(app: ASGIFramework) -> ASGIFramework:
    """Wrap an app to reject requests beyond `limits.MAX_REQUESTS`, before their bodies are read.

    A request counts until the app has finished it. The express lane needs no such limit: there, each connection has one request at
    a time, and the group commit limits the waiting jobs.
    """
    in_flight = 0

    async def asgi(scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        nonlocal in_flight
        if scope["type"] != "http" or scope["path"] in UNCOUNTED:
            await app(scope, receive, send)
            return
        if in_flight >= limits.MAX_REQUESTS:
            await respond(send, problems.answer(TooManyRequests(f"{in_flight} requests are in flight")))
            return
        in_flight += 1
        try:
            await app(scope, receive, send)
        finally:
            in_flight -= 1

    return asgi
