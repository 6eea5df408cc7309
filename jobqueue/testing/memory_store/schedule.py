"""Make jobs runnable when they are due: delayed jobs, jobs with concurrency keys, and cron schedules."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import msgspec
import trio

from jobqueue.storage.claims import Expired
from jobqueue.storage.roles.schedule import (
    ADMIT_BATCH,
    PROMOTE_BATCH,
    SCHEDULE_BATCH,
    Admission,
    DueSchedule,
    DueSchedules,
    Move,
    MovedSchedules,
    Promotion,
)
from jobqueue.testing.memory_store.state import SECOND, Row, Schedule, best_ranks, seconds_to_tick
from jobqueue.testing.memory_store.submit import MemorySubmit
from jobqueue.timetable import CronSchedule


class MemorySchedule(MemorySubmit):
    """Implements `ScheduleStore`."""

    async def promote(self) -> Promotion:
        await trio.lowlevel.checkpoint()
        now = self._now()
        waiting = self._in("pending"), self._in("blocked"), self._in("scheduled")
        late = [
            row
            for rows in waiting
            for row in sorted(rows, key=lambda row: row.expiry)[:PROMOTE_BATCH]
            if row.seconds_left(now) <= 0
        ]
        for row in late:
            self._check_key(row)
            row.expire(now)
        scheduled = sorted((row for row in self._in("scheduled")), key=lambda row: row.due)
        due = [row for row in scheduled if row.due <= now][:PROMOTE_BATCH]
        self._take_turns((row for row in due if "turn" not in (row.options or {})), now)
        for row in due:
            self._to_pending(row, refund=False)
        left = [row.due / SECOND for row in scheduled[len(due) :][:1]]
        left += [row.expiry for rows in waiting for row in rows if row.state != "dead" and row.expiry < math.inf]
        expired = [Expired(row.id, row.queue, row.kind, row.attempt) for row in late]
        best = best_ranks(row for row in due if row.state == "pending")
        next_check = 0.0 if self._key_checks else None
        return Promotion(len(due), best, min(left) - now / SECOND if left else None, expired, next_check)

    async def admit(self) -> Admission:
        """Admit blocked jobs as PostgreSQL does, except that the rates of keys are ignored."""
        await trio.lowlevel.checkpoint()
        checks, self._key_checks = self._key_checks[:ADMIT_BATCH], self._key_checks[ADMIT_BATCH:]
        admitted: list[Row] = []
        for queue, key in sorted(set(checks)):
            of_key = [row for row in self._rows.values() if row.queue == queue and row.key == key]
            limit = self._queues[queue].settings["key_max_running"] if queue in self._queues else None
            free = int(limit or 1) - sum(row.state in ("pending", "inflight") for row in of_key)
            for row in sorted((row for row in of_key if row.state == "blocked"), key=lambda row: row.rank)[: max(0, free)]:
                row.state = "pending"
                admitted.append(row)
        return Admission(len(checks), best_ranks(admitted), 0.0 if self._key_checks else None)

    async def due_schedules(self) -> DueSchedules:
        await trio.lowlevel.checkpoint()
        now = self._now()
        active = [schedule for schedule in self._schedules.values() if not schedule.paused and schedule.error is None]
        due = [schedule for schedule in active if schedule.next_at is None or schedule.next_at <= now]
        due.sort(key=lambda schedule: (schedule.next_at or -math.inf, schedule.name))
        shown = [
            DueSchedule(one.name, one.cron, one.timezone, one.missed, None if one.next_at is None else one.next_at / SECOND)
            for one in due[:SCHEDULE_BATCH]
        ]
        others = [schedule for schedule in active if schedule not in due]
        return DueSchedules(now / SECOND, shown, seconds_to_tick(others, now))

    async def move_schedules(self, moves: Sequence[Move]) -> MovedSchedules:
        await trio.lowlevel.checkpoint()
        now = self._now()
        given = {move.name: move for move in moves}
        moved = {name for name, move in given.items() if name in self._schedules and _is_at(self._schedules[name], move)}
        jobs = [
            (tick, name, self._schedules[name].job(tick)) for name in moved for tick in given[name].ticks
        ]  # make all jobs before any schedule changes: after an error, nothing has changed
        documents = [msgspec.json.encode(job) for _, _, job in sorted(jobs, key=lambda job: job[:2])]
        best, _ = self._submit_batch(documents, again=False, key_ttl=None)
        for name in moved:
            schedule, move = self._schedules[name], given[name]
            schedule.next_at = None if move.next_at is None else round(move.next_at * SECOND)
            schedule.error = move.error
            if move.ticks:
                schedule.last_at = round(move.ticks[-1] * SECOND)
        counted = [
            schedule
            for schedule in self._schedules.values()
            if not schedule.paused and schedule.error is None and (schedule.name in moved or schedule.name not in given)
        ]
        submitted = Counter([(job["queue"], job["kind"]) for _, _, job in jobs])
        return MovedSchedules(moved, best, seconds_to_tick(counted, now), submitted)

    async def reconcile_schedules(self, source: str, schedules: Sequence[CronSchedule]) -> dict[str, str | None]:
        await trio.lowlevel.checkpoint()
        taken = {
            one.name: self._schedules[one.name].source
            for one in sorted(schedules, key=lambda one: one.name)
            if one.name in self._schedules and self._schedules[one.name].source != source
        }
        if taken:
            return taken
        named = {schedule.name for schedule in schedules}
        self._schedules = {name: one for name, one in self._schedules.items() if one.source != source or name in named}
        for schedule in schedules:
            self._put(schedule, source)
        return {}

    def _put(self, schedule: CronSchedule, source: str | None) -> None:
        now = self._now()
        fields = msgspec.structs.asdict(schedule) | {"payload": msgspec.json.decode(schedule.payload)}
        known = self._schedules.get(schedule.name)
        if known is None:
            self._schedules[schedule.name] = Schedule(**fields, source=source, created_at=now, updated_at=now)
            return
        if source is not None and all(getattr(known, name) == value for name, value in fields.items()):
            return
        if (known.cron, known.timezone) != (schedule.cron, schedule.timezone):
            known.next_at = None
        for name, value in fields.items():
            setattr(known, name, value)
        known.error = None
        known.updated_at = now


def _is_at(schedule: Schedule, move: Move) -> bool:
    """Return whether a schedule has not changed since a node read it."""
    now = (schedule.cron, schedule.timezone, schedule.missed, schedule.next_at)
    expected = None if move.expected is None else round(move.expected * SECOND)
    return not schedule.paused and schedule.error is None and now == (move.cron, move.timezone, move.missed, expected)
