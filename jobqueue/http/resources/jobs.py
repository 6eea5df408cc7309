"""The routes of single jobs: show, wait, follow, change, cancel, retry, and delete."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from http import HTTPStatus
from typing import Annotated, Any

import msgspec
from quart import Response, request
from werkzeug.exceptions import Conflict

from jobqueue import fields
from jobqueue.admission import refuse_both
from jobqueue.engine.operations import Operations
from jobqueue.errors import InvalidJob, Missing
from jobqueue.http import limits
from jobqueue.http.api import models
from jobqueue.http.api.routes import Route
from jobqueue.http.bodies.json_object import Body
from jobqueue.http.resources import job_events
from jobqueue.http.responses.answers import Answer, json_answer
from jobqueue.http.transport.hypercorn_connection import PROLONG
from jobqueue.job import Change

STEERED = frozenset({HTTPStatus.CONFLICT, HTTPStatus.SERVICE_UNAVAILABLE})

LastEventId = Annotated[
    str, msgspec.Meta(description=f'the id of the last event that the client received; "{job_events.LAST_ID}" gets a 204')
]


BODY = Body(Change, "a change of a job", InvalidJob, limits.MAX_CHANGE_BYTES, {"priority": 5, "delay": 60}, may_be_empty=False)


class WaitQuery(msgspec.Struct, frozen=True):
    """The query of a single job.

    Attributes:
        wait: how long to wait for the job to end; after that the response shows the job as it is.
    """

    wait: Annotated[
        float, msgspec.Meta(ge=0, le=job_events.MAX_WAIT, description=f"a number of seconds from 0 to {job_events.MAX_WAIT:g}")
    ] = 0


def routes(node: Operations) -> list[Route]:
    """Make the routes of single jobs."""
    views = _Views(node)
    path = "/jobs/{job_id}"
    left = models.JobDetails | models.GoneJob
    return [
        Route(
            "GET",
            path,
            "submit",
            "Show a job, or wait until it ends",
            views.one,
            query=WaitQuery,
            answers={HTTPStatus.OK: models.JobDetails},
            tagged=True,
        ),
        Route(
            "GET",
            f"{path}/events",
            "submit",
            "Stream the events of a job until it ends",
            views.events,
            headers={"Last-Event-ID": LastEventId},
            answers={HTTPStatus.OK: models.Event, HTTPStatus.NO_CONTENT: None},
            media_type=job_events.CONTENT_TYPE,
        ),
        Route(
            "PATCH", path, "admin", "Change a waiting job", views.change, body=BODY, answers={HTTPStatus.OK: left}, refuses=STEERED
        ),
        Route(
            "DELETE",
            path,
            "admin",
            "Delete a dead job",
            views.discard,
            answers={HTTPStatus.OK: models.DiscardedJob},
            refuses=STEERED,
        ),
        Route(
            "POST",
            f"{path}/cancel",
            "admin",
            "Cancel a waiting or running job",
            views.cancel,
            answers={HTTPStatus.OK: left, HTTPStatus.ACCEPTED: models.JobDetails},
            refuses=STEERED,
        ),
        Route("POST", f"{path}/retry", "admin", "Retry a dead job", views.retry, answers={HTTPStatus.OK: left}, refuses=STEERED),
    ]


class _Views:
    def __init__(self, node: Operations) -> None:
        self._node = node

    async def _found(self, job_id: str) -> dict[str, Any]:
        return _existing(job_id, await job_events.details(self._node, job_id))

    async def one(self, job_id: str, query: WaitQuery) -> Answer:
        if not query.wait:
            return json_answer(await self._found(job_id))
        return json_answer(_existing(job_id, await job_events.ended(self._node, job_id, query.wait)))

    async def events(self, job_id: str) -> Response:
        if request.headers.get("Last-Event-ID") == job_events.LAST_ID:
            return Response("", HTTPStatus.NO_CONTENT)  # a 204 makes an EventSource stop, which otherwise reconnects forever
        with self._node.watcher.watch(job_id):  # may raise: do it while an error response is still possible
            job = await self._found(job_id)
        if request.method == "HEAD":
            return Response("", headers=job_events.HEADERS)
        response = Response(job_events.events(self._node, job["id"], request.scope["state"][PROLONG]), headers=job_events.HEADERS)
        response.timeout = None
        return response

    async def _steered(self, job_id: str, act: Callable[[str], Awaitable[bool]], becomes: str, rule: str) -> dict[str, Any]:
        if await act(job_id):
            # If the retention period is zero, the job may already be deleted.
            return await job_events.details(self._node, job_id) or {"id": job_id, "state": becomes}
        job = await self._found(job_id)
        raise Conflict(f"The job is {job['state']}: {rule}.")

    async def cancel(self, job_id: str) -> Answer:
        job = await self._steered(job_id, self._node.cancel, "cancelled", "it has already ended")
        # A running job becomes "cancelled" later, when its node has stopped it.
        return json_answer(job, HTTPStatus.ACCEPTED if job["state"] == "inflight" else HTTPStatus.OK)

    async def change(self, job_id: str, body: Mapping[str, Any]) -> Answer:
        change = fields.read(body, Change, what=BODY.what, refuse=InvalidJob)
        if change == Change():
            raise InvalidJob("the change is empty: set priority, run_at, or delay", field="priority")
        refuse_both(change, Change.EXCLUSIVE)
        rule = "only waiting jobs can be changed"
        return json_answer(await self._steered(job_id, partial(self._node.change, change=change), "pending", rule))

    async def retry(self, job_id: str) -> Answer:
        return json_answer(await self._steered(job_id, self._node.retry, "pending", "only dead jobs can be retried"))

    async def discard(self, job_id: str) -> Answer:
        job = await self._found(job_id)
        if not await self._node.store.discard(job["id"]):
            raise Conflict(f"The job is {job['state']}: only dead jobs can be deleted.")
        return json_answer({**job, "state": "discarded"})


def _existing(job_id: str, job: dict[str, Any] | None) -> dict[str, Any]:
    if job is None:
        reason = f"job {job_id} not found: it never existed, or its retention period has passed"
        raise Missing(reason, field="job_id")
    return job
