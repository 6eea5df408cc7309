"""``POST /submit``: from a body to jobs that are committed, for the routes and for the express lane alike."""

from __future__ import annotations

from typing import Protocol

import trio
from quart import request

from jobqueue.admission import Admitted, Receipt
from jobqueue.concurrency.group_commit import Told
from jobqueue.http import bodies
from jobqueue.http.answers import Answer, json_answer
from jobqueue.http.routes import Route

PARSE_IN_THREAD_BYTES = 256 << 10
"""From this size on a body is parsed in a thread: it takes milliseconds in which the loop would serve nobody else."""

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


def routes(node: Submitting) -> list[Route]:
    """Make the route of a node."""

    async def view() -> Answer:
        body = await request.get_data(cache=False, as_text=False, parse_form_data=False)
        key = ", ".join(request.headers.getlist("Idempotency-Key")) if "Idempotency-Key" in request.headers else None
        return await submit(node, request.headers.get("Content-Type"), body, key)

    return [Route(method="POST", path="/submit", needs="submit", summary="Submit a job, or many", view=view)]


async def submit(node: Submitting, content_type: str | None, body: bytes, key: str | None) -> Answer:
    """Commit what a body holds, and answer with the ids.

    Args:
        key: the request's ``Idempotency-Key``, as it was sent.

    Raises:
        InvalidJob, UnsupportedMediaType: see `bodies.parse`.
        Exception: what the node raises.
    """
    if len(body) < PARSE_IN_THREAD_BYTES:
        submitted = bodies.parse(content_type, body, key)
    else:
        submitted = await trio.to_thread.run_sync(bodies.parse, content_type, body, key, limiter=_parsing)
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
