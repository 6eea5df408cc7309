"""PgQueuer on asyncpg and uvloop, as in its command line, with batches of 100 jobs."""

# mypy: ignore-errors

from __future__ import annotations

import json

import asyncpg
import uvloop
from adapter import CONNECTIONS, Adapter, Handle, Payload, main
from pgqueuer import PgQueuer
from pgqueuer.db import AsyncpgDriver, AsyncpgPoolDriver
from pgqueuer.models import Job
from pgqueuer.queries import Queries

BATCH = 100


class Pgqueuer(Adapter):
    """A pool for the producers, and a connection for the worker."""

    async def open(self, address: str) -> None:
        pool = await asyncpg.create_pool(address, min_size=CONNECTIONS, max_size=CONNECTIONS)
        self._queries = Queries(AsyncpgPoolDriver(pool))

    async def install(self) -> None:
        await self._queries.install()

    async def submit(self, job: Payload) -> None:
        await self._queries.enqueue("noop", json.dumps(job).encode())

    async def submit_many(self, jobs: list[Payload]) -> None:
        await self._queries.enqueue(["noop"] * len(jobs), [json.dumps(job).encode() for job in jobs], [0] * len(jobs))

    async def work(self, address: str, handle: Handle) -> None:
        worker = PgQueuer(AsyncpgDriver(await asyncpg.connect(address)))

        @worker.entrypoint("noop")
        async def noop(job: Job) -> None:
            handle(json.loads(job.payload))

        await worker.run(batch_size=BATCH)


if __name__ == "__main__":
    main(Pgqueuer(), run=uvloop.run)
