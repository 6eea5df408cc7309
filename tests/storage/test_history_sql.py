"""The history in SQL: counts of jobs submitted in SQL, size, and locks."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable

import psycopg
import pytest

import jobqueue
from jobqueue import documents
from jobqueue.durations import BOUNDS
from jobqueue.job import NewJob
from tests.support.postgres import Database
from tests.support.storage import new_id, open_driver

RECORD = "SELECT next_sample FROM jobqueue_internal.record(0, 0, 0, 0, '{}', '{}')"


@pytest.fixture
async def history(any_database_url: str, sql: Database) -> Callable[[], int]:
    """Return a function that brings the history up to date, and returns its number of submitted jobs."""
    async with open_driver(any_database_url):
        pass

    def submitted() -> int:
        sql.rows("UPDATE jobqueue_internal.history SET at = at - interval '10 minutes'")
        sql.rows(RECORD)
        return int(sql.value("SELECT sum(submitted) FROM jobqueue_internal.history WHERE step = 10"))

    return submitted


async def test_jobs_submitted_in_sql_are_counted_after_their_commit(
    any_database_url: str, sql: Database, history: Callable[[], int]
) -> None:
    with psycopg.connect(any_database_url) as caller:
        caller.execute("SELECT jobqueue.submit('mail')")
        caller.execute("""SELECT jobqueue.submit_many('[{}, {"delay": 60}, {"concurrency_key": "a"}]')""")
        jobqueue.submit(caller, "mail")
        assert history() == 0, "the transaction is not committed, and nobody waits for it"
        caller.commit()
        assert history() == 5
        caller.execute("SELECT jobqueue.submit('mail')")
        caller.rollback()
        assert history() == 5, "the transaction was rolled back"
    sql.rows("SELECT jobqueue.submit_many('[]')")
    assert history() == 5
    assert sql.value("SELECT count(*) FROM jobqueue_internal.sql_submissions") == 0


async def test_existing_jobs_are_not_counted_again(sql: Database, history: Callable[[], int]) -> None:
    job = json.dumps([{"id": new_id()}])
    for _ in range(2):
        sql.rows("SELECT jobqueue.submit('mail', idempotency_key => 'a')")
        sql.rows("SELECT jobqueue.submit_many(%s)", job)
    assert history() == 2


async def test_the_node_counts_the_jobs_that_it_submits(any_database_url: str, history: Callable[[], int]) -> None:
    async with open_driver(any_database_url) as driver:
        await driver.submit_many({}, {})
        again = [documents.encode(NewJob(id=new_id()))]
        await driver.store.submit_again(again, backend=(0, "-infinity"))
    assert history() == 0


async def test_concurrent_calls_count_each_committed_job_once(
    any_database_url: str, sql: Database, history: Callable[[], int]
) -> None:
    """Several threads record while others submit. Each record starts with empty slots, so all of them insert rows."""
    done = threading.Event()
    taken: list[int] = []

    def record() -> None:
        with psycopg.connect(any_database_url) as node:
            last = False
            while not last:
                last = done.is_set()
                node.execute(RECORD)
                gone = node.execute("DELETE FROM jobqueue_internal.history RETURNING CASE step WHEN 10 THEN submitted ELSE 0 END")
                taken.extend(jobs for (jobs,) in gone)
                node.commit()

    def submit() -> None:
        with psycopg.connect(any_database_url, autocommit=True) as caller:
            for _ in range(200):
                caller.execute("SELECT jobqueue.submit('mail')")

    recording, submitting = ([threading.Thread(target=act) for _ in range(2)] for act in (record, submit))
    for thread in (*recording, *submitting):
        thread.start()
    for thread in submitting:
        thread.join()
    done.set()
    for thread in recording:
        thread.join()
    assert sum(taken) == 400
    assert history() == 0
    assert sql.value("SELECT count(*) FROM jobqueue_internal.pending_jobs") == 400


async def test_depths_are_counted_for_at_most_a_hundredth_of_the_time(sql: Database, history: Callable[[], int]) -> None:
    history()
    sql.rows("UPDATE jobqueue_internal.history SET counted_in = 1")
    sampled = []
    for _ in range(12):
        sql.rows("DELETE FROM jobqueue_internal.history WHERE counted_in IS NULL")
        sql.rows("UPDATE jobqueue_internal.history SET at = at - interval '10 seconds'")
        sampled.append(sql.value(RECORD))
    assert sampled[:7] == [False] * 7, "the last count took a second, so the next one is after a hundred seconds"
    assert sampled[-1]


async def test_a_day_of_history_is_less_than_a_megabyte(sql: Database, history: Callable[[], int]) -> None:
    """Slots with durations of up to 30 s that are updated many times."""
    history()
    made = """
        INSERT INTO jobqueue_internal.history (step, at, submitted, completed, failed, dead, waits, runs, depth)
        SELECT s.step, now() - n * s.step * interval '1 second', 1e6, 1e6, 1e6, 1e6, h.counts, h.counts, jobqueue_internal.depth()
          FROM (VALUES (10, 360), (60, 360), (300, 288)) AS s (step, slots), generate_series(1, s.slots) AS n,
               (SELECT array_agg((1e6 * random())::integer) AS counts FROM generate_series(1, %s)) AS h
    """
    sql.rows(made, BOUNDS.index(30))
    for _ in range(3):
        # Autovacuum does this at least once a minute.
        sql.rows("UPDATE jobqueue_internal.history SET submitted = submitted + 1 WHERE at > now() - interval '5 minutes'")
        sql.rows("VACUUM jobqueue_internal.history")
    size = sql.value("SELECT pg_total_relation_size('jobqueue_internal.history')")
    assert size < 1e6


async def test_an_open_transaction_with_submissions_blocks_nobody(
    any_database_url: str, sql: Database, history: Callable[[], int]
) -> None:
    with psycopg.connect(any_database_url) as caller:
        caller.execute("SELECT jobqueue.submit('mail')")
        sql.rows("SET lock_timeout = '60s'")
        sql.rows("SELECT jobqueue.submit('mail')")
        assert history() == 1
        caller.commit()
    assert history() == 2
