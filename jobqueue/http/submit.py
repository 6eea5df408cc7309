"""``POST /submit``: from a body to jobs that are committed, for the routes and for the express lane alike."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from http import HTTPStatus
from typing import Annotated, Protocol

import msgspec
import trio
from quart import request

from jobqueue import tracing
from jobqueue.admission import Admitted, Receipt
from jobqueue.concurrency.group_commit import Told
from jobqueue.http import bodies, shapes
from jobqueue.http import partial as partially
from jobqueue.http.answers import JSON, Answer, json_answer
from jobqueue.http.routes import Route
from jobqueue.job import MAX_BATCH_JOBS, Submission, TraceHeader

PARSE_IN_THREAD_BYTES = 256 << 10
"""From this size on a body is parsed in a thread: it takes milliseconds in which the loop would serve nobody else."""


class NewJob(Submission, forbid_unknown_fields=False, kw_only=True):
    """A job to be submitted: ``{}`` is one.

    Names in camelCase are understood too. Fields that jobs do not have are ignored, and named in the answer's ``ignored``.
    """


NewJobs = Annotated[list[NewJob], msgspec.Meta(min_length=1, max_length=MAX_BATCH_JOBS, description="all of them, or none")]
Key = Annotated[
    str,
    msgspec.Meta(
        pattern=bodies.KEY_PATTERN, description="the same as the field idempotency_key of one job; it may stand in quotes"
    ),
]
CONTENT = {JSON: NewJob | NewJobs} | {media_type: NewJobs for media_type in bodies.MEDIA_TYPES if media_type != JSON}
REFUSES = frozenset({HTTPStatus.CONFLICT, HTTPStatus.UNPROCESSABLE_ENTITY, HTTPStatus.SERVICE_UNAVAILABLE})

# One at a time: what a large body decodes to is many times its size.
_parsing = trio.CapacityLimiter(1)


class Submitting(Protocol):
    """What takes the jobs."""

    async def submit(self, jobs: Admitted) -> Receipt | None:
        """Return once the jobs are committed; where some of them have keys, with what that came to.

        Raises:
            UnprocessableJob: no handler serves a kind, the database refused a value, or a key stands for another job.
            ConflictingJob: a key is being submitted by somebody else at this moment.
            Unavailable: nothing was written, or nobody knows (`ConnectionLost`).
        """

    def begin(self, jobs: Admitted, told: Told[Receipt | None]) -> None:
        """Do the same without waiting: ``told(receipt, error)`` is called later. It must be short, and must not raise.

        Raises:
            Exception: what can be said at once.
        """


class SubmitQuery(msgspec.Struct, frozen=True):
    """How to take a batch."""

    partial: Annotated[bool, msgspec.Meta(description="true, to take the good jobs of a batch without the others, or false")] = (
        False
    )


def routes(node: Submitting) -> list[Route]:
    """Make the route of a node."""

    async def view(query: SubmitQuery) -> Answer:
        body = await request.get_data(cache=False, as_text=False, parse_form_data=False)
        trace = tracing.read(_header("traceparent"), _header("tracestate"))
        content_type, key = request.headers.get("Content-Type"), _header("Idempotency-Key")
        return await submit(node, content_type, body, key, trace, partial=query.partial)

    submitted = shapes.SubmittedJob | shapes.SubmittedJobs | shapes.PartialBatch
    return [
        Route(
            method="POST",
            path="/submit",
            needs="submit",
            summary="Submit a job, or many",
            view=view,
            query=SubmitQuery,
            content=CONTENT,
            headers={"Idempotency-Key": Key, "traceparent": TraceHeader, "tracestate": TraceHeader},
            answers={HTTPStatus.CREATED: submitted, HTTPStatus.OK: submitted},
            refuses=REFUSES,
        )
    ]


def _header(name: str) -> str | None:
    """Return a header of the request; one that was sent several times is one list (RFC 9110, 5.3)."""
    return ", ".join(request.headers.getlist(name)) if name in request.headers else None


async def submit(
    node: Submitting,
    content_type: str | None,
    body: bytes,
    key: str | None,
    trace: Mapping[str, str] | None,
    *,
    partial: bool = False,
) -> Answer:
    """Commit what a body holds, and answer with the ids.

    Args:
        key: the request's ``Idempotency-Key``, as it was sent.
        trace: the request's, see `jobqueue.tracing`.
        partial: whether to take the good jobs of a batch without the others.

    Raises:
        InvalidJob, UnsupportedMediaType: see `bodies.parse`.
        Exception: what the node raises.
    """
    parse = functools.partial(bodies.parse, content_type, body, key, trace, partial=partial)
    submitted = parse() if len(body) < PARSE_IN_THREAD_BYTES else await trio.to_thread.run_sync(parse, limiter=_parsing)
    if submitted.faults is not None:
        return await partially.submit(node.submit, submitted, submitted.faults)
    return committed(submitted, await node.submit(submitted.jobs))


def committed(submitted: bodies.Submitted, receipt: Receipt | None) -> Answer:
    """Answer with the ids of jobs that are committed: 200 if all of them were there before, else 201."""
    ids = submitted.jobs.ids if receipt is None else receipt.ids
    status = 200 if receipt is not None and len(receipt.existing) == len(ids) else 201
    ignored = {"ignored": submitted.ignored} if submitted.ignored else {}
    if submitted.many:
        existing = {"existing": receipt.existing} if receipt is not None else {}
        return json_answer({"ids": ids, **existing, **ignored}, status)
    return json_answer({"id": ids[0], **ignored}, status, {"Location": f"/jobs/{ids[0]}"})
