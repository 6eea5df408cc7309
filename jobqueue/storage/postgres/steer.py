"""Change jobs, queues, and schedules for operators."""

from __future__ import annotations

import msgspec
from msgspec import UNSET

from jobqueue.job import Change
from jobqueue.job_filters import DeadFilter, JobFilter
from jobqueue.queue_settings import QueueSettings
from jobqueue.storage.postgres.lanes import Lanes, as_text, fetch_rows, fetch_value, integer
from jobqueue.storage.roles.steer import CANCEL_BATCH, DEAD_BATCH, Cancelled
from jobqueue.timetable import CronSchedule


class PostgresSteer(Lanes):
    """Implements `SteerStore`."""

    async def cancel(self, job_id: str, *, keep: bool = True) -> bool:
        return bool(await self._inspect.run(fetch_value("SELECT jobqueue_internal.cancel_now(%s, %s)", job_id, keep)))

    async def cancel_jobs(
        self, wanted: JobFilter, *, keep: bool = True, after: str | None = None, dry_run: bool = False
    ) -> Cancelled:
        sql = "SELECT jobs, rest::text FROM jobqueue_internal.cancel_walk(%s::jsonb, %s, %s::uuid, %s, %s)"
        most = None if dry_run else CANCEL_BATCH
        [row] = await self._inspect.run(fetch_rows(sql, as_text(wanted), most, after, keep, dry_run))
        return Cancelled(row["jobs"], row["rest"])

    async def change(self, job_id: str, change: Change) -> bool:
        sql = "SELECT jobqueue.change(%s, %s, coalesce(%s::timestamptz, now() + %s::float8 * interval '1 second'))"
        return bool(await self._inspect.run(fetch_value(sql, job_id, change.priority, change.run_at, change.delay)))

    async def retry(self, job_id: str) -> bool:
        return bool(await self._inspect.run(fetch_value("SELECT jobqueue.retry(%s)", job_id)))

    async def discard(self, job_id: str) -> bool:
        return bool(await self._inspect.run(fetch_value("SELECT jobqueue.discard(%s)", job_id)))

    async def retry_dead(self, wanted: DeadFilter, *, dry_run: bool = False) -> int:
        sql = "SELECT jobqueue.retry_dead(%s::jsonb, %s, %s)"
        return integer(await self._inspect.run(fetch_value(sql, as_text(wanted), None if dry_run else DEAD_BATCH, dry_run)))

    async def discard_dead(self, wanted: DeadFilter, *, dry_run: bool = False) -> int:
        sql = "SELECT jobqueue.discard_dead(%s::jsonb, %s, %s)"
        return integer(await self._inspect.run(fetch_value(sql, as_text(wanted), None if dry_run else DEAD_BATCH, dry_run)))

    async def pause(self, queue: str, *, paused: bool) -> None:
        await self._inspect.run(fetch_value("SELECT jobqueue.pause(%s, %s)", queue, paused))

    async def configure(self, queue: str, settings: QueueSettings) -> None:
        given = msgspec.structs.asdict(settings)  # in the order of the function's parameters
        values = [None if value is UNSET else value for value in given.values()]
        clear = [name for name, value in given.items() if value is None]
        sql = "SELECT jobqueue.configure(%s, %s * interval '1 second', %s, %s, %s, %s, %s, %s, %s)"
        await self._inspect.run(fetch_value(sql, queue, *values, clear))

    async def put_schedule(self, schedule: CronSchedule) -> bool:
        fields = msgspec.structs.asdict(schedule) | {"payload": bytes(schedule.payload).decode()}
        sql = f"SELECT jobqueue.schedule({', '.join(f'{field} => %s' for field in fields)})"
        return bool(await self._inspect.run(fetch_value(sql, *fields.values())))

    async def unschedule(self, name: str) -> bool:
        return bool(await self._inspect.run(fetch_value("SELECT jobqueue.unschedule(%s)", name)))

    async def pause_schedule(self, name: str, *, paused: bool) -> bool:
        return bool(await self._inspect.run(fetch_value("SELECT jobqueue.pause_schedule(%s, %s)", name, paused)))

    async def trigger_schedule(self, name: str) -> str | None:
        job_id = await self._inspect.run(fetch_value("SELECT jobqueue.trigger_schedule(%s)", name))
        return None if job_id is None else str(job_id)
