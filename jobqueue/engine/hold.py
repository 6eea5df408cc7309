"""Hold a node whose database is a copy, such as a restored dump, until somebody adopts the copy.

Otherwise, a staging copy would run production's jobs and schedules. A held node stores submissions, and responds to
requests, so it is ready. But it claims, promotes, recovers, and deletes no job. `jobqueue_internal.copied_from` in
schema/identity.sql decides.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import structlog
import trio

from jobqueue.errors import DatabaseUnavailable
from jobqueue.metrics import Metrics
from jobqueue.storage.roles.upkeep import UpkeepStore

CHECK_INTERVAL = 2.0
"""Seconds between two checks whether the copy has been adopted."""

ADVICE = "run jobqueue adopt if this database shall run the jobs"

log = structlog.get_logger()


class Hold:
    """Whether this node leaves all jobs alone.

    Attributes:
        reason: why the node is held, and what to do; None if it is not held.
    """

    def __init__(self, store: UpkeepStore, metrics: Metrics) -> None:
        self._store = store
        self._metrics = metrics
        self._released = trio.Event()
        self.reason: str | None = None

    async def begin(self, *, adopt: bool) -> None:
        """Hold the node if its database is a copy.

        Args:
            adopt: let the queue belong to this database instead.

        Raises:
            DatabaseUnavailable: PostgreSQL is unavailable.
        """
        if adopt and (origin := await self._store.adopt()):
            log.info("the copy is adopted", before=origin)
        await self._check()
        if self.reason:
            log.warning("all queues and schedules are on hold: the database is a copy", reason=self.reason)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Wait until the copy is adopted."""
        task_status.started()
        while not self._released.is_set():
            await trio.sleep(CHECK_INTERVAL)
            try:
                await self._check()
            except DatabaseUnavailable:
                continue
            if self._released.is_set():
                log.info("queues and schedules are released: the copy is adopted")
        await trio.sleep_forever()

    async def then(
        self, run: Callable[..., Awaitable[None]], *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Run a part of the node that acts on jobs, once the node is not held."""
        if not self._released.is_set():
            task_status.started()
            await self._released.wait()
            await run()
        else:
            await run(task_status=task_status)

    async def _check(self) -> None:
        origin = await self._store.copied_from()
        self.reason = f"{origin}: {ADVICE}" if origin else None
        self._metrics.on_hold.set(origin is not None)
        if origin is None:
            self._released.set()
