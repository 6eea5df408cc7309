"""The work itself: nodes that are gone, queues that nobody works, jobs that are overdue, and what died of late."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from typing import Any

from jobqueue import __version__
from jobqueue.storage.checkup.finding import Finding, count, duration, names, query, short
from jobqueue.storage.database import Connection

LATE = 60.0
"""Seconds by which what is due may be late: nodes look every few seconds."""

FEW = 10_000
"""Jobs of a queue are counted up to here."""


def nodes(connection: Connection) -> list[Finding]:
    """Look at the nodes' leases and versions."""
    rows = query(
        connection,
        """
        SELECT n.id::text, n.host, n.pid, n.version, extract(epoch FROM now() - n.lease_until)::float8 AS late,
               CASE WHEN n.lease_until < now()
                    THEN (SELECT count(*) FROM jobqueue.inflight_jobs AS i WHERE i.node_id = n.id) END AS jobs
          FROM jobqueue.nodes AS n ORDER BY n.started_at LIMIT 1000
        """,
    )
    live = [row for row in rows if row.late <= 0]
    findings = list(_lost(rows, anyone=bool(live)))
    versions = sorted({row.version for row in live})
    if len(versions) > 1 or versions not in ([], [__version__]):
        found = f"nodes run {names(versions)}, this is jobqueue {__version__}"
        findings.append(
            Finding("nodes", "warning", found, "nothing in the middle of a deploy; after it, restart those that were left")
        )
    if not live:
        findings.append(
            Finding("nodes", "warning", "no node is running: jobs are taken from SQL alone, and none is run", "jobqueue serve")
        )
    return findings or [Finding("nodes", "ok", f"{count(len(live), 'node')} of version {versions[0]}, all with a lease")]


def _lost(rows: list[Any], *, anyone: bool) -> Iterator[Finding]:
    for row in rows:
        if row.late <= LATE if anyone else row.late <= 0:
            continue
        held = count(row.jobs, "job is", "jobs are")
        found = f"{row.host} pid {row.pid} lost its lease {duration(row.late)} ago, and {held} still in its hands"
        if anyone:
            advice = "the other nodes should have taken them: see their logs (recovery failed, recovery refused by the database)"
            yield Finding("nodes", "problem", found, advice)
        else:
            yield Finding("nodes", "problem" if row.jobs else "warning", found, "start a node: it takes them back")


def queues(connection: Connection) -> list[Finding]:
    """Look at each queue in which jobs wait: whether it is paused, whether somebody works it, and whether anybody claims."""
    # From queue to queue by the index; the oldest is the oldest of the first in line.
    rows = query(
        connection,
        f"""
        WITH RECURSIVE waiting AS (
            (SELECT queue FROM jobqueue.pending_jobs ORDER BY queue LIMIT 1)
            UNION ALL
            SELECT (SELECT p.queue FROM jobqueue.pending_jobs AS p WHERE p.queue > w.queue ORDER BY p.queue LIMIT 1)
              FROM waiting AS w WHERE w.queue IS NOT NULL
        ), worked AS (
            SELECT q.key AS queue, sum(q.value::int) AS workers
              FROM jobqueue.nodes AS n, jsonb_each_text(n.queues) AS q WHERE n.lease_until > now() GROUP BY q.key
        )
        SELECT w.queue AS name, coalesce(q.paused, false) AS paused, num_nonnulls(q.max_running, q.rate) > 0 AS limited,
               coalesce(k.workers, 0) AS workers, p.jobs, p.oldest,
               (SELECT count(*) FROM (SELECT FROM jobqueue.inflight_jobs AS i WHERE i.queue = w.queue LIMIT {FEW}) AS i) AS running
          FROM waiting AS w
          LEFT JOIN jobqueue.queues AS q ON q.name = w.queue
          LEFT JOIN worked AS k ON k.queue = w.queue
         CROSS JOIN LATERAL (
                SELECT count(*) AS jobs, extract(epoch FROM now() - min(f.available_since))::float8 AS oldest
                  FROM (SELECT p.available_since FROM jobqueue.pending_jobs AS p
                         WHERE p.queue = w.queue ORDER BY p.rank LIMIT {FEW}) AS f) AS p
         WHERE w.queue IS NOT NULL AND p.jobs > 0
        """,  # noqa: S608 - a number of ours
    )
    findings = [finding for row in rows if (finding := judge_queue(row))]
    if findings:
        return findings
    if not rows:
        return [Finding("queues", "ok", "no job waits")]
    jobs, oldest = sum(row.jobs for row in rows), max(row.oldest for row in rows)
    more = " or more" if any(row.jobs == FEW for row in rows) else ""
    found = f"{count(jobs, 'job waits', 'jobs wait')}{more} in {count(len(rows), 'queue')}, the oldest for {duration(oldest)}"
    return [Finding("queues", "ok", found)]


def judge_queue(row: Any) -> Finding | None:
    """Judge a queue in which jobs wait; None when it is as it should be, be it busy."""
    more = " or more" if row.jobs == FEW else ""
    waiting = f"{count(row.jobs, 'job waits', 'jobs wait')}{more} in queue {row.name}, the oldest for {duration(row.oldest)}"
    if row.paused:
        advice = f"when it should go on: jobqueue queues resume {shlex.quote(row.name)}"
        return Finding("queues", "warning", f"{waiting}: it is paused", advice)
    if not row.workers:
        return Finding(
            "queues", "problem", f"{waiting}: no node works it", f"jobqueue serve ... --queue {shlex.quote(row.name)}=16"
        )
    if row.oldest >= LATE and row.running < row.workers and not row.limited:
        found = f"{waiting}, and {row.workers - row.running} of its {count(row.workers, 'worker')} are free: nobody claims"
        return Finding("queues", "problem", found, "see /health/ready and the log of each node for what keeps it from claiming")
    return None


def overdue(connection: Connection) -> list[Finding]:
    """Look for what should have been moved on: scheduled jobs, keys to look at, ticks of schedules."""
    rows = query(
        connection,
        f"""
        SELECT 'scheduled jobs' AS what, count(*) AS jobs, max(late) AS late
          FROM (SELECT extract(epoch FROM now() - run_at)::float8 AS late FROM jobqueue.scheduled_jobs
                 WHERE run_at < now() - %(late)s * interval '1 second' ORDER BY run_at LIMIT {FEW}) AS s
        UNION ALL
        SELECT 'checks of concurrency keys', count(*), max(late)
          FROM (SELECT extract(epoch FROM now() - at)::float8 AS late FROM jobqueue.key_checks
                 WHERE at < now() - %(late)s * interval '1 second' ORDER BY at LIMIT {FEW}) AS k
        UNION ALL
        SELECT 'schedules', count(*), max(extract(epoch FROM now() - next_at)::float8)
          FROM jobqueue.schedules WHERE NOT paused AND error IS NULL AND next_at < now() - %(late)s * interval '1 second'
        """.replace("%(late)s", str(LATE)),  # noqa: S608 - numbers of ours
    )
    findings = [
        Finding(
            "overdue",
            "problem",
            f"{row.jobs:,}{' or more' if row.jobs == FEW else ''} {row.what} are overdue, the first by {duration(row.late)}",
            "a node does that within seconds: start one, or see the logs for what keeps it",
        )
        for row in rows
        if row.jobs
    ]
    return findings or [Finding("overdue", "ok", "nothing that is due waits to be moved on")]


def schedules(connection: Connection) -> list[Finding]:
    """Find schedules that have no next tick for an error."""
    rows = query(connection, "SELECT name, error, paused FROM jobqueue.schedules ORDER BY name")
    findings = [
        Finding(
            "schedules",
            "problem",
            f"{row.name} submits no jobs: {short(row.error)}",
            "correct its expression or time zone: in its module, or by putting it again",
        )
        for row in rows
        if row.error is not None
    ]
    if findings or not rows:
        return findings or [Finding("schedules", "ok", "there are none")]
    paused = sum(row.paused for row in rows)
    return [Finding("schedules", "ok", f"{count(len(rows), 'schedule')} without an error, {paused} of them paused")]


def dead(connection: Connection) -> list[Finding]:
    """Count what died in the last hour."""
    rows = query(
        connection,
        f"""
        SELECT d.kind, d.reason, count(*) AS jobs
          FROM (SELECT kind, reason FROM jobqueue.dead_jobs
                 WHERE died_at > now() - interval '1 hour' ORDER BY died_at LIMIT {FEW}) AS d
         GROUP BY d.kind, d.reason ORDER BY jobs DESC
        """,  # noqa: S608 - a number of ours
    )
    total = sum(row.jobs for row in rows)
    if not total:
        return [Finding("dead letters", "ok", "none in the last hour")]
    most = rows[0]
    died = f"{count(total, 'job')}{' or more' if total == FEW else ''} died in the last hour"
    found = f"{died}, {most.jobs:,} of them of kind {most.kind} ({short(most.reason)})"
    return [
        Finding("dead letters", "warning", found, "jobqueue dead list shows why; once mended, jobqueue dead retry runs them again")
    ]
