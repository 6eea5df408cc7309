"""Wait for a job: for its end, or for the news on the way there. Restarts of the service, and its absence, are waited through."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from typing import Any, NamedTuple

import httpx

from jobqueue.client.errors import RequestRefused
from jobqueue.client.event_stream import EventStream
from jobqueue.client.patience import (
    HARMLESS,
    Statuses,
    backoff,
    may_have_arrived,
    pause_after_answer,
    pause_after_error,
    unreachable,
)
from jobqueue.client.requests import ANSWER_SECONDS, below, build, read
from jobqueue.client.wires import Wire, is_event_stream
from jobqueue.job import UNFINISHED

POLL_SECONDS = 30.0
"""Seconds for which the service is asked to wait for a job's end, at the most; then it is asked again."""

LOOK_SECONDS = 1.0
"""Seconds for an answer at the end of a wait, when there is less time left than that."""

LAST = "end"
"""The event that ends a job's events."""

NOT_EVENTS = "the answer is not a stream of events: is this the URL of a job queue?"

_WAITED_THROUGH: Statuses = HARMLESS | frozenset(range(500, 600))


class Event(NamedTuple):
    """News of a job.

    Attributes:
        name: ``state``, ``progress``, ``checkpoint`` or ``end``, which is the last.
        data: the state and the attempt; the fraction and the message; the checkpoint; the whole job.
    """

    name: str
    data: Any


async def ended(wire: Wire, job_id: str, timeout: float) -> dict[str, Any]:
    """Return a job when it has ended.

    Args:
        timeout: seconds, or infinity.

    Raises:
        TimeoutError: it has not ended in time.
        JobNotFound: there is none.
    """
    give_up_at = wire.now() + timeout
    failures = 0
    while True:
        asked_at = wire.now()
        left = give_up_at - asked_at
        wait = max(0.0, min(POLL_SECONDS, left))
        seconds = min(wait + ANSWER_SECONDS, max(left, LOOK_SECONDS))
        request = build(wire, "GET", below("jobs", job_id), params={"wait": f"{wait:.3f}"}, seconds=seconds)
        failures += 1
        try:
            answer = await wire.send(request)
        except httpx.RequestError as error:
            pause = _pause(error, failures)
        else:
            again = pause_after_answer(answer, failures, _WAITED_THROUGH)
            if again is not None:
                pause = again
            else:
                job: dict[str, Any] = read(answer)
                if job["state"] not in UNFINISHED:
                    return job
                pause = backoff(failures)  # a node that stops answers at once
                if wire.now() - asked_at > wait / 2:
                    failures, pause = 0, 0.0  # it waited as it was asked to
        left = give_up_at - wire.now()
        if left <= 0:
            raise TimeoutError(f"job {job_id} has not ended within {timeout:g} s")
        await wire.sleep(min(pause, left))


async def events(wire: Wire, job_id: str) -> AsyncGenerator[Event, None]:
    """Iterate over the news of a job, to its end.

    Raises:
        JobNotFound: there is none.
    """
    failures = 0
    name = ""
    while name != LAST:
        failures += 1
        try:
            async with wire.stream(build(wire, "GET", below("jobs", job_id, "events"))) as (answer, chunks):
                pause = pause_after_answer(answer, failures, _WAITED_THROUGH)
                if pause is None:
                    if not is_event_stream(answer):
                        read(answer)
                        raise RequestRefused(answer.status_code, {"title": NOT_EVENTS})
                    stream = EventStream()
                    # Read to the end of the response: Trio warns about async generators that nobody has finished.
                    async for chunk in chunks:
                        for name, data in stream.feed(chunk):
                            failures = 1
                            yield Event(name, json.loads(data))
                    pause = backoff(failures)
        except httpx.RequestError as error:
            pause = _pause(error, failures)
        if name != LAST:
            await wire.sleep(pause)


def _pause(error: httpx.RequestError, failures: int) -> float:
    pause = pause_after_error(error, failures, _WAITED_THROUGH)
    if pause is None:
        raise unreachable(error, in_doubt=may_have_arrived(error)) from error
    return pause
