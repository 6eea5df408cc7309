"""Read jobs, queues, nodes, schedules, and the history."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from jobqueue.job_filters import DeadFilter, JobFilter
from jobqueue.metrics import Totals
from jobqueue.storage.postgres.lanes import Lanes, as_text, fetch_rows, fetch_value, fetch_values
from jobqueue.storage.roles.inspect import (
    HISTORY_SETTLE,
    WALK_ROWS,
    CauseGroups,
    DeadJob,
    Depth,
    Glance,
    HistorySlot,
    JobPage,
    NodeEntry,
    QueueEntry,
    StoredJob,
    StoredSchedule,
)
from jobqueue.storage.roles.run import Activity


class PostgresInspect(Lanes):
    """Implements `InspectStore`."""

    async def jobs(self, wanted: JobFilter, *, limit: int, after: str | None = None, rows: int = WALK_ROWS) -> JobPage:
        sql = "SELECT jobqueue.list_jobs(%s::jsonb, %s, %s::uuid, %s)::text"
        [page] = await self._inspect.run(fetch_values(JobPage, sql, as_text(wanted), limit, after, rows))
        return page

    async def job(self, job_id: str) -> StoredJob | None:
        sql = """
            SELECT (to_jsonb(j) || jsonb_build_object(
                       'payload', jobqueue_internal.shown(j.payload), 'result', jobqueue_internal.shown(j.result),
                       'errors', jobqueue_internal.shown(j.errors),
                       'options', jobqueue_internal.shown(j.options), 'saved', jobqueue_internal.shown(j.saved)))::text
              FROM jobqueue.jobs AS j WHERE id = %s
        """
        found = await self._inspect.run(fetch_values(StoredJob, sql, job_id))
        return found[0] if found else None

    async def look(self, job_ids: Sequence[str]) -> dict[str, Glance]:
        sql = """
            SELECT id, state, attempt, claims, jobqueue_internal.shown(saved) AS saved
              FROM jobqueue.jobs WHERE id = ANY (%s::uuid[])
        """
        rows = await self._inspect.run(fetch_rows(sql, list(job_ids)))
        return {str(row["id"]): Glance(row["state"], row["attempt"], row["claims"], row["saved"]) for row in rows}

    async def dead(self, wanted: DeadFilter, *, limit: int, after: tuple[datetime, str] | None = None) -> list[DeadJob]:
        sql = "SELECT row::text FROM jobqueue.list_dead(%s::jsonb, %s, %s::timestamptz, %s::uuid) AS row"
        return await self._inspect.run(fetch_values(DeadJob, sql, as_text(wanted), limit, *(after or (None, None))))

    async def dead_causes(self, wanted: DeadFilter, *, limit: int) -> CauseGroups:
        sql = "SELECT jobqueue.dead_causes(%s::jsonb, %s)::text"
        [groups] = await self._inspect.run(fetch_values(CauseGroups, sql, as_text(wanted), limit))
        return groups

    async def queues(self) -> list[QueueEntry]:
        return await self._inspect.run(
            fetch_values(
                QueueEntry,
                """
            SELECT (to_jsonb(q) || jsonb_build_object('aging_interval', extract(epoch FROM aging_interval)::float8))::text
              FROM jobqueue_internal.queues AS q ORDER BY name
            """,
            )
        )

    async def nodes(self) -> list[NodeEntry]:
        return await self._inspect.run(
            fetch_values(
                NodeEntry,
                """
            SELECT (to_jsonb(n) || jsonb_build_object('running', coalesce(r.running, '[]'),
                       'throughput', jsonb_build_object('completed', a.completed, 'failed', a.failed)))::text
              FROM jobqueue_internal.nodes AS n
              LEFT JOIN (
                   SELECT g.node_id, jsonb_agg(to_jsonb(g) - 'node_id' ORDER BY g.queue, g.kind) AS running
                     FROM (SELECT i.node_id, i.queue, i.kind, count(*) AS jobs,
                                  greatest(0, extract(epoch FROM now() - min(i.claimed_at)))::float8 AS oldest
                             FROM jobqueue_internal.inflight_jobs AS i GROUP BY i.node_id, i.queue, i.kind) AS g
                    GROUP BY g.node_id) AS r ON r.node_id = n.id
             CROSS JOIN LATERAL (
                   SELECT coalesce(sum((e.value ->> 0)::numeric), 0)::float8 AS completed,
                          coalesce(sum((e.value ->> 1)::numeric), 0)::float8 AS failed
                     FROM jsonb_each(n.activity) AS e WHERE n.lease_until > now()) AS a
             ORDER BY n.started_at
            """,
            )
        )

    async def schedules(self, name: str | None = None) -> list[StoredSchedule]:
        sql = """
            SELECT (to_jsonb(s) || jsonb_build_object('payload', jobqueue_internal.shown(s.payload)))::text
              FROM jobqueue_internal.schedules AS s WHERE coalesce(s.name = %s::text, true) ORDER BY name
        """
        return await self._inspect.run(fetch_values(StoredSchedule, sql, name))

    async def depths(self) -> list[Depth]:
        sql = """
            SELECT queue, 'pending' AS state, count(*) AS jobs,
                   extract(epoch FROM now() - min(available_since))::float8 AS oldest
              FROM jobqueue_internal.pending_jobs GROUP BY queue
            UNION ALL
            SELECT queue, 'blocked', count(*), extract(epoch FROM now() - min(available_since))::float8
              FROM jobqueue_internal.blocked_jobs GROUP BY queue
            UNION ALL
            SELECT queue, 'scheduled', count(*), extract(epoch FROM now() - min(run_at))::float8
              FROM jobqueue_internal.scheduled_jobs GROUP BY queue
            UNION ALL
            SELECT queue, 'inflight', count(*), extract(epoch FROM now() - min(claimed_at))::float8
              FROM jobqueue_internal.inflight_jobs GROUP BY queue
            UNION ALL
            SELECT queue, 'dead', count(*), extract(epoch FROM now() - min(died_at))::float8
              FROM jobqueue_internal.dead_jobs GROUP BY queue
        """
        rows = await self._inspect.run(fetch_rows(sql))
        return [Depth(row["queue"], row["state"], row["jobs"], max(0.0, row["oldest"])) for row in rows]

    async def throughput(self) -> Activity:
        sql = """
            SELECT a.key AS queue, sum((a.value ->> 0)::numeric)::float8 AS completed,
                   sum((a.value ->> 1)::numeric)::float8 AS failed
              FROM jobqueue_internal.nodes AS n CROSS JOIN jsonb_each(n.activity) AS a
             WHERE n.lease_until > now() GROUP BY a.key
        """
        rows = await self._inspect.run(fetch_rows(sql))
        return {row["queue"]: (row["completed"], row["failed"]) for row in rows}

    async def history(self, step: int, *, seconds: float) -> list[HistorySlot]:
        sql = """
            SELECT at, submitted, completed, failed, dead, waits, runs, depth FROM jobqueue_internal.history
             WHERE step = %s AND at >= now() - %s::float8 * interval '1 second' AND at <= now() - %s * interval '1 second'
             ORDER BY at
        """
        rows = await self._inspect.run(fetch_rows(sql, step, seconds, step + HISTORY_SETTLE))
        return [
            HistorySlot(row["at"].astimezone(UTC), Totals(*(row[name] for name in Totals._fields)), row["depth"]) for row in rows
        ]

    async def now(self) -> datetime:
        moment = await self._inspect.run(fetch_value("SELECT clock_timestamp()"))
        assert isinstance(moment, datetime)  # noqa: S101 - timestamptz
        return moment
