"""Procrastinate: asynchronous tasks, many at once; notifications wake the worker."""

# mypy: ignore-errors

from __future__ import annotations

import logging

from adapter import CONNECTIONS, Adapter, Handle, Payload, main
from procrastinate import App, PsycopgConnector

CONCURRENCY = 30


class Procrastinate(Adapter):
    """One app for producers and worker."""

    _handle: Handle

    async def open(self, address: str) -> None:
        logging.disable(logging.WARNING)
        self._app = App(connector=PsycopgConnector(conninfo=address, min_size=CONNECTIONS, max_size=CONNECTIONS))

        @self._app.task(name="noop")
        async def noop(**job: object) -> None:
            self._handle(job)

        self._task = noop
        await self._app.open_async()

    async def install(self) -> None:
        await self._app.schema_manager.apply_schema_async()

    async def submit(self, job: Payload) -> None:
        await self._task.defer_async(**job)

    async def submit_many(self, jobs: list[Payload]) -> None:
        await self._task.batch_defer_async(*jobs)

    async def work(self, address: str, handle: Handle) -> None:
        await self.open(address)
        self._handle = handle
        await self._app.run_worker_async(concurrency=CONCURRENCY)


if __name__ == "__main__":
    main(Procrastinate())
