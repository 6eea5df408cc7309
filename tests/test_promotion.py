"""Scheduled jobs are there when they are due: submitted in every way, promoted by any node, with notifications or without."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
import trio

from jobqueue import documents
from jobqueue.job import NewJob
from jobqueue.storage.store import Store
from tests.conftest import Database, Service
from tests.storage import new_id
from tests.test_service import Start, submit
from tests.waiting import wait_for

JOBS = 100
"""How many jobs come each way."""

SPREAD = 4.0
"""Seconds over which they are due."""

PROMOTED_WITHIN = 0.25
"""Seconds from due to pending, or started: what is promised on a machine that has time."""

LATENESS = """
    SELECT extract(epoch FROM claimed_at - available_since)::float8 FROM jobqueue.finished_jobs ORDER BY 1
"""

CLAIM_TAKES = 0.5
"""Seconds, at most. `claimed_at` is when a claim began; while it waited, what it found may have become due."""


@pytest.fixture
def start(service: Start, tmp_path: Path) -> Start:
    def start(*arguments: str) -> Service:
        return service("tests.handlers", "--queue", "default=50", *arguments, env={"EFFECTS": str(tmp_path / "effects")})

    return start


@pytest.fixture
def client() -> Any:
    with httpx.Client(timeout=30) as opened:
        yield opened


def delays(count: int = JOBS) -> list[float]:
    return [1.0 + random.Random(place).uniform(0, SPREAD) for place in range(count)]


async def submit_by_python(url: str, database: Database) -> None:
    now = database.value("SELECT now()")
    store = Store(url)
    jobs = [NewJob(id=new_id(), kind="echo", run_at=now + timedelta(seconds=seconds)) for seconds in delays()]
    await store.submit([documents.encode(job) for job in jobs], wake=False)
    await store.aclose()


def test_every_way_in_any_node_and_due_within_a_quarter_of_a_second(
    start: Start, client: httpx.Client, database: Database, capsys: pytest.CaptureFixture[str]
) -> None:
    node, _ = start(), start()
    submit(client, node, [{"kind": "echo", "delay": seconds} for seconds in delays(JOBS - 10)])
    for seconds in delays(10):
        run_at = (datetime.now(UTC) + timedelta(seconds=seconds)).isoformat()
        submit(client, node, {"kind": "echo", "run_at": run_at})
    with psycopg.connect(database.url) as connection:
        for seconds in delays():
            connection.execute("SELECT jobqueue.submit('echo', run_at => now() + %s * interval '1 second')", (seconds,))
    trio.run(submit_by_python, database.url, database)
    wait_for(lambda: database.states() == {"succeeded": 3 * JOBS}, "all have run", 60)
    late = [seconds for (seconds,) in database.rows(LATENESS)]
    with capsys.disabled():
        figures = ", ".join(f"p{share}: {late[(len(late) - 1) * share // 100] * 1000:.0f} ms" for share in (50, 90, 99, 100))
        print(f"\n  from due to claimed, {len(late)} jobs: {figures}")  # noqa: T201 - figures are to be seen
    assert late[0] > -CLAIM_TAKES, "none before its time"
    assert late[len(late) // 2] < PROMOTED_WITHIN, "a node that only polls would need a second on average"
    assert database.value("SELECT count(DISTINCT node_id) FROM jobqueue.finished_jobs") == 2


def test_where_no_notification_comes_through_a_poll_finds_what_is_due(start: Start, database: Database) -> None:
    start("--poll-interval", "0.5")
    start("--poll-interval", "0.5")
    # A submission that tells nobody, as one does whose notification was lost.
    database.rows("""
        INSERT INTO jobqueue.scheduled_jobs (id, queue, kind, priority, run_at, payload, created_at, available_since)
        SELECT jobqueue.uuid7(), 'default', 'echo', 0, due, '{}', now(), due
          FROM (SELECT now() + n * interval '0.02 second' AS due FROM generate_series(1, 100) AS n) AS times
    """)
    wait_for(lambda: database.states() == {"succeeded": 100}, "all have run", 30)
    late = [seconds for (seconds,) in database.rows(LATENESS)]
    assert late[0] > -CLAIM_TAKES, "none before its time"
    # From the first poll on, the node knows when the next one is due, and need not be told.
    assert late[len(late) // 4] < PROMOTED_WITHIN


def test_a_due_job_that_somebody_holds_keeps_no_other_from_being_promoted(start: Start, database: Database) -> None:
    start()
    held = database.value("SELECT jobqueue.submit('echo', run_at => now() + interval '0.3 second')")
    with psycopg.connect(database.url) as holder:
        holder.execute("SELECT FROM jobqueue.scheduled_jobs WHERE id = %s FOR UPDATE", (held,))
        for _ in range(20):
            database.value("SELECT jobqueue.submit('echo', run_at => now() + interval '0.5 second')")
        wait_for(lambda: database.states() == {"scheduled": 1, "succeeded": 20}, "the others have run", 20)
    wait_for(lambda: database.states() == {"succeeded": 21}, "it runs as well", 20)
