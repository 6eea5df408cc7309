"""What every Python adapter is: a job queue behind five verbs, and a command line that puts one load on it.

    python for_QUEUE.py ROLE ADDRESS OPTIONS

It runs under the interpreter of the measured queue, so this file needs the standard library alone. ADDRESS is a database URL (for
our HTTP the service's) and OPTIONS a JSON object. What happened is said in JSON, a line an event:

    install                        make the schema                              {"event": "done", "seconds": ...}
    single   jobs, producers       so many concurrent callers, a job a call     the same; with "warm" after a few jobs more,
                                                                                so that the connections are made
    bulk     jobs, batch           one caller, so many jobs a call              the same
    trickle  jobs, pause           a job, a pause of so many seconds, a job     the same
    work     jobs, timed           run jobs until killed                        {"event": "first"} and then, after so many jobs,
                                                                                {"event": "handled", "first": ..., "latencies": ...}

`adapter.mjs` is the same for Node.js.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Callable, Coroutine
from typing import Any

CONNECTIONS = 16
"""To the database, for the producers: as many as there are of them."""

PADDING = "x" * 40
"""Makes a payload of 79 bytes."""

Payload = dict[str, Any]
Handle = Callable[[Payload], None]


def payload() -> Payload:
    """Make a payload that tells when it was submitted, by the wall clock that all processes share."""
    return {"sent": round(time.time(), 6), "padding": PADDING}


def say(event: str, **fields: Any) -> None:
    """Tell the runner."""
    print(json.dumps({"event": event, **fields}), flush=True)


class Seen:
    """The work of every handler: count the job.

    Args:
        jobs: after so many, it is said.
        timed: take the time from submit to here as well.
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
    """A job queue, in its own words."""

    async def open(self, address: str) -> None:
        """Connect, as a producer or for `install`."""
        raise NotImplementedError

    async def install(self) -> None:
        """Make the schema in an empty database."""
        raise NotImplementedError

    async def submit(self, job: Payload) -> None:
        """Submit one job; durable when it returns. There are several callers at once."""
        raise NotImplementedError

    async def submit_many(self, jobs: list[Payload]) -> None:
        """Submit jobs, all in one call."""
        raise NotImplementedError

    async def work(self, address: str, handle: Handle) -> None:
        """Run jobs for ever: each calls `handle` with its payload and does nothing else."""
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
    """Do what the command line says.

    Args:
        run: the event loop to run on, where the queue recommends one.
    """
    role, address, options = sys.argv[1:]
    run(_run(adapter, role, address, json.loads(options)))
