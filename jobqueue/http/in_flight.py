"""Bound how many requests are answered at a time: connections alone do not, since one of HTTP/2 carries many."""

from __future__ import annotations

from hypercorn.typing import ASGIFramework, ASGIReceiveCallable, ASGISendCallable, Scope

from jobqueue.errors import TooManyRequests
from jobqueue.http import limits, problems
from jobqueue.http.answers import respond

UNCOUNTED = frozenset({"/health", "/health/ready"})
"""What asks nobody, and has to be answered above all while a node has too much to do."""


def bounded(app: ASGIFramework) -> ASGIFramework:
    """Refuse requests beyond `limits.MAX_REQUESTS`, before their bodies are read. One counts until the app is done with it.

    The express lane has no part in it: there a connection has one request, and the group commit bounds what waits.
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
