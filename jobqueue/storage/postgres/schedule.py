"""Make jobs runnable when they are due: delayed jobs, jobs with concurrency keys, and cron schedules."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from jobqueue.storage.claims import Expired
from jobqueue.storage.postgres.lanes import Lanes, as_text, fetch_rows
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
from jobqueue.timetable import CronSchedule


class PostgresSchedule(Lanes):
    """Implements `ScheduleStore`."""

    async def promote(self) -> Promotion:
        [row] = await self._housekeeping.run(fetch_rows("SELECT * FROM jobqueue_internal.promote(%s)", PROMOTE_BATCH))
        expired = msgspec.convert(row["expired"], list[Expired])
        return Promotion(row["promoted"], row["best"], row["next_due"], expired, row["next_check"])

    async def admit(self) -> Admission:
        [row] = await self._housekeeping.run(fetch_rows("SELECT * FROM jobqueue_internal.admit(%s)", ADMIT_BATCH))
        return Admission(row["checks"], row["best"], row["next_due"])

    async def due_schedules(self) -> DueSchedules:
        [row] = await self._housekeeping.run(fetch_rows("SELECT * FROM jobqueue_internal.due_schedules(%s)", SCHEDULE_BATCH))
        return DueSchedules(row["at"], msgspec.convert(row["due"], list[DueSchedule]), row["next_in"])

    async def move_schedules(self, moves: Sequence[Move]) -> MovedSchedules:
        [row] = await self._housekeeping.run(
            fetch_rows("SELECT * FROM jobqueue_internal.move_schedules(%s::jsonb)", as_text(moves))
        )
        submitted = {(queue, kind): jobs for queue, kind, jobs in row["submitted"]}
        return MovedSchedules(set(row["moved"]), row["best"], row["next_in"], submitted)

    async def reconcile_schedules(self, source: str, schedules: Sequence[CronSchedule]) -> dict[str, str | None]:
        sql = "SELECT * FROM jobqueue_internal.reconcile_schedules(%s, %s::jsonb)"
        rows = await self._housekeeping.run(fetch_rows(sql, source, as_text(schedules)))
        return {row["name"]: row["owner"] for row in rows}
