"""Helpers for the tests of storage: submit, claim and finish with short calls."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import uuid_utils

from jobqueue import documents
from jobqueue.job import ClaimedJob, NewJob, Outcome, Verdict
from jobqueue.schema_names import DEFAULT
from jobqueue.storage.postgres.store import PostgresStore
from jobqueue.storage.roles import Store
from jobqueue.storage.roles.run import Node, Recovered, Want

BURY = """
    INSERT INTO jobqueue_internal.dead_jobs (id, queue, kind, priority, reason, payload, attempt, claims, created_at,
        available_since, died_at, errors)
    SELECT jobqueue_internal.uuid7(), %s, %s, 0, 'no luck', '{}', 1, 1, now(), now(), now() - n * interval '1 second', '[]'
      FROM generate_series(1, %s) AS n
"""
"""Create dead letters. The parameters are the queue, the kind, and the number of jobs."""


class Driver:
    """A store with one joined node, and defaults for the arguments of its verbs."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.node = new_id()

    async def join(self, *, lease: float = 3600, queues: Mapping[str, int] | None = None) -> str:
        """Join another node, which the driver uses from now on; return its id."""
        self.node = await self._enter(lease=lease, queues=queues or {"default": 1})
        return self.node

    async def recover(self) -> list[Recovered]:
        """Let another node take the expired leases of all nodes, and recover the jobs of lost nodes."""
        return await self.store.recover(judge=await self._enter(lease=30, queues={}))

    async def _enter(self, *, lease: float, queues: Mapping[str, int]) -> str:
        node = new_id()
        entry = Node(id=node, host="host", pid=os.getpid(), process=f"test:{node}", version="0", queues=queues)
        await self.store.join(entry, lease=lease)
        return node

    async def end_lease(self, *, ago: float = 0) -> None:
        """End the node's lease now, or this many seconds ago."""
        assert await self.store.heartbeat(self.node, lease=-ago) is not None

    async def submit(self, **fields: Any) -> str:
        [job_id] = await self.submit_many(fields)
        return job_id

    async def submit_many(self, *jobs: dict[str, Any]) -> list[str]:
        new = [NewJob(id=new_id(), **fields) for fields in jobs]
        await self.store.submit([documents.encode(job) for job in new], wake=False)
        return [job.id for job in new]

    async def claim(
        self, jobs: int = 100, *, queue: str = "default", floor: float | None = None, defaults: dict[str, int] | None = None
    ) -> list[ClaimedJob]:
        claimed = await self.store.claim(self.node, {queue: Want(jobs, floor)}, documents.encode(defaults or {}))
        return sorted(claimed, key=lambda job: job.rank)

    async def claim_one(self) -> ClaimedJob:
        [job] = await self.claim(1)
        return job

    async def finish(self, job: ClaimedJob, outcome: Verdict, *, node: str | None = None, **fields: Any) -> bool:
        """Finish one attempt; return whether the store accepted it."""
        ended = Outcome(id=job.id, claims=job.claims, outcome=outcome, **fields)
        return await self.store.finish(node or self.node, [ended]) == set()

    async def state(self, job_id: str) -> str | None:
        job = await self.store.job(job_id)
        return None if job is None else job.state

    async def in_state(self, state: str) -> ClaimedJob | str:
        """Make a job in this state. Return the claimed job if the job had to be claimed for that, otherwise its id."""
        if state == "scheduled":
            return await self.submit(delay=3600)
        job_id = await self.submit()
        if state == "pending":
            return job_id
        job = await self.claim_one()
        if state == "inflight":
            return job
        outcome: dict[str, Any] = {"succeeded": {}, "dead": {"reason": "no luck"}}[state]
        assert await self.finish(job, state, **outcome)  # type: ignore[arg-type]
        return job


def new_id() -> str:
    return str(uuid_utils.uuid7())


async def joined(store: Store) -> Driver:
    """Return a driver whose node has joined."""
    driver = Driver(store)
    await driver.join()
    return driver


@asynccontextmanager
async def open_driver(url: str, schema: str = DEFAULT) -> AsyncIterator[Driver]:
    """Open a driver on a database, and apply the schema."""
    store = PostgresStore(url, schema)
    await store.migrate()
    try:
        yield await joined(store)
    finally:
        await store.aclose()
