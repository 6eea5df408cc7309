"""Count the jobs of all queues, rarely enough that counting stays cheap."""

from __future__ import annotations

import math

import msgspec
import trio

from jobqueue.storage.roles.inspect import Depth, InspectStore, QueueEntry, Rates

DEPTH_INTERVAL = 1.0
"""Minimum time for which a count is reused, in seconds."""

DEPTH_SHARE = 20
"""If a count takes *t*, it is reused for this many times *t*. So counting stays cheap even with a million jobs."""


class BusyQueue(QueueEntry, kw_only=True):
    """A queue with its work on all nodes.

    Attributes:
        depth: the number of jobs, by state.
        oldest: the age of the oldest job in seconds, by state; see `Depth`.
        throughput: its rates.
    """

    depth: dict[str, int]
    oldest: dict[str, float]
    throughput: Rates


class Depths:
    """Caches the queue depths."""

    def __init__(self, store: InspectStore) -> None:
        self._store = store
        self._counting = trio.Lock()
        self._counted: list[Depth] = []
        self._counted_at = -math.inf
        self._took = 0.0

    async def counted(self, *, share: int = DEPTH_SHARE) -> list[Depth]:
        """Return the depths: the last count if it is recent, or else a new count.

        Args:
            share: if a count takes *t*, reuse it for this many times *t*.

        Raises:
            DatabaseUnavailable: PostgreSQL is unavailable.
        """
        async with self._counting:
            now = trio.current_time()
            if now >= self._counted_at + max(DEPTH_INTERVAL, self._took * share):
                self._counted = await self._store.depths()
                self._counted_at, self._took = now, trio.current_time() - now
            return self._counted

    async def queues(self, *, share: int = DEPTH_SHARE) -> list[BusyQueue]:
        """Return every known queue with its depth and oldest job's age by state, and its recent throughput on all nodes.

        Args:
            share: see `counted`.
        """
        depths: dict[str, dict[str, int]] = {}
        oldest: dict[str, dict[str, float]] = {}
        for depth in await self.counted(share=share):
            depths.setdefault(depth.queue, {})[depth.state] = depth.jobs
            oldest.setdefault(depth.queue, {})[depth.state] = depth.oldest
        rates = await self._store.throughput()
        known = {entry.name: entry for entry in await self._store.queues()}
        for name in depths.keys() - known.keys():
            known[name] = QueueEntry(name=name)
        return [
            BusyQueue(
                **msgspec.structs.asdict(known[name]),
                depth=depths.get(name, {}),
                oldest=oldest.get(name, {}),
                throughput=Rates(*rates.get(name, (0.0, 0.0))),
            )
            for name in sorted(known)
        ]
