"""The routes of jobs by filter: list them page by page, and cancel them."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Annotated, Any, get_args
from uuid import UUID

import msgspec

from jobqueue.engine.operations import Operations
from jobqueue.errors import InvalidFilter
from jobqueue.http import limits
from jobqueue.http.api import converters, models
from jobqueue.http.api.routes import Route
from jobqueue.http.bodies.json_object import Body
from jobqueue.http.resources import filters
from jobqueue.http.responses.answers import Answer, json_answer
from jobqueue.job import JobState, UnfinishedState
from jobqueue.job_filters import All, JobConditions, JobFilter

States = Annotated[
    list[JobState], msgspec.Meta(min_length=1, description=f"one or more of {', '.join(get_args(JobState))}, separated by commas")
]
Unfinished = Annotated[
    UnfinishedState | Annotated[list[UnfinishedState], msgspec.Meta(min_length=1)],
    msgspec.Meta(description=f"one of {', '.join(get_args(UnfinishedState))}, or an array of them"),
]
Cursor = Annotated[UUID, msgspec.Meta(description=filters.CURSOR)]


class JobsQuery(JobConditions):
    """The query of a list of jobs.

    Attributes:
        state: the states of the jobs.
        limit: the maximum number of jobs on a page.
        after: where the page begins.
    """

    state: States | None = None
    limit: filters.PageSize = filters.DEFAULT_PAGE
    after: Cursor | None = None


class CancelFilter(JobConditions):
    """A filter of jobs to cancel; finished jobs never match."""

    state: Unfinished | None = None
    all: All | None = None


BODY = Body(CancelFilter, "a filter", InvalidFilter, limits.MAX_FILTER_BYTES, {"queue": "mail"}, may_be_empty=False)


def routes(node: Operations) -> list[Route]:
    """Make the routes of jobs by filter."""
    views = _Views(node)
    return [
        Route("GET", "/jobs", "read", "List jobs", views.listed, query=JobsQuery, answers={HTTPStatus.OK: models.Jobs}),
        Route(
            "POST",
            "/jobs/cancel",
            "admin",
            "Cancel the jobs that match a filter, or count them",
            views.cancel,
            query=filters.DryRunQuery,
            body=BODY,
            answers={HTTPStatus.OK: models.Moved},
        ),
    ]


class _Views:
    def __init__(self, node: Operations) -> None:
        self._node = node

    async def listed(self, query: JobsQuery) -> Answer:
        after = None if query.after is None else str(query.after)
        page = await self._node.store.jobs(filters.of_query(query, JobFilter), limit=query.limit, after=after)
        return json_answer({"jobs": [converters.listed(job) for job in page.jobs], "next": page.next})

    async def cancel(self, query: filters.DryRunQuery, body: Mapping[str, Any]) -> Answer:
        given = msgspec.structs.asdict(filters.of_body(body, CancelFilter))
        given["state"] = [given["state"]] if isinstance(given["state"], str) else given["state"]
        return json_answer({"jobs": await self._node.cancel_jobs(JobFilter(**given), query.dry_run)})
