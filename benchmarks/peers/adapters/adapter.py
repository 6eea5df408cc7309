"""The base of all Python adapters: a job queue with five operations, and a command line that runs one load on it.

    python for_QUEUE.py ROLE ADDRESS OPTIONS

It runs with the interpreter of the measured queue, so this file needs only the standard library. ADDRESS is a database URL (for
jobqueue over HTTP, the service's URL), and OPTIONS is a JSON object. The program prints events, one JSON object per line:

    install                        create the schema                            {"event": "done", "seconds": ...}
    single   jobs, producers       concurrent callers, one job per call         the same; "warm" submits a few jobs first,
                                                                                to open the connections
    bulk     jobs, batch           one caller, a batch of jobs per call         the same
    trickle  jobs, pause           a job, a pause in seconds, a job, ...        the same
    work     jobs, timed           run jobs until killed                        {"event": "first"} and, after `jobs` jobs,
                                                                                {"event": "handled", "first": ..., "latencies": ...}

`adapter.mjs` does the same for Node.js.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Callable, Coroutine
from typing import Any

CONNECTIONS = 16
"""Number of connections of the producers to the database, one for each producer."""

PADDING = "x" * 40
"""Padding that makes a payload 79 bytes long."""

Payload = dict[str, Any]
Handle = Callable[[Payload], None]


def payload() -> Payload:
    """Return a payload with the time of its submission, on the wall clock that all processes share."""
    return {"sent": round(time.time(), 6), "padding": PADDING}


def say(event: str, **fields: Any) -> None:
    """Print an event for the runner."""
    print(json.dumps({"event": event, **fields}), flush=True)


class Seen:
    """The body of every handler, which counts its jobs.

    Args:
        jobs: the number of jobs after which it reports.
        timed: whether to record also the latency from submission to handler.
    """

    def __init__(self, jobs: int, *, timed: bool) -> None:
        self._jobs = jobs
        self._timed = timed
        self._count = 0
        self._first = 0.0
        self._latencies: list[float] = []

    def __call__(self, job: Payload) -> None:
        if self._timed:
            self._latencies.append(time.time() - job["sent"])
        if self._count == 0:
            self._first = time.time()
            say("first")
        self._count += 1
        if self._count == self._jobs:
            say("handled", first=self._first, latencies=self._latencies)


class Adapter:
    """The operations of a job queue."""

    async def open(self, address: str) -> None:
        """Connect, as a producer or for `install`."""
        raise NotImplementedError

    async def install(self) -> None:
        """Create the schema in an empty database."""
        raise NotImplementedError

    async def submit(self, job: Payload) -> None:
        """Submit one job. The job is durable when this returns. Several callers run at once."""
        raise NotImplementedError

    async def submit_many(self, jobs: list[Payload]) -> None:
        """Submit jobs in one call."""
        raise NotImplementedError

    async def work(self, address: str, handle: Handle) -> None:
        """Run jobs forever. Each job calls `handle` with its payload and does nothing else."""
        raise NotImplementedError


async def _single(adapter: Adapter, jobs: int, producers: int) -> None:
    left = iter(range(jobs))

    async def produce() -> None:
        for _ in left:
            await adapter.submit(payload())

    await asyncio.gather(*(produce() for _ in range(producers)))


async def _bulk(adapter: Adapter, jobs: int, batch: int) -> None:
    for start in range(0, jobs, batch):
        await adapter.submit_many([payload() for _ in range(min(batch, jobs - start))])


async def _trickle(adapter: Adapter, jobs: int, pause: float) -> None:
    for _ in range(jobs):
        await adapter.submit(payload())
        await asyncio.sleep(pause)


LOADS: dict[str, Callable[..., Coroutine[Any, Any, None]]] = {"single": _single, "bulk": _bulk, "trickle": _trickle}


async def _run(adapter: Adapter, role: str, address: str, options: dict[str, Any]) -> None:
    if role == "work":
        await adapter.work(address, Seen(**options))
        return
    await adapter.open(address)
    if options.pop("warm", False):
        await _single(adapter, 2 * CONNECTIONS, CONNECTIONS)
    started = time.perf_counter()
    await (LOADS[role](adapter, **options) if role in LOADS else adapter.install())
    say("done", seconds=time.perf_counter() - started)


def main(adapter: Adapter, run: Callable[[Any], Any] = asyncio.run) -> None:
    """Run the load of the command line.

    Args:
        adapter: the job queue.
        run: runs the event loop that the queue recommends.
    """
    role, address, options = sys.argv[1:]
    run(_run(adapter, role, address, json.loads(options)))
