"""Rows that another transaction has locked delay only their own jobs."""

from __future__ import annotations

import time

import psycopg
import pytest

from jobqueue.job import Outcome
from tests.support.postgres import Database
from tests.support.storage import Driver

TABLES = ["inflight_jobs", "pending_jobs", "scheduled_jobs", "blocked_jobs"]


async def submit_everywhere(driver: Driver, sql: Database) -> dict[str, list[str]]:
    """Make two jobs in each table; return their ids by table."""
    jobs = {
        "inflight_jobs": await driver.submit_many({}, {}),
        "pending_jobs": await driver.submit_many({"queue": "other"}, {"queue": "other"}),
        "scheduled_jobs": await driver.submit_many({"delay": 60.0}, {"delay": 60.0}),
        "blocked_jobs": [],
    }
    await driver.claim()
    for _ in range(2):
        jobs["blocked_jobs"].append(sql.value("SELECT jobqueue.submit('default', concurrency_key => 'account 7')::text"))
    return jobs


@pytest.mark.parametrize("table", TABLES)
async def test_a_locked_row_delays_the_cancellation_of_its_own_job_only(driver: Driver, sql: Database, table: str) -> None:
    jobs = await submit_everywhere(driver, sql)
    locked = jobs[table][0]
    others = [job_id for ids in jobs.values() for job_id in ids if job_id != locked]
    sql.rows("INSERT INTO jobqueue_internal.cancel_requests SELECT unnest(%s::uuid[])", [locked, *others])
    with psycopg.connect(sql.url) as holder:
        holder.execute(f"SELECT FROM jobqueue_internal.{table} WHERE id = %s FOR UPDATE".encode(), [locked])
        took = []
        for _ in range(50):
            started = time.monotonic()
            runs = await driver.store.heartbeat(driver.node, lease=60)
            took.append(time.monotonic() - started)
        assert min(took) < 0.1, "heartbeats do not wait for the lock: they would wait 0.1 s, the lock timeout"
        assert {job_id for job_id, _ in runs or ()} == {*jobs["inflight_jobs"]} - {locked}
        waiting = sql.rows("SELECT id::text FROM jobqueue.jobs WHERE state IN ('pending', 'scheduled', 'blocked')")
        assert waiting == ([] if table == "inflight_jobs" else [(locked,)])
        assert sql.rows("SELECT job_id::text FROM jobqueue_internal.cancel_requests") == [(locked,)]
    await driver.store.heartbeat(driver.node, lease=60)
    assert sql.states() == {"cancelled": 6, "inflight": 2}
    assert sql.rows("SELECT * FROM jobqueue_internal.cancel_requests") == []


async def test_failing_runs_are_finished_at_once_while_a_cancellation_waits_for_a_row(driver: Driver, sql: Database) -> None:
    locked, *others = await driver.submit_many(*({} for _ in range(20)))
    runs = {run.id: run for run in await driver.claim()}
    sql.rows("SELECT jobqueue.cancel(%s)", locked)
    with psycopg.connect(sql.url) as holder:
        holder.execute("SELECT FROM jobqueue_internal.inflight_jobs WHERE id = %s FOR UPDATE", [locked])
        for job_id in others:
            run = runs[job_id]
            outcome = Outcome(id=run.id, claims=run.claims, outcome="retry", delay=60.0)
            assert await driver.store.finish(driver.node, [outcome]) == set()
    assert sql.states() == {"inflight": 1, "scheduled": 19}


async def test_a_request_for_a_job_that_has_ended_or_never_was_goes_away(driver: Driver, sql: Database) -> None:
    await driver.in_state("succeeded")
    sql.rows("INSERT INTO jobqueue_internal.cancel_requests SELECT id FROM jobqueue.jobs UNION ALL SELECT gen_random_uuid()")
    await driver.store.heartbeat(driver.node, lease=60)
    assert sql.rows("SELECT * FROM jobqueue_internal.cancel_requests") == []
    assert sql.states() == {"succeeded": 1}
