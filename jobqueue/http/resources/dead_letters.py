"""The routes of dead letters: list, group by cause, redrive, and delete."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from http import HTTPStatus
from typing import Annotated, Any

import msgspec

from jobqueue.engine.operations import Operations
from jobqueue.errors import InvalidFilter
from jobqueue.http import limits
from jobqueue.http.api import converters, models
from jobqueue.http.api.routes import Route
from jobqueue.http.bodies.json_object import Body
from jobqueue.http.resources import filters
from jobqueue.http.responses.answers import Answer, json_answer
from jobqueue.job_filters import DeadConditions, DeadFilter
from jobqueue.storage.roles.inspect import DeadJob

Cursor = Annotated[
    str, msgspec.Meta(pattern=r"^[0-9]{1,17}-[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$", description=filters.CURSOR)
]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

Place = tuple[datetime, str]
"""The position where a page ends: the last job's time of death and its id."""


class DeadQuery(DeadConditions):
    """The query of a list of dead letters.

    Attributes:
        limit: the maximum number of dead letters on a page.
        after: where the page begins.
    """

    limit: filters.PageSize = filters.DEFAULT_PAGE
    after: Cursor | None = None


class CausesQuery(DeadConditions):
    """The query of the groups of dead letters.

    Attributes:
        limit: the maximum number of groups to return; the largest come first.
    """

    limit: filters.PageSize = filters.DEFAULT_PAGE


BODY = Body(DeadFilter, "a filter", InvalidFilter, limits.MAX_FILTER_BYTES, {"queue": "mail"}, may_be_empty=False)


def routes(node: Operations) -> list[Route]:
    """Make the routes of a node's dead letters."""
    views = _Views(node)
    return [
        Route(
            "GET", "/dead", "read", "List dead letters", views.dead, query=DeadQuery, answers={HTTPStatus.OK: models.DeadLetters}
        ),
        Route(
            "GET",
            "/dead/causes",
            "read",
            "Group dead letters by cause",
            views.causes,
            query=CausesQuery,
            answers={HTTPStatus.OK: models.DeadCauses},
        ),
        Route(
            "POST",
            "/dead/retry",
            "admin",
            "Redrive dead letters, or count them",
            views.retry,
            query=filters.DryRunQuery,
            body=BODY,
            answers={HTTPStatus.OK: models.Moved},
        ),
        Route(
            "POST",
            "/dead/discard",
            "admin",
            "Delete dead letters, or count them",
            views.discard,
            query=filters.DryRunQuery,
            body=BODY,
            answers={HTTPStatus.OK: models.Moved},
        ),
    ]


class _Views:
    def __init__(self, node: Operations) -> None:
        self._node = node

    async def dead(self, query: DeadQuery) -> Answer:
        jobs = await self._node.store.dead(filters.of_query(query, DeadFilter), limit=query.limit, after=place(query.after))
        return json_answer(
            {"jobs": [converters.listed(job) for job in jobs], "next": _cursor(jobs[-1]) if len(jobs) == query.limit else None}
        )

    async def causes(self, query: CausesQuery) -> Answer:
        return json_answer(await self._node.store.dead_causes(filters.of_query(query, DeadFilter), limit=query.limit))

    async def retry(self, query: filters.DryRunQuery, body: Mapping[str, Any]) -> Answer:
        return json_answer({"jobs": await self._node.retry_dead(filters.of_body(body, DeadFilter), query.dry_run)})

    async def discard(self, query: filters.DryRunQuery, body: Mapping[str, Any]) -> Answer:
        return json_answer({"jobs": await self._node.discard_dead(filters.of_body(body, DeadFilter), query.dry_run)})


def place(cursor: str | None) -> Place | None:
    """Parse a `Cursor` into the position after which a page begins."""
    if cursor is None:
        return None
    microseconds, _, job_id = cursor.partition("-")
    return _EPOCH + timedelta(microseconds=int(microseconds)), job_id


def _cursor(job: DeadJob) -> str:
    return f"{(datetime.fromisoformat(job.died_at) - _EPOCH) // timedelta(microseconds=1)}-{job.id}"
