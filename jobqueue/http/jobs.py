"""The routes of single jobs: look, wait, steer."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from http import HTTPStatus
from typing import Annotated, Any, Protocol

import msgspec
from quart import Response, request
from werkzeug.exceptions import Conflict

from jobqueue import fields
from jobqueue.admission import refuse_both
from jobqueue.errors import InvalidJob, Missing
from jobqueue.http import limits, shapes, watch
from jobqueue.http.answers import Answer, json_answer
from jobqueue.http.connection import PROLONG
from jobqueue.http.objects import Body
from jobqueue.http.routes import Route
from jobqueue.job import Change

STEERED = frozenset({HTTPStatus.CONFLICT, HTTPStatus.SERVICE_UNAVAILABLE})

LastEventId = Annotated[
    str, msgspec.Meta(description=f'the id of the last event that was seen; after "{watch.LAST_ID}" nothing follows')
]


class Steering(watch.Watchable, Protocol):
    """A node that can show and steer jobs."""

    async def cancel(self, id: str) -> bool:  # noqa: A002 - what it is called everywhere
        """Cancel a job that waits, or have one cancelled that runs; False when it does neither."""
        ...

    async def change(self, id: str, change: Change) -> bool:  # noqa: A002
        """Change a job that waits; False when it does not."""
        ...

    async def retry(self, id: str) -> bool:  # noqa: A002
        """Run a dead job again; False when it is not dead.

        Raises:
            ConflictingJob: another job has its unique key.
        """
        ...

    async def discard(self, id: str) -> bool:  # noqa: A002
        """Delete a dead job; False when it is not dead."""
        ...


BODY = Body(Change, "a change of a job", InvalidJob, limits.MAX_CHANGE_BYTES, {"priority": 5, "delay": 60}, may_be_empty=False)


class WaitQuery(msgspec.Struct, frozen=True):
    """How long to wait.

    Attributes:
        wait: for the job's end; then it is told as it is by then.
    """

    wait: Annotated[
        float, msgspec.Meta(ge=0, le=watch.MAX_WAIT, description=f"a number of seconds from 0 to {watch.MAX_WAIT:g}")
    ] = 0


def routes(node: Steering) -> list[Route]:
    """Make the routes of a node."""
    views = _Views(node)
    path = "/jobs/{job_id}"
    left = shapes.JobDetails | shapes.GoneJob
    return [
        Route(
            method="GET",
            path=path,
            needs="submit",
            summary="Show a job, or wait for its end",
            view=views.one,
            query=WaitQuery,
            answers={HTTPStatus.OK: shapes.JobDetails},
            tagged=True,
        ),
        Route(
            method="GET",
            path=f"{path}/events",
            needs="submit",
            summary="Follow a job to its end",
            view=views.events,
            headers={"Last-Event-ID": LastEventId},
            answers={HTTPStatus.OK: shapes.Event, HTTPStatus.NO_CONTENT: None},
            media_type=watch.CONTENT_TYPE,
        ),
        Route(
            method="PATCH",
            path=path,
            needs="admin",
            summary="Change a job that waits",
            view=views.change,
            body=BODY,
            answers={HTTPStatus.OK: left},
            refuses=STEERED,
        ),
        Route(
            method="DELETE",
            path=path,
            needs="admin",
            summary="Delete a dead job",
            view=views.discard,
            answers={HTTPStatus.OK: shapes.DiscardedJob},
            refuses=STEERED,
        ),
        Route(
            method="POST",
            path=f"{path}/cancel",
            needs="admin",
            summary="Cancel a job that waits or runs",
            view=views.cancel,
            answers={HTTPStatus.OK: left, HTTPStatus.ACCEPTED: shapes.JobDetails},
            refuses=STEERED,
        ),
        Route(
            method="POST",
            path=f"{path}/retry",
            needs="admin",
            summary="Run a dead job again",
            view=views.retry,
            answers={HTTPStatus.OK: left},
            refuses=STEERED,
        ),
    ]


class _Views:
    def __init__(self, node: Steering) -> None:
        self._node = node

    async def _found(self, job_id: str) -> dict[str, Any]:
        return _existing(job_id, await self._node.job(job_id))

    async def one(self, job_id: str, query: WaitQuery) -> Answer:
        if not query.wait:
            return json_answer(await self._found(job_id))
        return json_answer(_existing(job_id, await watch.ended(self._node, job_id, query.wait)))

    async def events(self, job_id: str) -> Response:
        if request.headers.get("Last-Event-ID") == watch.LAST_ID:
            return Response("", HTTPStatus.NO_CONTENT)  # an EventSource connects again until it is told so
        with self._node.watch(job_id):  # refused here, where there still is an answer for it
            job = await self._found(job_id)
        if request.method == "HEAD":
            return Response("", headers=watch.HEADERS)
        response = Response(watch.events(self._node, job["id"], request.scope["state"][PROLONG]), headers=watch.HEADERS)
        response.timeout = None
        return response

    async def _steered(self, job_id: str, act: Callable[[str], Awaitable[bool]], becomes: str, rule: str) -> dict[str, Any]:
        if await act(job_id):
            # It may be gone already, where none is kept.
            return await self._node.job(job_id) or {"id": job_id, "state": becomes}
        job = await self._found(job_id)
        raise Conflict(f"The job is {job['state']}: {rule}.")

    async def cancel(self, job_id: str) -> Answer:
        job = await self._steered(job_id, self._node.cancel, "cancelled", "it has ended already")
        # The node that runs it hears of it.
        return json_answer(job, HTTPStatus.ACCEPTED if job["state"] == "inflight" else HTTPStatus.OK)

    async def change(self, job_id: str, body: Mapping[str, Any]) -> Answer:
        change = fields.read(body, Change, what=BODY.what, refuse=InvalidJob)
        if change == Change():
            raise InvalidJob("there is nothing to change: give priority, and run_at or delay", field="priority")
        refuse_both(change, Change.EXCLUSIVE)
        rule = "only jobs that wait can be changed"
        return json_answer(await self._steered(job_id, partial(self._node.change, change=change), "pending", rule))

    async def retry(self, job_id: str) -> Answer:
        return json_answer(await self._steered(job_id, self._node.retry, "pending", "only dead jobs can be retried"))

    async def discard(self, job_id: str) -> Answer:
        job = await self._found(job_id)
        if not await self._node.discard(job["id"]):
            raise Conflict(f"The job is {job['state']}: only dead jobs can be deleted.")
        return json_answer({**job, "state": "discarded"})


def _existing(job_id: str, job: dict[str, Any] | None) -> dict[str, Any]:
    if job is None:
        reason = f"there is no job {job_id}: it never was, or was deleted when its time to be kept was over"
        raise Missing(reason, field="job_id")
    return job
