"""The history as SQL sees it: what is submitted in SQL, how small it stays, who waits for whom."""

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
from tests.conftest import Database
from tests.storage import new_id, open_driver

RECORD = "SELECT next_sample FROM jobqueue.record(0, 0, 0, 0, '{}', '{}')"


@pytest.fixture
async def history(any_database_url: str, sql: Database) -> Callable[[], int]:
    """How many jobs the history has once it is up to date: of a database with the schema."""
    async with open_driver(any_database_url):
        pass

    def submitted() -> int:
        sql.rows("UPDATE jobqueue.history SET at = at - interval '10 minutes'")
        sql.rows(RECORD)
        return int(sql.value("SELECT sum(submitted) FROM jobqueue.history WHERE step = 10"))

    return submitted


async def test_what_is_submitted_in_sql_is_counted_once_it_is_committed(
    any_database_url: str, sql: Database, history: Callable[[], int]
) -> None:
    with psycopg.connect(any_database_url) as caller:
        caller.execute("SELECT jobqueue.submit('mail')")
        caller.execute("""SELECT jobqueue.submit_many('[{}, {"delay": 60}, {"concurrency_key": "a"}]')""")
        jobqueue.submit(caller, "mail")
        assert history() == 0, "it is not committed, and nobody waits for it"
        caller.commit()
        assert history() == 5
        caller.execute("SELECT jobqueue.submit('mail')")
        caller.rollback()
        assert history() == 5, "it never was"
    sql.rows("SELECT jobqueue.submit_many('[]')")
    assert history() == 5
    assert sql.value("SELECT count(*) FROM jobqueue.sql_submissions") == 0


async def test_what_is_there_already_is_not_counted_again(sql: Database, history: Callable[[], int]) -> None:
    job = json.dumps([{"id": new_id()}])
    for _ in range(2):
        sql.rows("SELECT jobqueue.submit('mail', idempotency_key => 'a')")
        sql.rows("SELECT jobqueue.submit_many(%s)", job)
    assert history() == 2


async def test_what_a_node_submits_is_for_the_node_to_count(any_database_url: str, history: Callable[[], int]) -> None:
    async with open_driver(any_database_url) as driver:
        await driver.submit_many({}, {})
        again = [documents.encode(NewJob(id=new_id()))]
        await driver.store.submit_again(again, backend=(0, "-infinity"))
    assert history() == 0


async def test_a_call_takes_what_is_committed_and_nothing_twice(
    any_database_url: str, sql: Database, history: Callable[[], int]
) -> None:
    """Several record while others submit, and each time empty the slots, so that everybody is the first."""
    done = threading.Event()
    taken: list[int] = []

    def record() -> None:
        with psycopg.connect(any_database_url) as node:
            last = False
            while not last:
                last = done.is_set()
                node.execute(RECORD)
                gone = node.execute("DELETE FROM jobqueue.history RETURNING CASE step WHEN 10 THEN submitted ELSE 0 END")
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
    assert sql.value("SELECT count(*) FROM jobqueue.pending_jobs") == 400


async def test_depths_are_counted_for_a_hundredth_of_the_time(sql: Database, history: Callable[[], int]) -> None:
    history()
    sql.rows("UPDATE jobqueue.history SET counted_in = 1")
    told = []
    for _ in range(12):
        sql.rows("DELETE FROM jobqueue.history WHERE counted_in IS NULL")
        sql.rows("UPDATE jobqueue.history SET at = at - interval '10 seconds'")
        told.append(sql.value(RECORD))
    assert told[:7] == [False] * 7, "a count took a second: that is enough for a hundred"
    assert told[-1]


async def test_a_day_of_history_is_less_than_a_megabyte(sql: Database, history: Callable[[], int]) -> None:
    """Of slots that each have durations of up to 30 s, and are written again and again."""
    history()
    made = """
        INSERT INTO jobqueue.history (step, at, submitted, completed, failed, dead, waits, runs, depth)
        SELECT s.step, now() - n * s.step * interval '1 second', 1e6, 1e6, 1e6, 1e6, h.counts, h.counts, jobqueue.depth()
          FROM (VALUES (10, 360), (60, 360), (300, 288)) AS s (step, slots), generate_series(1, s.slots) AS n,
               (SELECT array_agg((1e6 * random())::integer) AS counts FROM generate_series(1, %s)) AS h
    """
    sql.rows(made, BOUNDS.index(30))
    for _ in range(3):
        # As autovacuum does after each minute at the latest.
        sql.rows("UPDATE jobqueue.history SET submitted = submitted + 1 WHERE at > now() - interval '5 minutes'")
        sql.rows("VACUUM jobqueue.history")
    size = sql.value("SELECT pg_total_relation_size('jobqueue.history')")
    assert size < 1e6


async def test_one_who_submits_and_does_not_commit_holds_up_nobody(
    any_database_url: str, sql: Database, history: Callable[[], int]
) -> None:
    with psycopg.connect(any_database_url) as caller:
        caller.execute("SELECT jobqueue.submit('mail')")
        sql.rows("SET lock_timeout = '2s'")
        sql.rows("SELECT jobqueue.submit('mail')")
        assert history() == 1
        caller.commit()
    assert history() == 2
