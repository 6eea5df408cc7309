"""How much there is to do: the depths of all queues, counted seldom enough that counting stays cheap."""

from __future__ import annotations

import math
from typing import Any

import trio

from jobqueue.job import QueueSettings
from jobqueue.storage.store import Depth, Store

DEPTH_INTERVAL = 1.0
"""Seconds for which counted depths are shown again, at the least."""

DEPTH_SHARE = 20
"""Depths are shown again for this many times as long as counting them took: with a million jobs it stays cheap."""

_UNSET = dict.fromkeys(QueueSettings.__struct_fields__) | {"aging_interval": 1.0}
"""The settings of a queue that nobody has set."""


class Depths:
    """The depths, for whoever asks."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._counting = trio.Lock()
        self._counted: list[Depth] = []
        self._counted_at = -math.inf
        self._took = 0.0

    async def counted(self, *, share: int = DEPTH_SHARE) -> list[Depth]:
        """Count them, or give the last count again while it is young.

        Args:
            share: for how many times as long as it took the last count is young.

        Raises:
            DatabaseUnavailable: PostgreSQL is away.
        """
        async with self._counting:
            now = trio.current_time()
            if now >= self._counted_at + max(DEPTH_INTERVAL, self._took * share):
                self._counted = await self._store.depths()
                self._counted_at, self._took = now, trio.current_time() - now
            return self._counted

    async def queues(self, *, share: int = DEPTH_SHARE) -> list[dict[str, Any]]:
        """Every queue that is known, with its depth and the age of the oldest job by state, and what all nodes did of late.

        Args:
            share: see `counted`.
        """
        depths: dict[str, dict[str, int]] = {}
        oldest: dict[str, dict[str, float]] = {}
        for depth in await self.counted(share=share):
            depths.setdefault(depth.queue, {})[depth.state] = depth.jobs
            oldest.setdefault(depth.queue, {})[depth.state] = depth.oldest
        rates = await self._store.throughput()
        known = {row["name"]: row for row in await self._store.queues()}
        for name in depths.keys() - known.keys():
            known[name] = {"name": name, "paused": False, "created_at": None} | _UNSET
        return [
            {
                **known[name],
                "depth": depths.get(name, {}),
                "oldest": oldest.get(name, {}),
                "throughput": dict(zip(("completed", "failed"), rates.get(name, (0.0, 0.0)), strict=True)),
            }
            for name in sorted(known)
        ]
