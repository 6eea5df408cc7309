"""Delete old data, and write the history."""

from __future__ import annotations

from itertools import zip_longest

import trio

from jobqueue.job import JobState
from jobqueue.metrics import Totals
from jobqueue.storage.roles.inspect import HISTORY
from jobqueue.storage.roles.upkeep import PRUNE_BATCH, Maintained, Recorded
from jobqueue.testing.memory_store.keys import unfinished
from jobqueue.testing.memory_store.state import DAY, SECOND, KeptSlot, State

_COUNTED: tuple[JobState, ...] = ("pending", "scheduled", "blocked", "inflight", "dead")


class MemoryUpkeep(State):
    """Implements `UpkeepStore`."""

    async def copied_from(self) -> str | None:
        await trio.lowlevel.checkpoint()
        return None

    async def adopt(self) -> str | None:
        await trio.lowlevel.checkpoint()
        return None

    async def maintain(self, *, keep_finished: float, keep_cancelled: float) -> Maintained:
        await trio.lowlevel.checkpoint()
        now = self._now()
        dropped = 0
        for finished, keep in ((self._in("succeeded"), keep_finished), (self._in("cancelled"), keep_cancelled)):
            days = {row.day for row in finished if (row.day + 1) * DAY < now - round(keep * SECOND)}
            for row in finished:
                if row.day in days:
                    del self._rows[row.id]
            dropped += len(days)
        return Maintained(dropped)

    async def prune(
        self,
        *,
        keep_finished: float,  # noqa: ARG002 - `maintain` deletes all finished jobs
        keep_cancelled: float,  # noqa: ARG002
        keep_dead: float,
    ) -> int:
        await trio.lowlevel.checkpoint()
        before = self._now() - round(keep_dead * SECOND)
        old = sorted((row for row in self._in("dead") if row.ended < before), key=lambda row: row.ended)[:PRUNE_BATCH]
        for row in old:
            del self._rows[row.id]
        return len(old)

    async def prune_keys(self) -> int:
        await trio.lowlevel.checkpoint()
        now = self._now()
        old = sorted(((scope, key) for (scope, key), held in self._keys.items() if held.expires_at <= now))[:PRUNE_BATCH]
        for scope, key in old:
            if scope == "unique" and unfinished(self._rows.get(self._keys[scope, key].job_id)):
                self._keys[scope, key].expires_at = now + DAY
            else:
                del self._keys[scope, key]
        return len(old)

    async def record(self, counts: Totals, *, sample: bool = False) -> Recorded:
        await trio.lowlevel.checkpoint()
        now = self._now()
        over = now // (10 * SECOND) * 10 * SECOND - 10 * SECOND
        first = (10, over) not in self._history
        if first:
            counts = counts._replace(submitted=counts.submitted + self._uncounted)
            self._uncounted = 0
            kept = {step: over - seconds * SECOND for step, seconds in HISTORY.items()}
            self._history = {place: slot for place, slot in self._history.items() if place[1] >= kept[place[0]]}
        for step in HISTORY:
            slot = self._history.setdefault((step, over // (step * SECOND) * step * SECOND), KeptSlot(Totals(0, 0, 0, 0)))
            slot.counts = _merged(slot.counts, counts)
            if sample:
                slot.depth = {state: len(self._in(state)) for state in _COUNTED}
        return Recorded((over + 20 * SECOND - now) / SECOND, first)


def _merged(one: Totals, other: Totals) -> Totals:
    return Totals(
        submitted=one.submitted + other.submitted,
        completed=one.completed + other.completed,
        failed=one.failed + other.failed,
        dead=one.dead + other.dead,
        waits=[a + b for a, b in zip_longest(one.waits, other.waits, fillvalue=0)],
        runs=[a + b for a, b in zip_longest(one.runs, other.runs, fillvalue=0)],
    )
