"""Wait for a job over HTTP: its events as they come (server-sent events), or its end (a long poll)."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any, Protocol

import msgspec
import trio

from jobqueue.errors import Unavailable
from jobqueue.job import UNFINISHED

MAX_WAIT = 60.0
"""The longest long poll, in seconds."""

KEEP_ALIVE = 15.0
"""Seconds without an event after which a comment is sent: proxies close what is silent."""

COMMENT = b": still here\n\n"

CONTENT_TYPE = "text/event-stream"

HEADERS = {"Content-Type": CONTENT_TYPE, "X-Accel-Buffering": "no"}
"""Of an answer that holds events; nginx would gather them."""

LAST_ID = "end"
"""The id of the last event. A browser that connects again with it is told to stop."""


class View(Protocol):
    """A job as its watchers see it."""

    @property
    def state(self) -> str: ...

    @property
    def attempt(self) -> int: ...

    @property
    def progress(self) -> Any: ...

    @property
    def checkpoint(self) -> Any: ...


class Watch(Protocol):
    """A look at one job that goes on."""

    @property
    def view(self) -> View | None:
        """The job as it is now; None before the first look. Its state may be ``gone``."""
        ...

    @property
    def kept(self) -> dict[str, Any] | None:
        """The job as a whole, where only this node knows of it any more."""
        ...

    @property
    def closed(self) -> bool:
        """Whether nothing more will be seen."""
        ...

    async def wait(self, seconds: float) -> bool:
        """Wait for another view than the last, or the end of the watch; False when neither comes in time."""
        ...


class Watchable(Protocol):
    """A node whose jobs can be watched."""

    async def job(self, id: str) -> dict[str, Any] | None:  # noqa: A002 - what it is called everywhere
        """Return a job, as JSON can hold it."""
        ...

    def watch(self, id: str) -> AbstractContextManager[Watch]:  # noqa: A002
        """Watch a job for as long as the context is open; raises `TooManyWatchers`."""
        ...


async def ended(node: Watchable, job_id: str, seconds: float) -> dict[str, Any] | None:
    """Return a job once it has ended, or after so many seconds, or when the node stops; None when there is none."""
    give_up_at = trio.current_time() + seconds
    with node.watch(job_id) as watch:
        job = await node.job(job_id)
        if job is None or job["state"] not in UNFINISHED:
            return job
        while (left := give_up_at - trio.current_time()) > 0 and not watch.closed:
            if watch.view is not None and watch.view.state not in UNFINISHED:
                break
            await watch.wait(left)
        return await node.job(job_id) or watch.kept


async def events(node: Watchable, job_id: str, go_on: Callable[[], bool]) -> AsyncIterator[bytes]:
    """Tell what becomes of a job, from its state now to its end; break off when the node stops, or the database is away.

    Args:
        node: where it is watched.
        job_id: a job that exists.
        go_on: called before each piece; the connection's patience begins anew with it, or it says that this is to be the end.
    """
    number = 0
    seen: View | None = None
    with node.watch(job_id) as watch:
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
                        job = await node.job(job_id) or watch.kept
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
    """Write one event. JSON has no line breaks outside of strings, and in them they are escaped: its data is one line."""
    return b"event: %s\nid: %s\ndata: %s\n\n" % (name.encode(), number.encode(), msgspec.json.encode(data))
