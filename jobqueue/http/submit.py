"""``POST /submit``: from a body to jobs that are committed, for the routes and for the express lane alike."""

from __future__ import annotations

from typing import Protocol

import trio

from jobqueue.admission import Admitted
from jobqueue.concurrency.group_commit import Told
from jobqueue.http import bodies
from jobqueue.http.answers import Answer, json_answer

PARSE_IN_THREAD_BYTES = 256 << 10
"""From this size on a body is parsed in a thread: it takes milliseconds in which the loop would serve nobody else."""

# One at a time: what a large body decodes to is many times its size.
_parsing = trio.CapacityLimiter(1)


class Submitting(Protocol):
    """What takes the jobs."""

    async def submit(self, jobs: Admitted) -> None:
        """Return once the jobs are committed.

        Raises:
            UnprocessableJob: no handler serves a kind, or the database refused a value.
            Unavailable: nothing was written, or nobody knows (`ConnectionLost`).
        """

    def begin(self, jobs: Admitted, told: Told[None]) -> None:
        """Do the same without waiting: ``told(None, error)`` is called later. It must be short, and must not raise.

        Raises:
            Exception: what can be said at once.
        """


async def submit(node: Submitting, content_type: str | None, body: bytes) -> Answer:
    """Commit what a body holds, and answer with the ids.

    Raises:
        InvalidJob, UnsupportedMediaType: see `bodies.parse`.
        Exception: what the node raises.
    """
    if len(body) < PARSE_IN_THREAD_BYTES:
        submitted = bodies.parse(content_type, body)
    else:
        submitted = await trio.to_thread.run_sync(bodies.parse, content_type, body, limiter=_parsing)
    await node.submit(submitted.jobs)
    return created(submitted)


def created(submitted: bodies.Submitted) -> Answer:
    """Answer with the ids of jobs that are committed."""
    ids = submitted.jobs.ids
    ignored = {"ignored": submitted.ignored} if submitted.ignored else {}
    if submitted.many:
        return json_answer({"ids": ids, **ignored}, 201)
    return json_answer({"id": ids[0], **ignored}, 201, {"Location": f"/jobs/{ids[0]}"})
