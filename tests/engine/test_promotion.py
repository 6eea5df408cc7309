"""Scheduled jobs start when they are due, however they were submitted, on any node, with notifications or without."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import psycopg
import pytest
import trio

from jobqueue import documents
from jobqueue.job import NewJob
from jobqueue.storage.postgres.store import PostgresStore
from tests.support.postgres import Database
from tests.support.service import Service, Start, submit
from tests.support.storage import new_id
from tests.support.waiting import wait_for

JOBS = 100
"""Jobs for each way to submit."""

SPREAD = 4.0
"""Seconds over which they are due."""

LATENESS = """
    SELECT extract(epoch FROM claimed_at - available_since)::float8 FROM jobqueue_internal.finished_jobs ORDER BY 1
"""

EARLY = "SELECT count(*) FROM jobqueue_internal.finished_jobs WHERE finished_at < available_since"
"""Jobs that ended before they were due. `claimed_at` cannot tell: a claim may begin earlier, and wait."""


@pytest.fixture
def start(service: Start, tmp_path: Path) -> Start:
    def start(*arguments: str) -> Service:
        return service("tests.handlers.plain", "--queue", "default=50", *arguments, env={"EFFECTS": str(tmp_path / "effects")})

    return start


def delays(count: int = JOBS) -> list[float]:
    return [1.0 + random.Random(place).uniform(0, SPREAD) for place in range(count)]


async def submit_by_python(url: str, database: Database) -> None:
    now = database.value("SELECT now()")
    store = PostgresStore(url)
    jobs = [NewJob(id=new_id(), kind="echo", run_at=now + timedelta(seconds=seconds)) for seconds in delays()]
    await store.submit([documents.encode(job) for job in jobs], wake=False)
    await store.aclose()


def test_jobs_start_when_they_are_due_without_a_poll(
    start: Start, client: httpx.Client, database: Database, capsys: pytest.CaptureFixture[str]
) -> None:
    node, _ = start("--poll-interval", "60"), start("--poll-interval", "60")
    submit(client, node, [{"kind": "echo", "delay": seconds} for seconds in delays(JOBS - 10)])
    for seconds in delays(10):
        run_at = (datetime.now(UTC) + timedelta(seconds=seconds)).isoformat()
        submit(client, node, {"kind": "echo", "run_at": run_at})
    with psycopg.connect(database.url) as connection:
        for seconds in delays():
            connection.execute("SELECT jobqueue.submit('echo', run_at => now() + %s * interval '1 second')", (seconds,))
    trio.run(submit_by_python, database.url, database)
    wait_for(lambda: database.states() == {"succeeded": 3 * JOBS}, "all have run")
    late = [seconds for (seconds,) in database.rows(LATENESS)]
    with capsys.disabled():
        figures = ", ".join(f"p{share}: {late[(len(late) - 1) * share // 100] * 1000:.0f} ms" for share in (50, 90, 99, 100))
        print(f"\n  from due to claimed, {len(late)} jobs: {figures}")  # noqa: T201 - for the reader of the run
    assert database.value(EARLY) == 0
    assert late[len(late) // 2] < 10, "with polls alone, the median would be almost a minute"
    assert database.value("SELECT count(DISTINCT node_id) FROM jobqueue_internal.finished_jobs") == 2


def test_where_no_notification_comes_through_a_poll_finds_what_is_due(start: Start, database: Database) -> None:
    start("--poll-interval", "0.5")
    start("--poll-interval", "0.5")
    # This statement sends no notification, as if it were lost.
    database.rows("""
        INSERT INTO jobqueue_internal.scheduled_jobs (id, queue, kind, priority, run_at, payload, created_at, available_since)
        SELECT jobqueue_internal.uuid7(), 'default', 'echo', 0, due, '{}', now(), due
          FROM (SELECT now() + n * interval '0.02 second' AS due FROM generate_series(1, 100) AS n) AS times
    """)
    wait_for(lambda: database.states() == {"succeeded": 100}, "all have run")
    assert database.value(EARLY) == 0


def test_a_due_job_that_somebody_holds_keeps_no_other_from_being_promoted(start: Start, database: Database) -> None:
    start()
    held = database.value("SELECT jobqueue.submit('echo', run_at => now() + interval '0.3 second')")
    with psycopg.connect(database.url) as holder:
        holder.execute("SELECT FROM jobqueue_internal.scheduled_jobs WHERE id = %s FOR UPDATE", (held,))
        for _ in range(20):
            database.value("SELECT jobqueue.submit('echo', run_at => now() + interval '0.5 second')")
        wait_for(lambda: database.states() == {"scheduled": 1, "succeeded": 20}, "the others have run")
    wait_for(lambda: database.states() == {"succeeded": 21}, "it runs as well")
