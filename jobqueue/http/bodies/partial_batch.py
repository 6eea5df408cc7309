"""``POST /submit?partial=true``: commit the valid jobs of a batch, and report the problems of the others."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import trio

from jobqueue.admission import Admitted, Faults, Receipt
from jobqueue.errors import InvalidJob, Overloaded, Unavailable
from jobqueue.http.bodies.jobs import ParsedBody
from jobqueue.http.responses import problems
from jobqueue.http.responses.answers import Answer, json_answer

PATIENCE = 20.0
"""Maximum seconds to commit or reject all jobs of a batch. After that, the service does not try to write the remaining jobs."""

PART_IN_THREAD_JOBS = 1_000
"""A part of a batch is made in a thread if it has at least this many jobs."""


async def submit(commit: Callable[[Admitted], Awaitable[Receipt | None]], submitted: ParsedBody, found: Faults) -> Answer:
    """Commit the jobs of a batch that the database accepts. The response has the id of each committed job, and null for each
    other job.

    If the database rejects a batch, this function submits each half of the batch separately, and so on until each rejected job is
    alone. The jobs are then committed in more than one transaction.

    Args:
        commit: the node's method that commits jobs.
        found: the problems of the jobs that are not in `submitted`; database errors are added to it.

    Raises:
        Unavailable: nothing was written. Exception: after the subclass `ConnectionLost`, the jobs may or may not be written.
    """
    jobs = submitted.jobs
    ids: list[str | None] = [None] * (len(jobs.ids) + len(found.places))
    places = [place for place in range(len(ids)) if place not in found.places]
    existing: list[int] = []
    deadline = trio.current_time() + PATIENCE
    to_do = [(0, len(jobs.ids))] if jobs.ids else []
    while to_do:
        begin, end = to_do.pop()
        try:
            if trio.current_time() > deadline:
                raise Overloaded(f"at least {end - begin} jobs were not tried in time")
            receipt = await commit(await _part(jobs, begin, end))
        except InvalidJob as error:
            if end - begin == 1:
                found.add(places[begin], error)
            else:
                middle = (begin + end) // 2
                to_do += [(middle, end), (begin, middle)]
        except Unavailable as error:
            if not any(ids):
                raise
            return problems.broken_off(error, ids, found)
        else:
            for place, job_id in zip(places[begin:end], jobs.ids[begin:end] if receipt is None else receipt.ids, strict=True):
                ids[place] = job_id
            existing += [] if receipt is None else [places[begin + there] for there in receipt.existing]
    if not any(ids):
        return problems.none_taken(found)
    document = {
        "ids": ids,
        **({"existing": existing} if jobs.keyed else {}),
        **({"ignored": submitted.ignored} if submitted.ignored else {}),
        "errors": problems.faults(found),
        "refused": len(found.places),
    }
    return json_answer(document, 200 if len(existing) == len(ids) - len(found.places) else 201)


async def _part(jobs: Admitted, begin: int, end: int) -> Admitted:
    if end - begin == len(jobs.ids):
        return jobs
    if end - begin < PART_IN_THREAD_JOBS:
        return jobs.part(begin, end)
    return await trio.to_thread.run_sync(jobs.part, begin, end)
