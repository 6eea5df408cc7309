"""Check nodes and jobs: nodes without a lease, queues that no node works, overdue jobs and schedules, and recent dead letters."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from typing import Any

from jobqueue._version import __version__
from jobqueue.storage.connection import Connection
from jobqueue.storage.doctor.finding import Finding, count, duration, names, query, short

LATE = 60.0
"""Due work counts as overdue after this many seconds. A shorter delay is normal, because nodes poll only every few seconds."""

FEW = 10_000
"""Maximum number of jobs to count."""


def nodes(connection: Connection) -> list[Finding]:
    """Check the nodes' leases and versions."""
    rows = query(
        connection,
        """
        SELECT n.id::text, n.host, n.pid, n.version, extract(epoch FROM now() - n.lease_until)::float8 AS late,
               CASE WHEN n.lease_until < now()
                    THEN (SELECT count(*) FROM jobqueue_internal.inflight_jobs AS i WHERE i.node_id = n.id) END AS jobs
          FROM jobqueue_internal.nodes AS n ORDER BY n.started_at LIMIT 1000
        """,
    )
    live = [row for row in rows if row.late <= 0]
    findings = list(_lost(rows, anyone=bool(live)))
    versions = sorted({row.version for row in live})
    if len(versions) > 1 or versions not in ([], [__version__]):
        found = f"nodes run {names(versions)}; this is jobqueue {__version__}"
        findings.append(
            Finding("nodes", "warning", found, "none needed during a deploy; after it, restart the nodes of other versions")
        )
    if not live:
        findings.append(
            Finding("nodes", "warning", "no node is running: jobs can be submitted from SQL, but none runs", "run jobqueue serve")
        )
    return findings or [Finding("nodes", "ok", f"{count(len(live), 'node')} of version {versions[0]}, all with a valid lease")]


def _lost(rows: list[Any], *, anyone: bool) -> Iterator[Finding]:
    for row in rows:
        if row.late <= LATE if anyone else row.late <= 0:
            continue
        held = count(row.jobs, "job is", "jobs are")
        found = f"{row.host} pid {row.pid} lost its lease {duration(row.late)} ago, and {held} still claimed by it"
        if anyone:
            advice = 'the other nodes should have recovered them: look for errors of the part "recovery" in their logs'
            yield Finding("nodes", "problem", found, advice)
        else:
            yield Finding("nodes", "problem" if row.jobs else "warning", found, "start a node: it recovers the jobs")


def queues(connection: Connection) -> list[Finding]:
    """Check each queue with waiting jobs: whether it is paused, whether a node works it, and whether nodes claim its jobs."""
    # The recursive query jumps from queue to queue in the index. For each queue, it searches for the oldest job among the first
    # 10,000 by rank.
    rows = query(
        connection,
        f"""
        WITH RECURSIVE waiting AS (
            (SELECT queue FROM jobqueue_internal.pending_jobs ORDER BY queue LIMIT 1)
            UNION ALL
            SELECT (SELECT p.queue FROM jobqueue_internal.pending_jobs AS p WHERE p.queue > w.queue ORDER BY p.queue LIMIT 1)
              FROM waiting AS w WHERE w.queue IS NOT NULL
        ), worked AS (
            SELECT q.key AS queue, sum(q.value::int) AS workers
              FROM jobqueue_internal.nodes AS n, jsonb_each_text(n.queues) AS q WHERE n.lease_until > now() GROUP BY q.key
        )
        SELECT w.queue AS name, coalesce(q.paused, false) AS paused, num_nonnulls(q.max_running, q.rate) > 0 AS limited,
               coalesce(k.workers, 0) AS workers, p.jobs, p.oldest,
               (SELECT count(*) FROM (SELECT FROM jobqueue_internal.inflight_jobs AS i WHERE i.queue = w.queue LIMIT {FEW}) AS i)
                   AS running
          FROM waiting AS w
          LEFT JOIN jobqueue_internal.queues AS q ON q.name = w.queue
          LEFT JOIN worked AS k ON k.queue = w.queue
         CROSS JOIN LATERAL (
                SELECT count(*) AS jobs, extract(epoch FROM now() - min(f.available_since))::float8 AS oldest
                  FROM (SELECT p.available_since FROM jobqueue_internal.pending_jobs AS p
                         WHERE p.queue = w.queue ORDER BY p.rank LIMIT {FEW}) AS f) AS p
         WHERE w.queue IS NOT NULL AND p.jobs > 0
        """,  # noqa: S608 - a constant
    )
    findings = [finding for row in rows if (finding := judge_queue(row))]
    if findings:
        return findings
    if not rows:
        return [Finding("queues", "ok", "no job is waiting")]
    jobs, oldest = sum(row.jobs for row in rows), max(row.oldest for row in rows)
    more = " or more" if any(row.jobs == FEW for row in rows) else ""
    found = f"{count(jobs, 'job waits', 'jobs wait')}{more} in {count(len(rows), 'queue')}, the oldest for {duration(oldest)}"
    return [Finding("queues", "ok", found)]


def judge_queue(row: Any) -> Finding | None:
    """Judge a queue with waiting jobs; return None if it is healthy, even if it is busy."""
    more = " or more" if row.jobs == FEW else ""
    waiting = f"{count(row.jobs, 'job waits', 'jobs wait')}{more} in queue {row.name}, the oldest for {duration(row.oldest)}"
    if row.paused:
        advice = f"to resume it: jobqueue queues resume {shlex.quote(row.name)}"
        return Finding("queues", "warning", f"{waiting}: the queue is paused", advice)
    if not row.workers:
        return Finding(
            "queues", "problem", f"{waiting}: no node works the queue", f"jobqueue serve ... --queue {shlex.quote(row.name)}=16"
        )
    if row.oldest >= LATE and row.running < row.workers and not row.limited:
        found = f"{waiting}, and {row.workers - row.running} of its {count(row.workers, 'worker')} are free: no node claims"
        return Finding("queues", "problem", found, "look for the reason at /health/ready and in the log of each node")
    return None


def overdue(connection: Connection) -> list[Finding]:
    """Find overdue scheduled jobs, checks of concurrency keys, and ticks of schedules."""
    rows = query(
        connection,
        f"""
        SELECT 'scheduled jobs' AS what, count(*) AS jobs, max(late) AS late
          FROM (SELECT extract(epoch FROM now() - run_at)::float8 AS late FROM jobqueue_internal.scheduled_jobs
                 WHERE run_at < now() - %(late)s * interval '1 second' ORDER BY run_at LIMIT {FEW}) AS s
        UNION ALL
        SELECT 'checks of concurrency keys', count(*), max(late)
          FROM (SELECT extract(epoch FROM now() - at)::float8 AS late FROM jobqueue_internal.key_checks
                 WHERE at < now() - %(late)s * interval '1 second' ORDER BY at LIMIT {FEW}) AS k
        UNION ALL
        SELECT 'schedules', count(*), max(extract(epoch FROM now() - next_at)::float8)
          FROM jobqueue_internal.schedules WHERE NOT paused AND error IS NULL AND next_at < now() - %(late)s * interval '1 second'
        """.replace("%(late)s", str(LATE)),  # noqa: S608 - constants
    )
    findings = [
        Finding(
            "overdue",
            "problem",
            f"{row.jobs:,}{' or more' if row.jobs == FEW else ''} {row.what} are overdue, the first by {duration(row.late)}",
            "nodes process them within seconds: start a node, or look for the reason in their logs",
        )
        for row in rows
        if row.jobs
    ]
    return findings or [Finding("overdue", "ok", "no scheduled job, key check, or schedule is overdue")]


def schedules(connection: Connection) -> list[Finding]:
    """Find schedules that have no next tick because of an error."""
    rows = query(connection, "SELECT name, error, paused FROM jobqueue_internal.schedules ORDER BY name")
    findings = [
        Finding(
            "schedules",
            "problem",
            f"{row.name} submits no jobs: {short(row.error)}",
            "correct its cron expression or time zone: in its module, or with jobqueue schedules put",
        )
        for row in rows
        if row.error is not None
    ]
    if findings or not rows:
        return findings or [Finding("schedules", "ok", "no schedule is defined")]
    paused = sum(row.paused for row in rows)
    return [Finding("schedules", "ok", f"{count(len(rows), 'schedule')} without an error, {paused} of them paused")]


def dead(connection: Connection) -> list[Finding]:
    """Count the jobs that died in the last hour."""
    rows = query(
        connection,
        f"""
        SELECT d.kind, d.reason, count(*) AS jobs
          FROM (SELECT kind, reason FROM jobqueue_internal.dead_jobs
                 WHERE died_at > now() - interval '1 hour' ORDER BY died_at LIMIT {FEW}) AS d
         GROUP BY d.kind, d.reason ORDER BY jobs DESC
        """,  # noqa: S608 - a constant
    )
    total = sum(row.jobs for row in rows)
    if not total:
        return [Finding("dead letters", "ok", "no job died in the last hour")]
    most = rows[0]
    died = f"{count(total, 'job')}{' or more' if total == FEW else ''} died in the last hour"
    found = f"{died}, {most.jobs:,} of them of kind {most.kind} ({short(most.reason)})"
    return [
        Finding("dead letters", "warning", found, "jobqueue dead list shows the errors; jobqueue dead retry runs the jobs again")
    ]
