"""Change jobs, queues, and schedules for operators."""

from __future__ import annotations

import math
from dataclasses import replace

import msgspec
import trio
import uuid_utils
from msgspec import UNSET

from jobqueue.errors import KeyInUse, RefusedData
from jobqueue.job import (
    UNFINISHED,
    Change,
)
from jobqueue.job_filters import DeadFilter, JobFilter
from jobqueue.queue_settings import QueueSettings
from jobqueue.storage.roles.inspect import WALK_ROWS
from jobqueue.storage.roles.steer import CANCEL_BATCH, DEAD_BATCH, Cancelled
from jobqueue.testing.memory_store.inspect import MemoryInspect, not_empty, shown
from jobqueue.testing.memory_store.keys import hold_unique_key, unfinished, unique_key_of
from jobqueue.testing.memory_store.schedule import MemorySchedule
from jobqueue.testing.memory_store.state import SECOND, Row, StoredQueue, instant, without
from jobqueue.timetable import CronSchedule


class MemorySteer(MemorySchedule, MemoryInspect):
    """Implements `SteerStore`."""

    async def cancel(self, job_id: str, *, keep: bool = True) -> bool:
        await trio.lowlevel.checkpoint()
        row = self._rows.get(job_id)
        if row is None or row.state not in UNFINISHED:
            return False
        self._cancel(row, keep=keep)
        return True

    async def cancel_jobs(
        self, wanted: JobFilter, *, keep: bool = True, after: str | None = None, dry_run: bool = False
    ) -> Cancelled:
        await trio.lowlevel.checkpoint()
        if not UNFINISHED.issuperset(wanted.state or ()):
            raise RefusedData("state must be one of pending, blocked, scheduled, inflight, or an array of them", field="state")
        bounds = (None, 10 * WALK_ROWS) if dry_run else (CANCEL_BATCH, WALK_ROWS)
        found, rest = self._walk(wanted, wanted.state or UNFINISHED, after, *bounds)
        found = [row for row in found if row.cancel_requested_at is None]
        for row in [] if dry_run else found:
            self._cancel(row, keep=keep)
        return Cancelled(len(found), rest)

    async def change(self, job_id: str, change: Change) -> bool:
        await trio.lowlevel.checkpoint()
        row, now = self._rows.get(job_id), self._now()
        if row is None or row.state not in UNFINISHED or row.state == "inflight":
            return False
        priority = row.priority if change.priority is None else change.priority
        replace(row, priority=priority).check()
        run_at = None if change.run_at is None else instant(change.run_at)
        if change.delay is not None and run_at is None:
            run_at = now + round(change.delay * SECOND)
        put_off = run_at is not None and run_at > now
        if put_off or priority != row.priority:
            row.options = without(row.options, "rank", "turn")
        row.priority = priority
        if run_at is not None:
            row.available_since = run_at if put_off else min(row.available_since, now)
        if put_off or (row.state == "scheduled" and run_at is None):
            if row.state == "pending":
                self._check_key(row)
            row.state, row.run_at = "scheduled", run_at or row.run_at
            return True
        if "turn" not in (row.options or {}):
            self._take_turns([row], now)
        if row.state == "pending":  # the job still counts toward the limit of its concurrency key
            row.rank = self._rank(row)
        else:
            self._to_pending(row, refund=False)
        return True

    async def retry(self, job_id: str) -> bool:
        await trio.lowlevel.checkpoint()
        row = self._rows.get(job_id)
        if row is None or row.state != "dead":
            return False
        unique_key = unique_key_of(msgspec.to_builtins(shown(row)))
        if unique_key is not None:
            holder = hold_unique_key(self._keys, self._rows, unique_key, job_id, self._now())
            if holder != job_id:
                raise KeyInUse(
                    f"job {holder} has the same unique key and is not finished: try again when it has ended", field="unique_key"
                )
        self._redrive(row)
        return True

    async def discard(self, job_id: str) -> bool:
        await trio.lowlevel.checkpoint()
        row = self._rows.get(job_id)
        if row is None or row.state != "dead":
            return False
        del self._rows[job_id]
        return True

    async def retry_dead(self, wanted: DeadFilter, *, dry_run: bool = False) -> int:
        await trio.lowlevel.checkpoint()
        if dry_run:
            keys = [(row.id, unique_key_of(shown(row))) for row in self._wanted(not_empty(wanted))]
            held = {key: self._keys.get(("unique", key or "")) for _, key in keys}
            free = [
                key or job_id
                for job_id, key in keys
                if (holder := held[key]) is None or holder.job_id == job_id or not unfinished(self._rows.get(holder.job_id))
            ]
            return len(set(free))
        risen = 0
        for row in self._wanted(not_empty(wanted)):
            unique_key = unique_key_of(shown(row))
            if unique_key is None or hold_unique_key(self._keys, self._rows, unique_key, row.id, self._now()) == row.id:
                self._redrive(row)
                risen += 1
            if risen == DEAD_BATCH:
                break
        return risen

    async def discard_dead(self, wanted: DeadFilter, *, dry_run: bool = False) -> int:
        await trio.lowlevel.checkpoint()
        rows = self._wanted(not_empty(wanted))[: None if dry_run else DEAD_BATCH]
        for row in [] if dry_run else rows:
            del self._rows[row.id]
        return len(rows)

    async def pause(self, queue: str, *, paused: bool) -> None:
        await trio.lowlevel.checkpoint()
        self._queues.setdefault(queue, StoredQueue(self._now())).paused = paused

    async def configure(self, queue: str, settings: QueueSettings) -> None:
        await trio.lowlevel.checkpoint()
        configured = self._queues.setdefault(queue, StoredQueue(self._now()))
        given = {name: value for name, value in msgspec.structs.asdict(settings).items() if value is not UNSET}
        if "aging_interval" in given:
            configured.aging_interval = given.pop("aging_interval")
        if configured.settings["rate"] is None and given.get("rate") is not None:
            configured.tokens = math.inf
        configured.settings |= given
        self._key_checks += {(row.queue, str(row.key)) for row in self._in("blocked") if row.queue == queue}

    async def put_schedule(self, schedule: CronSchedule) -> bool:
        await trio.lowlevel.checkpoint()
        known = schedule.name in self._schedules
        self._put(schedule, None)
        return not known

    async def unschedule(self, name: str) -> bool:
        await trio.lowlevel.checkpoint()
        return self._schedules.pop(name, None) is not None

    async def pause_schedule(self, name: str, *, paused: bool) -> bool:
        await trio.lowlevel.checkpoint()
        schedule = self._schedules.get(name)
        if schedule is None:
            return False
        schedule.paused = paused
        if paused:
            schedule.next_at = schedule.error = None
        return True

    async def trigger_schedule(self, name: str) -> str | None:
        await trio.lowlevel.checkpoint()
        schedule = self._schedules.get(name)
        if schedule is None:
            return None
        job_id = str(uuid_utils.uuid7())
        self._submit_batch([msgspec.json.encode({"id": job_id, **schedule.job(None)})], again=False, key_ttl=None)
        self._uncounted += 1
        return job_id

    def _cancel(self, row: Row, *, keep: bool) -> None:
        if row.state == "inflight":
            row.cancel_requested_at = row.cancel_requested_at or self._now()
            return
        self._check_key(row)
        row.end("cancelled", self._now())
        if not keep:
            del self._rows[row.id]

    def _redrive(self, row: Row) -> None:
        row.attempt = 0
        row.available_since = self._now()
        row.options = without(row.options, "expires_at", "rank", "turn")
        self._take_turns([row], row.available_since)
        self._to_pending(row, refund=False)
