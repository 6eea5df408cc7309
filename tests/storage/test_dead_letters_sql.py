"""Expiry, dead letters, and maintenance in SQL: rejected values, notifications, locks, and rows read."""

from __future__ import annotations

from datetime import datetime
from itertools import takewhile
from typing import Any

import psycopg
import pytest
import trio

from jobqueue import documents
from jobqueue.job import Options
from jobqueue.job_filters import DeadFilter
from tests.support.postgres import Database
from tests.support.sessions import connections_closed, waits_for_a_lock
from tests.support.storage import BURY, Driver, new_id, open_driver

ROWS_READ = "SELECT seq_tup_read + coalesce(idx_tup_fetch, 0) FROM pg_stat_user_tables WHERE relname = 'dead_jobs'"


# ---------------------------------------------------------------------------------------------------------------------- expiry


async def test_sql_submits_with_an_expiry_time_which_must_be_in_the_future(driver: Driver, sql: Database) -> None:
    assert driver.node
    job_id = sql.value("SELECT jobqueue.submit('mail', expires_at => now() + interval '1 hour')")
    assert sql.value(
        "SELECT (options -> 'expires_at')::float8 > extract(epoch FROM now()) FROM jobqueue.jobs WHERE id = %s", job_id
    )
    late = [
        ("SELECT jobqueue.submit('mail', expires_at => now())", "expires_at of job 1"),
        ("""SELECT jobqueue.submit_many('[{}, {"expires_in": 5}, {"expires_in": 0}]')""", "expires_in of job 3"),
        ("""SELECT jobqueue.submit_many('[{"expires_at": "2020-01-01T00:00:00Z"}]')""", "expires_at of job 1"),
    ]
    for statement, at_fault in late:
        with pytest.raises(psycopg.errors.CheckViolation, match=f"{at_fault} is not in the future"):
            sql.value(statement)
    assert sql.states() == {"pending": 1}


async def test_a_retried_submission_may_have_expired_and_becomes_a_dead_letter(driver: Driver, sql: Database) -> None:
    batch = documents.join([documents.encode({"id": new_id(), "expires_at": "2020-01-01T00:00:00Z"})])
    for state in ("pending", "dead"):
        sql.value("SELECT jobqueue.submit_many(%s::jsonb)", batch)
        assert sql.states() == {state: 1}
        await driver.store.promote()


@pytest.mark.parametrize("expires_at", ['"soon"', "[]", "1e400"])
async def test_an_invalid_expiry_time_is_rejected(driver: Driver, sql: Database, expires_at: str) -> None:
    assert driver.node
    for when in ("", ', "delay": 60'):
        with pytest.raises(psycopg.errors.CheckViolation, match="expires_at must be a date and time"):
            sql.value("SELECT jobqueue.submit_many(%s::jsonb)", f'[{{"expires_at": {expires_at}{when}}}]')
    assert sql.states() == {}


async def test_many_expired_jobs_are_ended_in_several_transactions(driver: Driver) -> None:
    await driver.store.pause("default", paused=True)
    await driver.submit_many(*({"options": Options(expires_in=0.5), "delay": 60.0 * (n % 2)} for n in range(2500)))
    await trio.sleep(0.6)
    counts = []
    while expired := (await driver.store.promote()).expired:
        counts.append(len(expired))
    assert counts == [2000, 500]


async def test_locked_expired_jobs_are_skipped_without_waiting(driver: Driver, sql: Database) -> None:
    locked, other = await driver.submit_many(*({"options": Options(expires_in=0.1)},) * 2)
    await trio.sleep(0.15)
    with psycopg.connect(sql.url) as holder:
        holder.execute("SELECT FROM jobqueue_internal.pending_jobs WHERE id = %s FOR UPDATE", (locked,))
        with trio.fail_after(60):
            promotion = await driver.store.promote()
        assert [job.id for job in promotion.expired] == [other]
    assert [job.id for job in (await driver.store.promote()).expired] == [locked]


async def test_the_search_for_expired_jobs_reads_only_expired_jobs(any_database_url: str, sql: Database) -> None:
    reads = """
        SELECT relname, seq_scan, idx_tup_fetch FROM pg_stat_user_tables
         WHERE relname IN ('pending_jobs', 'scheduled_jobs') ORDER BY relname
    """
    async with connections_closed(sql), open_driver(any_database_url) as driver:
        for delay in (None, 7200.0):
            await driver.submit_many(*({"delay": delay} for _ in range(5000)))
            await driver.submit_many(*({"delay": delay, "options": Options(expires_in=3600)} for _ in range(500)))
            await driver.submit_many(*({"delay": delay, "options": Options(expires_in=0.1)} for _ in range(10)))
    await trio.sleep(0.2)
    before = sql.rows(reads)
    async with connections_closed(sql), open_driver(any_database_url) as driver:
        assert len((await driver.store.promote()).expired) == 20
        assert not (await driver.store.promote()).expired
    for (_, scans, fetched), (_, scans_before, fetched_before) in zip(sql.rows(reads), before, strict=True):
        assert scans == scans_before
        assert fetched - fetched_before < 100


# ---------------------------------------------------------------------------------------------------------------- dead letters


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ("{}", "all"),
        ('{"queue": null}', "all"),
        ('{"color": "red"}', "color"),
        ('{"queue": 5}', "queue"),
        ('{"all": "yes"}', "all"),
        ('{"queue": ["a"]}', "queue"),
    ],
)
async def test_an_invalid_filter_is_rejected_with_its_column(driver: Driver, sql: Database, given: str, field: str) -> None:
    assert driver.node
    sql.rows(BURY, "default", "mail", 1)
    for verb in ("retry_dead", "discard_dead", "list_dead"):
        with pytest.raises(psycopg.errors.CheckViolation) as refused:
            sql.rows(f"SELECT jobqueue.{verb}(%s::jsonb)", given)
        assert refused.value.diag.column_name == field
    assert sql.states() == {"dead": 1}


async def test_redrives_and_deletions_are_bounded_start_with_the_oldest_and_return_counts(driver: Driver, sql: Database) -> None:
    assert driver.node
    sql.rows(BURY, "default", "mail", 2500)
    oldest = sql.value("SELECT array_agg(id) FROM (SELECT id FROM jobqueue_internal.dead_jobs ORDER BY died_at LIMIT 10) AS d")
    assert sql.value("""SELECT jobqueue.retry_dead('{"all": true}', 10)""") == 10
    assert sorted(sql.value("SELECT array_agg(id) FROM jobqueue_internal.pending_jobs")) == sorted(oldest)
    assert sql.value("""SELECT jobqueue.retry_dead('{"kind": "mail"}')""") == 1000
    assert sql.value("""SELECT jobqueue.discard_dead('{"queue": "default"}')""") == 1000
    assert sql.value("""SELECT jobqueue.discard_dead('{"died_before": "2999-01-01T00:00:00Z"}')""") == 490
    assert sql.states() == {"pending": 1010}


async def test_a_redrive_sends_one_notification_per_queue(driver: Driver, sql: Database) -> None:
    assert driver.node
    for queue in ("default", "post"):
        sql.rows(BURY, queue, "mail", 50)
    with psycopg.connect(sql.url, autocommit=True) as listener:
        listener.execute("LISTEN jobqueue")
        sql.value("""SELECT jobqueue.retry_dead('{"all": true}')""")
        sql.rows("SELECT pg_notify('jobqueue', 'end')")
        notifications = listener.notifies(timeout=60)
        payloads = takewhile("end".__ne__, (notify.payload for notify in notifications))
        heard = [payload.partition(" ")[2] for payload in payloads]
        notifications.close()
    assert sorted(heard) == ["default", "post"]


async def test_concurrent_redrives_and_deletions_skip_each_others_jobs(driver: Driver, sql: Database) -> None:
    sql.rows(BURY, "default", "mail", 3)
    with psycopg.connect(sql.url) as other:
        assert other.execute("""SELECT jobqueue.retry_dead('{"all": true}', 2)""").fetchone() == (2,)
        with trio.fail_after(60):
            assert await driver.store.discard_dead(DeadFilter(all=True)) == 1
        other.commit()
    assert sql.states() == {"pending": 2}


@pytest.mark.parametrize("wanted", [{"queue": "rare"}, {"kind": "rare"}, {"cause": "rare"}, {"all": True}])
async def test_a_page_of_many_dead_letters_reads_few_other_rows(driver: Driver, sql: Database, wanted: dict[str, Any]) -> None:
    assert driver.node
    for queue, kind, count in (("default", "mail", 20_000), ("rare", "mail", 50)):
        sql.rows(BURY, queue, kind, count)
    sql.rows(BURY.replace("no luck", "rare"), "default", "rare", 50)
    asked, shown = DeadFilter(**wanted), 0
    after = None
    async with connections_closed(sql), open_driver(sql.url) as other:
        for _ in range(3):
            page = await other.store.dead(asked, limit=20, after=after)
            shown += len(page)
            if page:
                after = datetime.fromisoformat(page[-1].died_at), page[-1].id
    assert shown == (60 if "all" in wanted else 50)
    assert sql.value(ROWS_READ) < 500


async def test_causes_are_counted_without_reading_the_dead_letters(any_database_url: str, sql: Database) -> None:
    async with connections_closed(sql), open_driver(any_database_url):
        for kind in ("mail", "letter"):
            sql.rows(BURY, "default", kind, 10_000)
    sql.rows("VACUUM jobqueue_internal.dead_jobs")
    async with connections_closed(sql):
        looking = psycopg.connect(any_database_url, autocommit=True)
        for wanted in ('{"all": true}', '{"kind": "mail"}', '{"queue": "default"}'):
            plan = looking.execute("SELECT jobqueue.dead_causes(%s::jsonb)", (wanted,)).fetchone()
            assert plan is not None
            assert [group["jobs"] for group in plan[0]["causes"]] == [10_000] * (1 if "mail" in wanted else 2)
        looking.close()
    assert sql.value(ROWS_READ) < 100


# --------------------------------------------------------------------------------------------------------------------- upkeep


@pytest.mark.parametrize(("table", "kept"), [("succeeded_jobs", "cancelled"), ("cancelled_jobs", "succeeded")])
async def test_succeeded_and_cancelled_jobs_have_separate_retention_periods(
    driver: Driver, sql: Database, table: str, kept: str
) -> None:
    for parent in ("succeeded_jobs", "cancelled_jobs"):
        sql.rows(
            f"CREATE TABLE jobqueue_internal.{parent}_20200101 PARTITION OF jobqueue_internal.{parent}"
            " FOR VALUES FROM ('2020-01-01 00:00+00') TO ('2020-01-02 00:00+00')"
        )
        sql.rows(
            "INSERT INTO jobqueue_internal.finished_jobs (id, queue, kind, priority, state, payload, attempt, claims, created_at,"
            " available_since, finished_at, errors) VALUES (gen_random_uuid(), 'default', 'default', 0, %s, '{}', 1, 1,"
            " now(), now(), '2020-01-01 12:00+00', '[]')",
            parent.removesuffix("_jobs"),
        )
    keep = {"keep_finished": 86_400.0 * 36_500, "keep_cancelled": 86_400.0 * 36_500}
    assert await driver.store.maintain(**keep) == (0, [])
    keep["keep_finished" if table == "succeeded_jobs" else "keep_cancelled"] = 86_400.0
    assert await driver.store.maintain(**keep) == (1, [])
    assert sql.states() == {kept: 1}


async def test_old_jobs_in_the_default_partition_are_deleted_in_batches(driver: Driver, sql: Database) -> None:
    insert = """
        INSERT INTO jobqueue_internal.finished_jobs (id, queue, kind, priority, state, payload, attempt, claims, created_at,
            available_since, finished_at, errors)
        SELECT gen_random_uuid(), 'default', 'default', 0, %s, '{}', 1, 1, now(), now(), now() - interval '9 days', '[]'
          FROM generate_series(1, 1500)
    """
    for state in ("succeeded", "cancelled"):
        sql.rows(insert, state)
    sql.rows(BURY, "default", "mail", 1500)
    await trio.sleep(0.01)

    async def prune(**keep: float) -> list[int]:
        counts = []
        while pruned := await driver.store.prune(**{"keep_finished": 1e6, "keep_cancelled": 1e6, "keep_dead": 1e6, **keep}):
            counts.append(pruned)
        return counts

    assert await prune() == []
    assert await prune(keep_finished=86_400) == [1000, 500]
    assert await prune(keep_dead=0) == [1000, 500]
    assert sql.states() == {"cancelled": 1500}
    assert await prune(keep_cancelled=86_400) == [1000, 500]


async def test_completions_do_not_wait_behind_maintenance_that_waits_for_a_reader(driver: Driver, sql: Database) -> None:
    sql.rows("""
        CREATE TABLE jobqueue_internal.succeeded_jobs_20200101 PARTITION OF jobqueue_internal.succeeded_jobs
            FOR VALUES FROM ('2020-01-01 00:00+00') TO ('2020-01-02 00:00+00')
    """)
    await driver.submit()
    job = await driver.claim_one()
    keep = {"keep_finished": 86_400.0, "keep_cancelled": 86_400.0}
    with psycopg.connect(sql.url) as reader:
        reader.execute("SELECT count(*) FROM jobqueue.jobs")  # in a transaction that stays open, like that of pg_dump

        async def keep_house() -> None:
            while True:  # each call waits for the lock only briefly
                await driver.store.maintain(**keep)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(keep_house)
            await waits_for_a_lock(sql, "jobqueue housekeeping")
            with trio.fail_after(60):
                assert await driver.finish(job, "succeeded")
            nursery.cancel_scope.cancel()
    assert await driver.store.maintain(**keep) == (1, [])


async def test_a_finished_job_is_found_by_its_id(driver: Driver, sql: Database) -> None:
    cancelled = await driver.submit(delay=60)
    assert await driver.store.cancel(cancelled)
    done = await driver.in_state("succeeded")
    assert not isinstance(done, str)
    rows = sql.rows("SELECT id, tableoid::regclass::text FROM jobqueue_internal.finished_jobs")
    tables = {str(job_id): table.removeprefix("jobqueue_internal.") for job_id, table in rows}
    assert tables[cancelled].startswith("cancelled_jobs_2")
    assert tables[done.id].startswith("succeeded_jobs_2")
