"""Chancy: asynchronous jobs on the worker's loop, with frequent polls."""

# mypy: ignore-errors

from __future__ import annotations

import logging

from adapter import CONNECTIONS, Adapter, Handle, Payload, main
from chancy import Chancy, Queue, Worker, job

CONCURRENCY = 200

seen: Handle


@job(queue="default")
async def noop(**payload: object) -> None:
    """Count the job."""
    seen(payload)


class ChancyQueue(Adapter):
    """One app for producers and worker."""

    async def open(self, address: str) -> None:
        log = logging.getLogger("chancy")
        log.setLevel(logging.ERROR)
        self._app = Chancy(address, min_connection_pool_size=CONNECTIONS, max_connection_pool_size=CONNECTIONS, log=log)
        await self._app.__aenter__()

    async def install(self) -> None:
        await self._app.migrate()
        executor = Chancy.Executor.Async
        await self._app.declare(
            Queue("default", concurrency=CONCURRENCY, executor=executor, eager_polling=True, polling_interval=1), upsert=True
        )

    async def submit(self, job: Payload) -> None:
        await self._app.push(noop.job.with_kwargs(**job))

    async def submit_many(self, jobs: list[Payload]) -> None:
        async for _ in self._app.push_many([noop.job.with_kwargs(**payload) for payload in jobs], batch_size=len(jobs)):
            pass

    async def work(self, address: str, handle: Handle) -> None:
        global seen  # noqa: PLW0603 - handlers are found by their import path
        seen = handle
        await self.open(address)
        async with Worker(self._app) as worker:
            await worker.wait_for_shutdown()


if __name__ == "__main__":
    main(ChancyQueue())
