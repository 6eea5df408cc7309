"""Delete old data, and write the history."""

from __future__ import annotations

from jobqueue.metrics import Totals
from jobqueue.storage.postgres.lanes import Lanes, fetch_rows, fetch_value, integer, optional_text
from jobqueue.storage.roles.upkeep import PRUNE_BATCH, Maintained, Recorded


class PostgresUpkeep(Lanes):
    """Implements `UpkeepStore`."""

    async def copied_from(self) -> str | None:
        return optional_text(await self._housekeeping.run(fetch_value("SELECT jobqueue_internal.copied_from()")))

    async def adopt(self) -> str | None:
        return optional_text(await self._housekeeping.run(fetch_value("SELECT jobqueue_internal.adopt()")))

    async def maintain(self, *, keep_finished: float, keep_cancelled: float) -> Maintained:
        sql = "SELECT dropped, failed FROM jobqueue_internal.maintain(%s, %s)"
        [row] = await self._housekeeping.run(fetch_rows(sql, keep_finished, keep_cancelled))
        return Maintained(row["dropped"], row["failed"])

    async def prune(self, *, keep_finished: float, keep_cancelled: float, keep_dead: float) -> int:
        sql = "SELECT jobqueue_internal.prune(%s, %s, %s, %s)"
        return integer(await self._housekeeping.run(fetch_value(sql, keep_finished, keep_cancelled, keep_dead, PRUNE_BATCH)))

    async def prune_keys(self) -> int:
        return integer(await self._housekeeping.run(fetch_value("SELECT jobqueue_internal.prune_keys(%s)", PRUNE_BATCH)))

    async def record(self, counts: Totals, *, sample: bool = False) -> Recorded:
        sql = "SELECT * FROM jobqueue_internal.record(%s, %s, %s, %s, %s::integer[], %s::integer[], %s)"
        *jobs, waits, runs = counts
        [row] = await self._inspect.run(fetch_rows(sql, *jobs, list(waits), list(runs), sample))
        return Recorded(row["next_in"], row["next_sample"])
