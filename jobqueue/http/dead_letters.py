"""The routes of dead letters: what a request says of which are meant, and the pages of a list."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from http import HTTPStatus
from typing import Annotated, Any, Protocol

import msgspec

from jobqueue.errors import InvalidFilter
from jobqueue.http import filters, limits, shapes
from jobqueue.http.answers import Answer, json_answer
from jobqueue.http.objects import Body
from jobqueue.http.routes import Route
from jobqueue.job import DeadConditions, DeadFilter

Cursor = Annotated[
    str, msgspec.Meta(pattern=r"^[0-9]{1,17}-[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$", description=filters.CURSOR)
]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

Place = tuple[datetime, str]
"""Where a page ends: the time of death and the id of its last job."""


class DeadQuery(DeadConditions):
    """Which page of which dead letters is asked for.

    Attributes:
        limit: how many are on a page.
        after: where the page begins.
    """

    limit: filters.PageSize = filters.DEFAULT_PAGE
    after: Cursor | None = None


class CausesQuery(DeadConditions):
    """Which dead letters are grouped.

    Attributes:
        limit: how many groups are shown, the largest.
    """

    limit: filters.PageSize = filters.DEFAULT_PAGE


class Buried(Protocol):
    """A node whose dead letters can be looked at and moved."""

    async def dead(self, wanted: DeadFilter, limit: int, after: Place | None) -> list[dict[str, Any]]:
        """Return the dead jobs that are wanted, the latest first, from a place on."""
        ...

    async def dead_causes(self, wanted: DeadFilter, limit: int) -> dict[str, Any]:
        """Return the dead jobs that are wanted in groups of one queue, kind and cause, the largest first."""
        ...

    async def retry_dead(self, wanted: DeadFilter, dry_run: bool) -> int:
        """Run all dead jobs again that are wanted; return how many."""
        ...

    async def discard_dead(self, wanted: DeadFilter, dry_run: bool) -> int:
        """Delete all dead jobs that are wanted; return how many."""
        ...


BODY = Body(DeadFilter, "a filter", InvalidFilter, limits.MAX_FILTER_BYTES, {"queue": "mail"}, may_be_empty=False)


def routes(node: Buried) -> list[Route]:
    """Make the routes of a node."""
    views = _Views(node)
    return [
        Route(
            method="GET",
            path="/dead",
            needs="read",
            summary="List dead letters",
            view=views.dead,
            query=DeadQuery,
            answers={HTTPStatus.OK: shapes.DeadLetters},
        ),
        Route(
            method="GET",
            path="/dead/causes",
            needs="read",
            summary="Group dead letters by their cause",
            view=views.causes,
            query=CausesQuery,
            answers={HTTPStatus.OK: shapes.DeadCauses},
        ),
        Route(
            method="POST",
            path="/dead/retry",
            needs="admin",
            summary="Run dead letters again, or count them",
            view=views.retry,
            query=filters.DryRunQuery,
            body=BODY,
            answers={HTTPStatus.OK: shapes.Moved},
        ),
        Route(
            method="POST",
            path="/dead/discard",
            needs="admin",
            summary="Delete dead letters, or count them",
            view=views.discard,
            query=filters.DryRunQuery,
            body=BODY,
            answers={HTTPStatus.OK: shapes.Moved},
        ),
    ]


class _Views:
    def __init__(self, node: Buried) -> None:
        self._node = node

    async def dead(self, query: DeadQuery) -> Answer:
        jobs = await self._node.dead(filters.of_query(query, DeadFilter), query.limit, place(query.after))
        return json_answer({"jobs": jobs, "next": _cursor(jobs[-1]) if len(jobs) == query.limit else None})

    async def causes(self, query: CausesQuery) -> Answer:
        return json_answer(await self._node.dead_causes(filters.of_query(query, DeadFilter), query.limit))

    async def retry(self, query: filters.DryRunQuery, body: Mapping[str, Any]) -> Answer:
        return json_answer({"jobs": await self._node.retry_dead(filters.of_body(body, DeadFilter), query.dry_run)})

    async def discard(self, query: filters.DryRunQuery, body: Mapping[str, Any]) -> Answer:
        return json_answer({"jobs": await self._node.discard_dead(filters.of_body(body, DeadFilter), query.dry_run)})


def place(cursor: str | None) -> Place | None:
    """Read where a page begins: what a `Cursor` says."""
    if cursor is None:
        return None
    microseconds, _, job_id = cursor.partition("-")
    return _EPOCH + timedelta(microseconds=int(microseconds)), job_id


def _cursor(job: Mapping[str, Any]) -> str:
    return f"{(datetime.fromisoformat(job['died_at']) - _EPOCH) // timedelta(microseconds=1)}-{job['id']}"
