"""The routes of dead letters: what a request says of which are meant, and the pages of a list."""

from __future__ import annotations

import re
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Protocol

import msgspec

from jobqueue import fields
from jobqueue.errors import InvalidFilter, InvalidQuery
from jobqueue.http import limits
from jobqueue.http.answers import Answer, json_answer
from jobqueue.http.objects import Body
from jobqueue.http.routes import Route
from jobqueue.job import DeadConditions, DeadFilter

MAX_PAGE = 1_000
DEFAULT_PAGE = 100
"""Dead letters on one page of a list."""

PageSize = Annotated[int, msgspec.Meta(ge=1, le=MAX_PAGE, description=f"an integer from 1 to {MAX_PAGE}")]
Cursor = Annotated[str, msgspec.Meta(description='what the page before gave as "next"')]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_CURSOR = re.compile(r"(\d{1,18})-([0-9a-f-]{36})", re.ASCII)

Place = tuple[datetime, str]
"""Where a page ends: the time of death and the id of its last job."""


class DeadQuery(DeadConditions):
    """Which page of which dead letters is asked for."""

    limit: PageSize = DEFAULT_PAGE
    after: Cursor | None = None


class Buried(Protocol):
    """A node whose dead letters can be looked at and moved."""

    async def dead(self, wanted: DeadFilter, limit: int, after: Place | None) -> list[dict[str, Any]]:
        """Return the dead jobs that are wanted, the latest first, from a place on."""
        ...

    async def retry_dead(self, wanted: DeadFilter) -> int:
        """Run all dead jobs again that are wanted; return how many."""
        ...

    async def discard_dead(self, wanted: DeadFilter) -> int:
        """Delete all dead jobs that are wanted; return how many."""
        ...


BODY = Body(DeadFilter, "a filter", InvalidFilter, limits.MAX_FILTER_BYTES)


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
        ),
        Route(method="POST", path="/dead/retry", needs="admin", summary="Run dead letters again", view=views.retry, body=BODY),
        Route(method="POST", path="/dead/discard", needs="admin", summary="Delete dead letters", view=views.discard, body=BODY),
    ]


class _Views:
    def __init__(self, node: Buried) -> None:
        self._node = node

    async def dead(self, query: DeadQuery) -> Answer:
        conditions = {name: getattr(query, name) for name in DeadConditions.__struct_fields__}
        wanted = DeadFilter(**conditions, all=None if any(value is not None for value in conditions.values()) else True)
        jobs = await self._node.dead(wanted, query.limit, place(query.after))
        return json_answer({"jobs": jobs, "next": _cursor(jobs[-1]) if len(jobs) == query.limit else None})

    async def retry(self, body: Mapping[str, Any]) -> Answer:
        return json_answer({"jobs": await self._node.retry_dead(wanted(body))})

    async def discard(self, body: Mapping[str, Any]) -> Answer:
        return json_answer({"jobs": await self._node.discard_dead(wanted(body))})


def wanted(given: Mapping[str, Any]) -> DeadFilter:
    """Read which dead letters are to be run again or deleted.

    Raises:
        InvalidFilter: it is no filter, or an empty one.
    """
    conditions = fields.read(given, DeadFilter, what="a filter", refuse=InvalidFilter)
    if conditions == DeadFilter():
        raise InvalidFilter('the filter is empty: {"all": true} means all', field="all")
    return conditions


def place(cursor: str | None) -> Place | None:
    """Read where a page begins.

    Raises:
        InvalidQuery: it is no cursor.
    """
    if cursor is None:
        return None
    found = _CURSOR.fullmatch(cursor)
    try:
        if found is None:
            raise ValueError(cursor)  # noqa: TRY301 - all that is no cursor is refused alike
        return _EPOCH + timedelta(microseconds=int(found[1])), str(uuid.UUID(found[2]))
    except (ValueError, OverflowError):
        raise InvalidQuery('after must be what the page before gave as "next"', field="after") from None


def _cursor(job: Mapping[str, Any]) -> str:
    return f"{(datetime.fromisoformat(job['died_at']) - _EPOCH) // timedelta(microseconds=1)}-{job['id']}"
