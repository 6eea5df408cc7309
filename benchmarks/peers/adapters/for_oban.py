"""Oban for Python, on uvloop as in its command line, with a queue that runs 500 jobs at once."""

# mypy: ignore-errors

from __future__ import annotations

import asyncio

import uvloop
from adapter import CONNECTIONS, Adapter, Handle, Payload, main
from oban import Job, Oban, worker
from oban.schema import install

LIMIT = 500

seen: Handle


@worker(queue="default")
class Noop:
    """Count the job."""

    async def process(self, job: Job) -> None:
        seen(job.args)


class ObanQueue(Adapter):
    """A client without queues for the producers, and a server with one queue."""

    async def open(self, address: str) -> None:
        self._pool = await Oban.create_pool(address, min_size=CONNECTIONS, max_size=CONNECTIONS)
        self._oban = Oban(pool=self._pool)

    async def install(self) -> None:
        await install(self._pool)

    async def submit(self, job: Payload) -> None:
        await self._oban.enqueue(Noop.new(job))

    async def submit_many(self, jobs: list[Payload]) -> None:
        await self._oban.enqueue_many(Noop.new(job) for job in jobs)

    async def work(self, address: str, handle: Handle) -> None:
        global seen  # noqa: PLW0603 - handlers are found by their import path
        seen = handle
        pool = await Oban.create_pool(address, min_size=CONNECTIONS, max_size=CONNECTIONS)
        async with Oban(pool=pool, queues={"default": LIMIT}):
            await asyncio.Event().wait()


if __name__ == "__main__":
    main(ObanQueue(), run=uvloop.run)
