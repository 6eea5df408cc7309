"""The routes of the overview: the history of all nodes, and a stream of their current state."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import AbstractContextManager
from http import HTTPStatus
from typing import Annotated, Any, Literal, Protocol

import msgspec
from quart import Response, request

from jobqueue.http.api import models
from jobqueue.http.api.routes import Route
from jobqueue.http.resources import job_events
from jobqueue.http.responses.answers import Answer, json_answer
from jobqueue.http.transport.hypercorn_connection import PROLONG


class News(Protocol):
    """One event of the overview."""

    @property
    def name(self) -> str: ...

    @property
    def data(self) -> bytes:
        """The event's data, as JSON."""
        ...


class Page(Protocol):
    """An ongoing watch of the overview."""

    @property
    def closed(self) -> bool:
        """Whether the watch has ended."""
        ...

    def news(self) -> Iterable[News]:
        """Return the events since the last call."""
        ...

    async def wait(self, seconds: float) -> bool:
        """Wait for events or for the end of the watch. Return False if neither happens within `seconds`."""
        ...


class Overseen(Protocol):
    """The methods of a node that report on all nodes."""

    async def history(self, seconds: int) -> dict[str, Any]:
        """Return the history of all nodes for the last `seconds` seconds."""
        ...

    def watch_overview(self, seconds: int) -> AbstractContextManager[Page]:
        """Watch the overview, with a history of `seconds` seconds, while the context is open. Raises `TooManyWatchers`."""
        ...


class RangeQuery(msgspec.Struct, frozen=True):
    """The range of the history.

    Attributes:
        seconds: the length of the history: 15 minutes, 1 hour, 6 hours, or 1 day.
    """

    seconds: Annotated[Literal[900, 3600, 21600, 86400], msgspec.Meta(description="900, 3600, 21600 or 86400 seconds")] = 900


def routes(node: Overseen) -> list[Route]:
    """Make the routes of the overview."""
    views = _Views(node)
    return [
        Route(
            method="GET",
            path="/history",
            needs="read",
            summary="Show the history of all nodes",
            view=views.history,
            query=RangeQuery,
            answers={HTTPStatus.OK: models.History},
        ),
        Route(
            method="GET",
            path="/overview/events",
            needs="read",
            summary="Stream the state of queues and nodes, and their history",
            view=views.events,
            query=RangeQuery,
            answers={HTTPStatus.OK: models.OverviewEvent},
            media_type=job_events.CONTENT_TYPE,
        ),
    ]


class _Views:
    def __init__(self, node: Overseen) -> None:
        self._node = node

    async def history(self, query: RangeQuery) -> Answer:
        return json_answer(await self._node.history(query.seconds))

    async def events(self, query: RangeQuery) -> Response:
        with self._node.watch_overview(query.seconds):  # may raise: do it while an error response is still possible
            pass
        if request.method == "HEAD":
            return Response("", headers=job_events.HEADERS)
        told = events(self._node, query.seconds, request.scope["state"][PROLONG])
        response = Response(told, headers=job_events.HEADERS)
        response.timeout = None
        return response


async def events(node: Overseen, seconds: int, go_on: Callable[[], bool]) -> AsyncGenerator[bytes]:
    """Yield events until the node stops: first the whole overview, then its changes.

    Args:
        node: the node that watches the overview.
        seconds: the length of the history.
        go_on: called before each part; it extends the connection's deadline, or returns False to end the stream.
    """
    with node.watch_overview(seconds) as page:
        while not page.closed:
            for news in page.news():
                if not go_on():
                    return
                yield b"event: %s\ndata: %s\n\n" % (news.name.encode(), news.data)
            if not await page.wait(job_events.KEEP_ALIVE):
                if not go_on():
                    return
                yield job_events.COMMENT
