"""Wait for a job over HTTP: stream its events (server-sent events), or wait for its end (a long poll)."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import msgspec
import trio

from jobqueue.engine.job_watcher import View, Watch
from jobqueue.engine.operations import Operations
from jobqueue.errors import Unavailable
from jobqueue.http.api import converters
from jobqueue.job import UNFINISHED

MAX_WAIT = 60.0
"""Maximum duration of a long poll, in seconds."""

KEEP_ALIVE = 15.0
"""Seconds without an event after which the service sends a comment. Otherwise a proxy may close the silent connection."""

COMMENT = b": still here\n\n"

CONTENT_TYPE = "text/event-stream"

HEADERS = {"Content-Type": CONTENT_TYPE, "X-Accel-Buffering": "no"}
"""Headers of an event stream. The second header turns off nginx's buffering."""

LAST_ID = "end"
"""The id of the last event. If a browser reconnects with this id, it gets a 204 and stops."""


async def details(node: Operations, job_id: str, watch: Watch | None = None) -> dict[str, Any] | None:
    """Return a `models.JobDetails`; None if the job does not exist. If it is not stored, return what a watch has kept of it."""
    job = await node.store.job(job_id)
    if job is not None:
        return converters.details(job)
    return converters.unstored(watch.kept) if watch is not None and watch.kept is not None else None


async def ended(node: Operations, job_id: str, seconds: float) -> dict[str, Any] | None:
    """Wait until a job has ended, `seconds` have passed, or the node stops. Return it like `details`."""
    give_up_at = trio.current_time() + seconds
    with node.watcher.watch(job_id) as watch:
        job = await details(node, job_id)
        if job is None or job["state"] not in UNFINISHED:
            return job
        while (left := give_up_at - trio.current_time()) > 0 and not watch.closed:
            if watch.view is not None and watch.view.state not in UNFINISHED:
                break
            await watch.wait(left)
        return await details(node, job_id, watch)


async def events(node: Operations, job_id: str, go_on: Callable[[], bool]) -> AsyncIterator[bytes]:
    """Yield the events of a job, from its current state to its end.

    The stream ends early when the node stops, or when the database is unavailable.

    Args:
        node: the node that watches the job.
        job_id: the id of an existing job.
        go_on: called before each part; it extends the connection's deadline, or returns False to end the stream.
    """
    number = 0
    seen: View | None = None
    with node.watcher.watch(job_id) as watch:
        while not watch.closed:
            view = watch.view
            if view is not None:
                for name, data in _news(seen, view):
                    number += 1
                    if not go_on():
                        return
                    yield _event(name, str(number), data)
                seen = view
                if view.state not in UNFINISHED:
                    try:
                        job = await details(node, job_id, watch)
                    except Unavailable:
                        return
                    if go_on():
                        yield _event("end", LAST_ID, job or {"id": job_id, "state": "gone"})
                    return
            if not await watch.wait(KEEP_ALIVE):
                if not go_on():
                    return
                yield COMMENT


def _news(seen: View | None, view: View) -> Iterator[tuple[str, Any]]:
    if seen is None or (seen.state, seen.attempt) != (view.state, view.attempt):
        yield "state", {"state": view.state, "attempt": view.attempt}
    if view.progress is not None and (seen is None or seen.progress != view.progress):
        yield "progress", view.progress
    if view.checkpoint is not None and (seen is None or seen.checkpoint != view.checkpoint):
        yield "checkpoint", view.checkpoint


def _event(name: str, number: str, data: Any) -> bytes:
    """Encode one event. The JSON needs only one line: msgspec writes no line breaks, and escapes line breaks in strings."""
    return b"event: %s\nid: %s\ndata: %s\n\n" % (name.encode(), number.encode(), msgspec.json.encode(data))
