"""The routes of who looks at everything at once: what all nodes did of late, and what they do now, as it comes."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import AbstractContextManager
from http import HTTPStatus
from typing import Annotated, Any, Literal, Protocol

import msgspec
from quart import Response, request

from jobqueue.http import shapes, watch
from jobqueue.http.answers import Answer, json_answer
from jobqueue.http.connection import PROLONG
from jobqueue.http.routes import Route


class News(Protocol):
    """One thing to tell."""

    @property
    def name(self) -> str: ...

    @property
    def data(self) -> bytes:
        """What there is to say, as JSON."""
        ...


class Page(Protocol):
    """A look at everything that goes on."""

    @property
    def closed(self) -> bool:
        """Whether nothing more will be seen."""
        ...

    def news(self) -> Iterable[News]:
        """Return what is new since the last time."""
        ...

    async def wait(self, seconds: float) -> bool:
        """Wait for news, or the end of it; False when neither comes in time."""
        ...


class Overseen(Protocol):
    """A node that can tell of all of them."""

    async def history(self, seconds: int) -> dict[str, Any]:
        """Return what all nodes did in so many seconds."""
        ...

    def watch_overview(self, seconds: int) -> AbstractContextManager[Page]:
        """Watch everything for as long as the context is open, and the history of so many seconds; raises `TooManyWatchers`."""
        ...


class RangeQuery(msgspec.Struct, frozen=True):
    """How far to look back.

    Attributes:
        seconds: a quarter of an hour, an hour, six or a day.
    """

    seconds: Annotated[Literal[900, 3600, 21600, 86400], msgspec.Meta(description="900, 3600, 21600 or 86400 seconds")] = 900


def routes(node: Overseen) -> list[Route]:
    """Make the routes of a node."""
    views = _Views(node)
    return [
        Route(
            method="GET",
            path="/history",
            needs="read",
            summary="Show what all nodes did of late",
            view=views.history,
            query=RangeQuery,
            answers={HTTPStatus.OK: shapes.History},
        ),
        Route(
            method="GET",
            path="/overview/events",
            needs="read",
            summary="Follow queues, nodes and history",
            view=views.events,
            query=RangeQuery,
            answers={HTTPStatus.OK: shapes.OverviewEvent},
            media_type=watch.CONTENT_TYPE,
        ),
    ]


class _Views:
    def __init__(self, node: Overseen) -> None:
        self._node = node

    async def history(self, query: RangeQuery) -> Answer:
        return json_answer(await self._node.history(query.seconds))

    async def events(self, query: RangeQuery) -> Response:
        with self._node.watch_overview(query.seconds):  # refused here, where there still is an answer for it
            pass
        if request.method == "HEAD":
            return Response("", headers=watch.HEADERS)
        told = events(self._node, query.seconds, request.scope["state"][PROLONG])
        response = Response(told, headers=watch.HEADERS)
        response.timeout = None
        return response


async def events(node: Overseen, seconds: int, go_on: Callable[[], bool]) -> AsyncGenerator[bytes]:
    """Tell everything, and then what is new, until the node stops.

    Args:
        node: where it is watched.
        seconds: how far back the history goes.
        go_on: called before each piece; the connection's patience begins anew with it, or it says that this is to be the end.
    """
    with node.watch_overview(seconds) as page:
        while not page.closed:
            for news in page.news():
                if not go_on():
                    return
                yield b"event: %s\ndata: %s\n\n" % (news.name.encode(), news.data)
            if not await page.wait(watch.KEEP_ALIVE):
                if not go_on():
                    return
                yield watch.COMMENT
