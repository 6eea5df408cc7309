"""Wait for a job's end or for its events, even while the service restarts or is unavailable."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from typing import Any, NamedTuple

import httpx

from jobqueue.client.errors import RequestRefused
from jobqueue.client.event_stream import EventStream
from jobqueue.client.requests import ANSWER_SECONDS, below, build, read
from jobqueue.client.retries import (
    HARMLESS,
    Statuses,
    backoff,
    may_have_arrived,
    pause_after_answer,
    pause_after_error,
    unreachable,
)
from jobqueue.client.transports import Transport, is_event_stream
from jobqueue.job import UNFINISHED

POLL_SECONDS = 30.0
"""Maximum duration of one long poll for a job's end, in seconds."""

LOOK_SECONDS = 1.0
"""Minimum timeout of a request, in seconds, even if less time is left."""

LAST = "end"
"""The name of a job's last event."""

NOT_EVENTS = "the response is not an event stream: check that the URL is a jobqueue service"

_WAITED_THROUGH: Statuses = HARMLESS | frozenset(range(500, 600))


class Event(NamedTuple):
    """An event of a job.

    Attributes:
        name: ``state``, ``progress``, ``checkpoint`` or ``end``, which is the last.
        data: for ``state``, the state and the attempt; for ``progress``, the fraction and the message; for ``checkpoint``,
            the checkpoint; for ``end``, the whole job.
    """

    name: str
    data: Any


async def ended(transport: Transport, job_id: str, timeout: float) -> dict[str, Any]:
    """Wait until a job has ended, and return it.

    Args:
        timeout: seconds, or infinity.

    Raises:
        TimeoutError: the job has not ended in time.
        JobNotFound: the job does not exist.
    """
    give_up_at = transport.now() + timeout
    failures = 0
    while True:
        asked_at = transport.now()
        left = give_up_at - asked_at
        wait = max(0.0, min(POLL_SECONDS, left))
        seconds = min(wait + ANSWER_SECONDS, max(left, LOOK_SECONDS))
        request = build(transport, "GET", below("jobs", job_id), params={"wait": f"{wait:.3f}"}, seconds=seconds)
        failures += 1
        try:
            answer = await transport.send(request)
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
                pause = backoff(failures)  # a node responds at once while it shuts down, so pause
                if transport.now() - asked_at > wait / 2:
                    failures, pause = 0, 0.0  # the service has waited as requested
        left = give_up_at - transport.now()
        if left <= 0:
            raise TimeoutError(f"job {job_id} has not ended within {timeout:g} s")
        await transport.sleep(min(pause, left))


async def events(transport: Transport, job_id: str) -> AsyncGenerator[Event, None]:
    """Yield a job's events until its end.

    Raises:
        JobNotFound: the job does not exist.
    """
    failures = 0
    name = ""
    while name != LAST:
        failures += 1
        try:
            async with transport.stream(build(transport, "GET", below("jobs", job_id, "events"))) as (answer, chunks):
                pause = pause_after_answer(answer, failures, _WAITED_THROUGH)
                if pause is None:
                    if not is_event_stream(answer):
                        read(answer)
                        raise RequestRefused(answer.status_code, {"title": NOT_EVENTS})
                    stream = EventStream()
                    # Read the whole response, because Trio warns about unfinished async generators.
                    async for chunk in chunks:
                        for name, data in stream.feed(chunk):
                            failures = 1
                            yield Event(name, json.loads(data))
                    pause = backoff(failures)
        except httpx.RequestError as error:
            pause = _pause(error, failures)
        if name != LAST:
            await transport.sleep(pause)


def _pause(error: httpx.RequestError, failures: int) -> float:
    pause = pause_after_error(error, failures, _WAITED_THROUGH)
    if pause is None:
        raise unreachable(error, in_doubt=may_have_arrived(error)) from error
    return pause
