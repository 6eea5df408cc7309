"""The routes of the overview: the history of all nodes, and a stream of their current state."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from http import HTTPStatus
from typing import Annotated, Literal

import msgspec
from quart import Response, request

from jobqueue.engine.history import look_back
from jobqueue.engine.operations import Operations
from jobqueue.engine.overview import OverviewWatcher
from jobqueue.http.api import models
from jobqueue.http.api.routes import Route
from jobqueue.http.resources import job_events
from jobqueue.http.responses.answers import Answer, json_answer
from jobqueue.http.transport.hypercorn_connection import PROLONG


class RangeQuery(msgspec.Struct, frozen=True):
    """The range of the history.

    Attributes:
        seconds: the length of the history: 15 minutes, 1 hour, 6 hours, or 1 day.
    """

    seconds: Annotated[Literal[900, 3600, 21600, 86400], msgspec.Meta(description="900, 3600, 21600 or 86400 seconds")] = 900


def routes(node: Operations) -> list[Route]:
    """Make the routes of the overview."""
    views = _Views(node)
    return [
        Route(
            "GET",
            "/history",
            "read",
            "Show the history of all nodes",
            views.history,
            query=RangeQuery,
            answers={HTTPStatus.OK: models.History},
        ),
        Route(
            "GET",
            "/overview/events",
            "read",
            "Stream the state of queues and nodes, and their history",
            views.events,
            query=RangeQuery,
            answers={HTTPStatus.OK: models.OverviewEvent},
            media_type=job_events.CONTENT_TYPE,
        ),
    ]


class _Views:
    def __init__(self, node: Operations) -> None:
        self._node = node

    async def history(self, query: RangeQuery) -> Answer:
        return json_answer(await look_back(self._node.store, query.seconds))

    async def events(self, query: RangeQuery) -> Response:
        with self._node.overview.watch(query.seconds):  # may raise: do it while an error response is still possible
            pass
        if request.method == "HEAD":
            return Response("", headers=job_events.HEADERS)
        told = events(self._node.overview, query.seconds, request.scope["state"][PROLONG])
        response = Response(told, headers=job_events.HEADERS)
        response.timeout = None
        return response


async def events(overview: OverviewWatcher, seconds: int, go_on: Callable[[], bool]) -> AsyncGenerator[bytes]:
    """Yield events until the node stops: first the whole overview, then its changes.

    Args:
        overview: the overview of this node.
        seconds: the length of the history.
        go_on: called before each part; it extends the connection's deadline, or returns False to end the stream.
    """
    with overview.watch(seconds) as page:
        while not page.closed:
            for news in page.news():
                if not go_on():
                    return
                yield b"event: %s\ndata: %s\n\n" % (news.name.encode(), news.data)
            if not await page.wait(job_events.KEEP_ALIVE):
                if not go_on():
                    return
                yield job_events.COMMENT
