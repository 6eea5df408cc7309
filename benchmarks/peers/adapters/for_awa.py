"""Awa: Python handlers on its Rust core; bulk submissions use COPY."""

# mypy: ignore-errors

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from adapter import CONNECTIONS, Adapter, Handle, Payload, main
from awa import AsyncClient, Job

WORKERS = 200


@dataclass
class Noop:
    """The payload."""

    sent: float
    padding: str


class Awa(Adapter):
    """One client for the producers, and one client for the worker."""

    async def open(self, address: str) -> None:
        # Awa's driver requires a host before the URL's path, but uses the host in the URL's query.
        self._client = AsyncClient(address.replace("@/", "@localhost/"), max_connections=CONNECTIONS)

    async def install(self) -> None:
        await self._client.migrate()
        await self._client.install_queue_storage()

    async def submit(self, job: Payload) -> None:
        await self._client.insert(Noop(**job))

    async def submit_many(self, jobs: list[Payload]) -> None:
        await self._client.enqueue_many_copy([Noop(**job) for job in jobs])

    async def work(self, address: str, handle: Handle) -> None:
        await self.open(address)

        @self._client.task(Noop, queue="default")
        async def noop(job: Job[Noop]) -> None:
            handle({"sent": job.args.sent})

        await self._client.start([("default", WORKERS)])
        await asyncio.Event().wait()


if __name__ == "__main__":
    main(Awa())
