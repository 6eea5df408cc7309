"""jobqueue's SQL functions, called with psycopg: one job per transaction, or an array of jobs as one parameter."""

# mypy: disable-error-code="import-not-found, misc"

from __future__ import annotations

import asyncio
import json

import psycopg
from adapter import CONNECTIONS, Adapter, Payload, main

from jobqueue.storage import schema
from jobqueue.storage.connection import connect


class JobqueueSql(Adapter):
    """One connection for each concurrent caller."""

    async def open(self, address: str) -> None:
        self._url = address
        connecting = [psycopg.AsyncConnection.connect(address, autocommit=True, prepare_threshold=0) for _ in range(CONNECTIONS)]
        self._free = await asyncio.gather(*connecting)

    async def install(self) -> None:
        with connect(self._url, "migrate") as connection:
            schema.migrate(connection)

    async def submit(self, job: Payload) -> None:
        connection = self._free.pop()
        await connection.execute("SELECT jobqueue.submit('noop', %s)", [json.dumps(job)])
        self._free.append(connection)

    async def submit_many(self, jobs: list[Payload]) -> None:
        document = json.dumps([{"kind": "noop", "payload": job} for job in jobs])
        await self._free[0].execute("SELECT jobqueue.submit_many(%s)", [document])


if __name__ == "__main__":
    main(JobqueueSql())
