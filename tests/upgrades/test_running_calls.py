"""Calls that run while the *before* steps are committed, and objects of users that depend on the public functions."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest

from jobqueue.storage import schema
from tests.support.postgres import Database
from tests.support.waiting import wait_for
from tests.upgrades.dumps import upgrade

pytestmark = pytest.mark.no_schema

NAMES = (
    "submit, submit_many, list_jobs, list_dead, dead_causes, change, cancel, cancel_jobs, retry, retry_dead, discard, discard_dead,"
    " configure, pause, schedule, unschedule, pause_schedule, trigger_schedule"
)

CALLS = {
    "submit": "jobqueue.submit('in flight', '{}')",
    "submit_many": """jobqueue.submit_many('[{"kind": "in flight"}, {"kind": "in flight", "concurrency_key": "k"}]')""",
    "submit_batch": """jobqueue.submit_batch('[{"kind": "in flight", "unique_key": "k"}]')""",
    "cancel": "jobqueue.cancel((SELECT max(id::text)::uuid FROM jobqueue.pending_jobs))",
    "retry": "jobqueue.retry((SELECT max(id::text)::uuid FROM jobqueue.dead_jobs))",
    "schedule": "jobqueue.schedule('in flight', '@daily', 'in flight')",
}


def test_the_public_functions_stay_the_same_objects(version_1: Database) -> None:
    public = f"pronamespace = 'jobqueue'::regnamespace AND proname = ANY ('{{{NAMES}}}')"
    sql = f"SELECT oid, proname FROM pg_proc WHERE {public} ORDER BY proname"
    before = version_1.rows(sql)
    upgrade(version_1.url)
    assert version_1.rows(sql) == before
    assert len(before) == 18


def test_views_of_users_that_call_a_public_function_stay_valid(version_1: Database) -> None:
    version_1.rows("CREATE VIEW public.submitted AS SELECT jobqueue.submit('from a view', '{}') AS id")
    upgrade(version_1.url)
    version_1.rows("SELECT id FROM public.submitted")
    assert version_1.value("SELECT count(*) FROM jobqueue.jobs WHERE kind = 'from a view'") == 1


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_a_call_that_was_parsed_before_the_upgrade_runs_after_it(version_1: Database, call: str) -> None:
    waiting = "SELECT count(*) = 1 FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
    with ThreadPoolExecutor(1) as pool, psycopg.connect(version_1.url, autocommit=True) as other:
        version_1.rows("SELECT pg_advisory_lock(1)")
        running = pool.submit(lambda: other.execute(f"SELECT pg_advisory_lock(1), {call}".encode()).fetchall())
        wait_for(lambda: version_1.value(waiting))
        upgrade(version_1.url)
        version_1.rows("SELECT pg_advisory_unlock(1)")
        assert running.result()[0][1] is not None


def test_a_transaction_that_submitted_before_the_upgrade_commits_after_it(version_1: Database) -> None:
    with psycopg.connect(version_1.url) as other:
        for _ in range(2):
            other.execute("SELECT jobqueue.submit('in flight', '{}')")
            upgrade(version_1.url)
    assert version_1.value("SELECT count(*) FROM jobqueue.jobs WHERE kind = 'in flight'") == 2


def test_a_transaction_that_reads_the_jobs_delays_neither_the_upgrade_nor_submissions(version_1: Database) -> None:
    with psycopg.connect(version_1.url) as reader, psycopg.connect(version_1.url, autocommit=True) as submitter:
        reader.execute("SELECT count(*) FROM jobqueue.jobs")
        upgrade(version_1.url)
        submitter.execute("SELECT jobqueue.submit('with a key', '{}', unique_key => 'k')")
    assert version_1.value("SELECT count(*) FROM jobqueue.jobs WHERE kind = 'with a key'") == 1


def test_submissions_wait_for_neither_an_upgrade_nor_a_repair(version_1: Database) -> None:
    submit = "SELECT jobqueue.submit('with a key', '{}', unique_key => gen_random_uuid()::text)"
    for from_version in (1, 2):
        with psycopg.connect(version_1.url) as upgrading, psycopg.connect(version_1.url, autocommit=True) as submitter:
            upgrading.execute(schema.script(from_version=from_version).encode())
            submitter.execute("SET statement_timeout = '5s'")
            submitter.execute(submit.encode())
    assert version_1.value("SELECT count(*) FROM jobqueue.jobs WHERE kind = 'with a key'") == 2
