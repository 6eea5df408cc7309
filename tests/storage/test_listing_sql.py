"""List, change and cancel jobs by filter in SQL: the rows that a page reads, notifications, and locks."""

from __future__ import annotations

import threading
from typing import Any

import psycopg
import pytest
import trio

from jobqueue.job import Change, Options
from jobqueue.job_filters import JobFilter
from jobqueue.storage.roles.inspect import JobPage
from tests.support.postgres import Database
from tests.support.storage import Driver, open_driver
from tests.support.waiting import until

MANY = 30_000

PENDING = """
    INSERT INTO jobqueue_internal.pending_jobs (id, queue, kind, priority, rank, payload, created_at, available_since)
    SELECT jobqueue_internal.uuid7(), 'default', CASE n WHEN 1 THEN 'rare' ELSE 'mail' END, 0, now(), '{}', now(), now()
      FROM generate_series(1, %s) AS n
"""
FINISHED = """
    INSERT INTO jobqueue_internal.finished_jobs (id, queue, kind, priority, state, payload, attempt, claims, created_at,
        available_since, finished_at, errors)
    SELECT jobqueue_internal.uuid7(), 'default', 'mail', 0, 'succeeded', '{}', 1, 1, now(), now(),
           now() + n %% 2 * interval '1 day', '[]'
      FROM generate_series(1, %s) AS n
"""
READS = """
    SELECT coalesce(sum(seq_tup_read), 0)::integer, coalesce(sum(idx_tup_fetch), 0)::integer FROM pg_stat_user_tables
     WHERE schemaname = 'jobqueue_internal' AND relname ~ '^(pending|blocked|scheduled|inflight|dead|succeeded|cancelled)_jobs'
"""


# ----------------------------------------------------------------------------------------------------------------------- lists


@pytest.mark.parametrize(
    ("wanted", "limit", "most"),
    [
        ('{"all": true}', 100, 300),
        ('{"state": "succeeded"}', 100, 300),
        ('{"kind": "rare"}', 100, 10_100),
        ('{"kind": "rare", "state": ["pending", "dead"]}', 100, 10_100),
        ('{"queue": "nowhere", "state": "succeeded"}', 1000, 10_100),
    ],
)
async def test_a_page_of_tables_without_statistics_reads_what_it_shows_or_what_may_be_looked_at(
    any_database_url: str, sql: Database, wanted: str, limit: int, most: int
) -> None:
    async with open_driver(any_database_url):
        pass
    with psycopg.connect(any_database_url, autocommit=True) as filling:
        for statement in (PENDING, FINISHED):
            filling.execute(statement, (MANY,))
        middle = filling.execute("SELECT id FROM jobqueue_internal.succeeded_jobs ORDER BY id OFFSET 15000 LIMIT 1").fetchone()
    assert middle is not None
    await until_alone(sql)
    before = sql.rows(READS)
    with psycopg.connect(any_database_url, autocommit=True) as looking:
        for after in (None, *middle):
            looking.execute("SELECT jobqueue.list_jobs(%s::jsonb, %s, %s)", (wanted, limit, after))
    await until_alone(sql)
    for (scanned, fetched), (scanned_before, fetched_before) in zip(sql.rows(READS), before, strict=True):
        assert scanned == scanned_before
        assert 0 < fetched - fetched_before <= 2 * most


async def until_alone(sql: Database) -> None:
    """Wait until no other session is open, and a little longer: the server counts a session's reads when it ends."""
    others = "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    await until(lambda: not sql.rows(f"{others} AND backend_type = 'client backend'"))
    await trio.sleep(0.6)


async def test_a_page_for_a_text_is_short_where_histories_are_long(any_database_url: str, sql: Database) -> None:
    async with open_driver(any_database_url) as driver:
        sql.rows(
            """
            INSERT INTO jobqueue_internal.dead_jobs (id, queue, kind, priority, reason, payload, attempt, claims, created_at,
                                            available_since, died_at, errors)
            SELECT jobqueue_internal.uuid7(), 'default', 'mail', 0, 'no luck', '{}', 1, 1, now(), now(), now(),
                   jsonb_build_array(jsonb_build_object('error', 'error ' || n, 'traceback', (
                       SELECT string_agg(md5((n * m)::text), '') FROM generate_series(1, 1000) AS m)))
              FROM generate_series(1, 500) AS n
            """
        )
        plain = await driver.store.jobs(JobFilter(kind="nothing"), limit=100)
        assert plain == JobPage([], None)
        pages, found, after = 0, 0, None
        while pages == 0 or after is not None:
            page = await driver.store.jobs(JobFilter(text="ERROR 4"), limit=100, after=after)
            pages, found, after = pages + 1, found + len(page.jobs), page.next
        assert found == 111
        assert pages >= 3, "500 histories of 32 kB are more than 20,000 times 512 bytes"


async def test_a_look_far_back_begins_there(any_database_url: str, sql: Database) -> None:
    async with open_driver(any_database_url) as driver:
        sql.rows(PENDING, MANY)
        old = "jobqueue_internal.uuid7_from(now() - interval '1 day')"
        sql.rows(f"UPDATE jobqueue_internal.pending_jobs SET id = {old}, created_at = now() - interval '1 day' WHERE kind = 'rare'")
        page = sql.value("SELECT jobqueue.list_jobs(jsonb_build_object('created_before', now() - interval '1 hour'))")
        assert [job["kind"] for job in page["jobs"]] == ["rare"]
        assert page["next"] is None
        assert driver.node


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ("{}", "all"),
        ('{"queue": null}', "all"),
        ('{"color": "red"}', "color"),
        ('{"queue": 5}', "queue"),
        ('{"all": "yes"}', "all"),
        ('{"state": "over"}', "state"),
        ('{"state": []}', "state"),
        ('{"state": ["pending", 5]}', "state"),
        ('{"state": {"pending": 1}}', "state"),
    ],
)
async def test_a_filter_that_is_none_is_refused_by_name(driver: Driver, sql: Database, given: str, field: str) -> None:
    await driver.submit()
    for verb in ("list_jobs", "cancel_jobs"):
        with pytest.raises(psycopg.errors.CheckViolation) as refused:
            sql.rows(f"SELECT jobqueue.{verb}(%s::jsonb)", given)
        assert refused.value.diag.column_name == field
    assert sql.states() == {"pending": 1}


# ---------------------------------------------------------------------------------------------------------------------- cancel


async def test_cancelling_goes_up_to_a_bound_until_nothing_is_left(driver: Driver, sql: Database) -> None:
    assert driver.node
    sql.rows(PENDING, 2500)
    counts = [sql.value("""SELECT jobqueue.cancel_jobs('{"kind": "mail"}', %s)""", most) for most in (10, 1500, 1500, 1500)]
    assert counts == [10, 1500, 989, 0]
    assert sql.value("""SELECT jobqueue.cancel_jobs('{"all": true}', NULL, dry_run => true)""") == 1
    assert sql.value("""SELECT jobqueue.cancel_jobs('{"all": true}', keep => false)""") == 1
    assert sql.states() == {"cancelled": 2499}


async def test_a_job_that_somebody_holds_is_left_out_and_nobody_waits_for_it(driver: Driver, sql: Database) -> None:
    held, other = await driver.submit(), await driver.submit()
    with psycopg.connect(sql.url) as holder:
        holder.execute("SELECT FROM jobqueue_internal.pending_jobs WHERE id = %s FOR UPDATE", (held,))
        with trio.fail_after(60):
            assert await driver.store.cancel_jobs(JobFilter(all=True)) == (1, None)
    assert [await driver.state(job_id) for job_id in (held, other)] == ["pending", "cancelled"]


async def test_an_open_transaction_that_cancels_running_jobs_blocks_nobody(driver: Driver, sql: Database) -> None:
    await driver.submit_many({}, {})
    first, second = await driver.claim()
    with psycopg.connect(sql.url, autocommit=True) as listener, psycopg.connect(sql.url) as other:
        listener.execute("LISTEN jobqueue_cancel")
        assert other.execute("""SELECT jobqueue.cancel_jobs('{"state": "inflight"}')""").fetchone() == (2,)
        assert other.execute("""SELECT jobqueue.cancel_jobs('{"state": "inflight"}')""").fetchone() == (0,)
        with trio.fail_after(60):
            assert await driver.finish(first, "succeeded")
            assert await driver.store.heartbeat(driver.node, lease=30) == []
        other.commit()
        assert [notify.payload for notify in listener.notifies(timeout=60, stop_after=1)] == [""]
    assert await driver.store.heartbeat(driver.node, lease=30) == [(second.id, second.claims)]


async def test_what_is_claimed_at_this_moment_is_cancelled_where_it_went(driver: Driver, sql: Database) -> None:
    job_id = await driver.submit()
    with psycopg.connect(sql.url) as claiming:
        claiming.execute("""SELECT jobqueue_internal.claim(%s, '{"default": [1, null]}')""", (driver.node,))
        # Commit after the first look, which finds the row locked.
        threading.Timer(0.01, claiming.commit).start()
        with trio.fail_after(60):
            walked = await driver.store.cancel_jobs(JobFilter(all=True))
    assert walked.jobs == 1
    assert await driver.store.heartbeat(driver.node, lease=30) == [(job_id, 1)]


# ---------------------------------------------------------------------------------------------------------------------- change


async def heard(sql: Database, statement: str, *params: Any, channels: tuple[str, ...]) -> dict[str, str]:
    """Run a statement; return the payloads of its notifications by channel."""
    with psycopg.connect(sql.url, autocommit=True) as listener:
        for channel in channels:
            listener.execute(f"LISTEN {channel}")
        assert sql.value(statement, *params) is True
        return {notify.channel: notify.payload for notify in listener.notifies(timeout=60, stop_after=len(channels))}


async def test_a_better_rank_and_an_earlier_time_are_notified(driver: Driver, sql: Database) -> None:
    pending, scheduled = await driver.submit(queue="q"), await driver.submit(queue="q", delay=3600)
    told = await heard(sql, "SELECT jobqueue.change(%s, 5)", pending, channels=("jobqueue",))
    rank, _, queue = told["jobqueue"].partition(" ")
    assert queue == "q"
    assert float(rank) == pytest.approx(sql.value("SELECT extract(epoch FROM rank)::float8 FROM jobqueue_internal.pending_jobs"))
    told = await heard(
        sql, "SELECT jobqueue.change(%s, run_at => now() + interval '1 minute')", scheduled, channels=("jobqueue_scheduled",)
    )
    due = sql.value("SELECT extract(epoch FROM run_at)::float8 FROM jobqueue_internal.scheduled_jobs")
    assert float(told["jobqueue_scheduled"]) == pytest.approx(due)
    await heard(sql, "SELECT jobqueue.change(%s, run_at => '2000-01-01')", scheduled, channels=("jobqueue",))
    keyed = await driver.submit(queue="q", options=Options(concurrency_key="a"))
    await heard(sql, "SELECT jobqueue.change(%s, 3)", keyed, channels=("jobqueue", "jobqueue_keys"))


async def test_a_job_is_not_claimed_while_somebodys_change_is_open_and_in_its_new_place_afterwards(
    driver: Driver, sql: Database
) -> None:
    first, second = await driver.submit(priority=1), await driver.submit()
    with psycopg.connect(sql.url) as changing:
        changing.execute("SELECT jobqueue.change(%s, 0)", (first,))
        with trio.fail_after(60):
            assert [job.id for job in await driver.claim()] == [second]
        changing.commit()
    assert [(job.id, job.priority) for job in await driver.claim()] == [(first, 0)]


@pytest.mark.parametrize("bad", ["infinity", "-infinity"])
async def test_a_time_that_is_none_is_no_time_to_run(driver: Driver, sql: Database, bad: str) -> None:
    job_id = await driver.submit()
    with pytest.raises(psycopg.errors.CheckViolation, match="run_at must be a date and time"):
        sql.rows("SELECT jobqueue.change(%s, run_at => %s::timestamptz)", job_id, bad)
    assert await driver.state(job_id) == "pending"


async def test_jobs_are_neither_lost_nor_doubled_where_all_change_and_claim_at_once(driver: Driver, sql: Database) -> None:
    jobs = 200
    ids = await driver.submit_many(*({"options": Options(concurrency_key=f"k{n}") if n % 5 == 0 else None} for n in range(jobs)))
    claimed: list[str] = []
    changed = 0

    async def change(store_url: str, offset: int) -> None:
        nonlocal changed
        async with open_driver(store_url) as other:
            for n in range(jobs):
                at_once = Change(priority=n % 7, delay=[0, 0.001, None][n % 3])
                changed += await other.store.change(ids[(n * 7 + offset) % jobs], at_once)

    async def claim() -> None:
        while len(claimed) < jobs:
            await driver.store.admit()
            await driver.store.promote()
            claimed.extend(job.id for job in await driver.claim(3))

    with trio.fail_after(300):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(change, sql.url, 0)
            nursery.start_soon(change, sql.url, 3)
            nursery.start_soon(claim)
    assert sorted(claimed) == sorted(ids)
    assert changed > 0
    assert sql.states() == {"inflight": jobs}
