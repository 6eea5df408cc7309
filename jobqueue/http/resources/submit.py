"""``POST /submit``: parse a body and commit its jobs, for both the Quart route and the express lane."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from http import HTTPStatus
from typing import Annotated

import msgspec
import trio
from quart import request

from jobqueue import tracing
from jobqueue.admission import Receipt
from jobqueue.engine.operations import Operations
from jobqueue.http.api import models
from jobqueue.http.api.routes import Route
from jobqueue.http.bodies import jobs as bodies
from jobqueue.http.bodies import partial_batch as partially
from jobqueue.http.responses.answers import JSON, Answer, json_answer
from jobqueue.job import MAX_BATCH_JOBS, Submission, TraceHeader

PARSE_IN_THREAD_BYTES = 256 << 10
"""A body of at least this size is parsed in a thread, because parsing it would block the event loop for milliseconds."""


class NewJob(Submission, forbid_unknown_fields=False, kw_only=True):
    """A job to submit. ``{}`` is a valid job.

    Names in camelCase are accepted too. Unknown fields are ignored, and the response lists them in ``ignored``.
    """


NewJobs = Annotated[list[NewJob], msgspec.Meta(min_length=1, max_length=MAX_BATCH_JOBS, description="all are committed, or none")]
Key = Annotated[
    str,
    msgspec.Meta(
        pattern=bodies.KEY_PATTERN, description="the same as the field idempotency_key of a single job; quotes are optional"
    ),
]
CONTENT = {JSON: NewJob | NewJobs} | {media_type: NewJobs for media_type in bodies.MEDIA_TYPES if media_type != JSON}
REFUSES = frozenset({HTTPStatus.CONFLICT, HTTPStatus.UNPROCESSABLE_ENTITY, HTTPStatus.SERVICE_UNAVAILABLE})

# Parse only one body at a time, because a decoded body takes many times the memory of its text.
_parsing = trio.CapacityLimiter(1)


class SubmitQuery(msgspec.Struct, frozen=True):
    """The query of a submission."""

    partial: Annotated[bool, msgspec.Meta(description="true, to commit the valid jobs of a batch without the others, or false")] = (
        False
    )


def routes(node: Operations) -> list[Route]:
    """Make the route of submissions."""

    async def view(query: SubmitQuery) -> Answer:
        body = await request.get_data(cache=False, as_text=False, parse_form_data=False)
        trace = tracing.read(_header("traceparent"), _header("tracestate"))
        content_type, key = request.headers.get("Content-Type"), _header("Idempotency-Key")
        return await submit(node, content_type, body, key, trace, partial=query.partial)

    submitted = models.SubmittedJob | models.SubmittedJobs | models.PartialBatch
    return [
        Route(
            "POST",
            "/submit",
            "submit",
            "Submit one job or a batch",
            view,
            query=SubmitQuery,
            content=CONTENT,
            headers={"Idempotency-Key": Key, "traceparent": TraceHeader, "tracestate": TraceHeader},
            answers={HTTPStatus.CREATED: submitted, HTTPStatus.OK: submitted},
            refuses=REFUSES,
        )
    ]


def _header(name: str) -> str | None:
    """Return a header of the request; None if it is missing. Join repeated headers into one list (RFC 9110, 5.3)."""
    return ", ".join(request.headers.getlist(name)) if name in request.headers else None


async def submit(
    node: Operations,
    content_type: str | None,
    body: bytes,
    key: str | None,
    trace: Mapping[str, str] | None,
    *,
    partial: bool = False,
) -> Answer:
    """Commit the jobs in a body, and return a response with their ids.

    Args:
        key: the request's ``Idempotency-Key`` header, as sent.
        trace: the request's trace headers, see `jobqueue.tracing`.
        partial: whether to commit the valid jobs of a batch without the others.

    Raises:
        InvalidJob, UnsupportedMediaType: see `bodies.parse`.
        Exception: any error of `node.submit`.
    """
    parse = functools.partial(bodies.parse, content_type, body, key, trace, partial=partial)
    submitted = parse() if len(body) < PARSE_IN_THREAD_BYTES else await trio.to_thread.run_sync(parse, limiter=_parsing)
    if submitted.faults is not None:
        return await partially.submit(node.submit, submitted, submitted.faults)
    return committed(submitted, await node.submit(submitted.jobs))


def committed(submitted: bodies.ParsedBody, receipt: Receipt | None) -> Answer:
    """Return the response with the ids of committed jobs: 200 if all of them existed before, else 201."""
    ids = submitted.jobs.ids if receipt is None else receipt.ids
    status = 200 if receipt is not None and len(receipt.existing) == len(ids) else 201
    ignored = {"ignored": submitted.ignored} if submitted.ignored else {}
    if submitted.many:
        existing = {"existing": receipt.existing} if receipt is not None else {}
        return json_answer({"ids": ids, **existing, **ignored}, status)
    return json_answer({"id": ids[0], **ignored}, status, {"Location": f"/jobs/{ids[0]}"})
