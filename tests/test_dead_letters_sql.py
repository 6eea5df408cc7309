"""Expiry, dead letters and upkeep as SQL sees them: what is refused by name, whom it tells, what it locks, and what it reads."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest
import trio

from jobqueue import documents
from jobqueue.job import DeadFilter, Options
from tests.conftest import Database
from tests.storage import Driver, new_id, open_driver
from tests.test_store_sql import waits_for_a_lock

BURY = """
    INSERT INTO jobqueue.dead_jobs (id, queue, kind, priority, reason, payload, attempt, claims, created_at, available_since,
                                    died_at, errors)
    SELECT jobqueue.uuid7(), %s, %s, 0, 'no luck', '{}', 1, 1, now(), now(), now() - n * interval '1 second', '[]'
      FROM generate_series(1, %s) AS n
"""


# ---------------------------------------------------------------------------------------------------------------------- expiry


async def test_sql_submits_with_a_time_to_expire_and_is_refused_one_that_is_over(driver: Driver, sql: Database) -> None:
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


async def test_a_job_with_an_id_of_its_submitters_may_be_late_and_is_dead_then(driver: Driver, sql: Database) -> None:
    batch = documents.join([documents.encode({"id": new_id(), "expires_at": "2020-01-01T00:00:00Z"})])
    for state in ("pending", "dead"):
        sql.value("SELECT jobqueue.submit_many(%s::jsonb)", batch)
        assert sql.states() == {state: 1}
        await driver.store.promote()


@pytest.mark.parametrize("expires_at", ['"soon"', "[]", "1e400"])
async def test_what_is_no_time_is_no_time_to_expire(driver: Driver, sql: Database, expires_at: str) -> None:
    assert driver.node
    for when in ("", ', "delay": 60'):
        with pytest.raises(psycopg.errors.CheckViolation, match="expires_at must be a date and time"):
            sql.value("SELECT jobqueue.submit_many(%s::jsonb)", f'[{{"expires_at": {expires_at}{when}}}]')
    assert sql.states() == {}


async def test_more_expired_jobs_than_one_transaction_takes_are_ended_in_several(driver: Driver) -> None:
    await driver.store.pause("default", paused=True)
    await driver.submit_many(*({"options": Options(expires_in=0.5), "delay": 60.0 * (n % 2)} for n in range(2500)))
    await trio.sleep(0.6)
    counts = []
    while expired := (await driver.store.promote()).expired:
        counts.append(len(expired))
    assert counts == [2000, 500]


async def test_expired_jobs_that_somebody_has_locked_are_left_and_hold_nobody_up(driver: Driver, sql: Database) -> None:
    locked, other = await driver.submit_many(*({"options": Options(expires_in=0.1)},) * 2)
    await trio.sleep(0.15)
    with psycopg.connect(sql.url) as holder:
        holder.execute("SELECT FROM jobqueue.pending_jobs WHERE id = %s FOR UPDATE", (locked,))
        with trio.fail_after(5):
            promotion = await driver.store.promote()
        assert [job.id for job in promotion.expired] == [other]
    assert [job.id for job in (await driver.store.promote()).expired] == [locked]


async def test_looking_for_what_expires_reads_no_more_than_what_does(any_database_url: str, sql: Database) -> None:
    reads = """
        SELECT relname, seq_scan, idx_tup_fetch FROM pg_stat_user_tables
         WHERE relname IN ('pending_jobs', 'scheduled_jobs') ORDER BY relname
    """
    async with open_driver(any_database_url) as driver:
        for delay in (None, 7200.0):
            await driver.submit_many(*({"delay": delay} for _ in range(5000)))
            await driver.submit_many(*({"delay": delay, "options": Options(expires_in=3600)} for _ in range(500)))
            await driver.submit_many(*({"delay": delay, "options": Options(expires_in=0.1)} for _ in range(10)))
    await trio.sleep(0.6)  # the server writes the counters of a connection when it closes
    before = sql.rows(reads)
    async with open_driver(any_database_url) as driver:
        assert len((await driver.store.promote()).expired) == 20
        assert not (await driver.store.promote()).expired
    await trio.sleep(0.6)
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
async def test_a_filter_that_is_none_is_refused_by_name(driver: Driver, sql: Database, given: str, field: str) -> None:
    assert driver.node
    sql.rows(BURY, "default", "mail", 1)
    for verb in ("retry_dead", "discard_dead", "list_dead"):
        with pytest.raises(psycopg.errors.CheckViolation) as refused:
            sql.rows(f"SELECT jobqueue.{verb}(%s::jsonb)", given)
        assert refused.value.diag.column_name == field
    assert sql.states() == {"dead": 1}


async def test_retries_and_deletions_take_the_oldest_first_up_to_a_bound_and_say_how_many(driver: Driver, sql: Database) -> None:
    assert driver.node
    sql.rows(BURY, "default", "mail", 2500)
    oldest = sql.value("SELECT array_agg(id) FROM (SELECT id FROM jobqueue.dead_jobs ORDER BY died_at LIMIT 10) AS d")
    assert sql.value("""SELECT jobqueue.retry_dead('{"all": true}', 10)""") == 10
    assert sorted(sql.value("SELECT array_agg(id) FROM jobqueue.pending_jobs")) == sorted(oldest)
    assert sql.value("""SELECT jobqueue.retry_dead('{"kind": "mail"}')""") == 1000
    assert sql.value("""SELECT jobqueue.discard_dead('{"queue": "default"}')""") == 1000
    assert sql.value("""SELECT jobqueue.discard_dead('{"died_before": "2999-01-01T00:00:00Z"}')""") == 490
    assert sql.states() == {"pending": 1010}


async def test_a_redrive_tells_listeners_once_a_queue(driver: Driver, sql: Database) -> None:
    assert driver.node
    for queue in ("default", "post"):
        sql.rows(BURY, queue, "mail", 50)
    with psycopg.connect(sql.url, autocommit=True) as listener:
        listener.execute("LISTEN jobqueue")
        sql.value("""SELECT jobqueue.retry_dead('{"all": true}')""")
        heard = [notify.payload.partition(" ")[2] for notify in listener.notifies(timeout=1)]
    assert sorted(heard) == ["default", "post"]


async def test_a_redrive_that_somebody_else_has_begun_is_theirs(driver: Driver, sql: Database) -> None:
    sql.rows(BURY, "default", "mail", 3)
    with psycopg.connect(sql.url) as other:
        assert other.execute("""SELECT jobqueue.retry_dead('{"all": true}', 2)""").fetchone() == (2,)
        with trio.fail_after(5):
            assert await driver.store.discard_dead(DeadFilter(all=True)) == 1
        other.commit()
    assert sql.states() == {"pending": 2}


@pytest.mark.parametrize("wanted", [{"queue": "rare"}, {"kind": "rare"}, {"cause": "rare"}, {"all": True}])
async def test_a_page_of_many_dead_letters_reads_little_more_than_it_shows(
    driver: Driver, sql: Database, wanted: dict[str, Any]
) -> None:
    for queue, kind, count in (("default", "mail", 20_000), ("rare", "mail", 50), ("default", "rare", 50)):
        sql.rows(BURY, queue, kind, count)
    sql.rows("UPDATE jobqueue.dead_jobs SET reason = 'rare' WHERE kind = 'rare'")
    asked, shown = DeadFilter(**wanted), 0
    after = None
    async with open_driver(sql.url) as other:
        for _ in range(3):
            page = await other.store.dead(asked, limit=20, after=after)
            shown += len(page)
            if page:
                after = (await driver.store.now()).fromisoformat(page[-1]["died_at"]), page[-1]["id"]
    await trio.sleep(0.6)
    [(scans, fetched)] = sql.rows(
        "SELECT seq_scan, coalesce(idx_tup_fetch, 0) FROM pg_stat_user_tables WHERE relname = 'dead_jobs'"
    )
    assert shown == (60 if "all" in wanted else 50)
    assert scans <= 1, "the first look of all is the creation of its indexes"
    assert fetched < 500


async def test_causes_are_counted_without_reading_the_dead_letters(any_database_url: str, sql: Database) -> None:
    async with open_driver(any_database_url):
        for kind in ("mail", "letter"):
            sql.rows(BURY, "default", kind, 10_000)
    sql.rows("VACUUM jobqueue.dead_jobs")
    with psycopg.connect(any_database_url, autocommit=True) as looking:
        for wanted in ('{"all": true}', '{"kind": "mail"}', '{"queue": "default"}'):
            plan = looking.execute("SELECT jobqueue.dead_causes(%s::jsonb)", (wanted,)).fetchone()
            assert plan is not None
            assert [group["jobs"] for group in plan[0]["causes"]] == [10_000] * (1 if "mail" in wanted else 2)
    await trio.sleep(0.6)
    [(scans, fetched)] = sql.rows(
        "SELECT seq_scan, coalesce(idx_tup_fetch, 0) FROM pg_stat_user_tables WHERE relname = 'dead_jobs'"
    )
    assert scans <= 5, "those are the creation of its indexes"
    assert fetched < 100


# --------------------------------------------------------------------------------------------------------------------- upkeep


@pytest.mark.parametrize(("table", "kept"), [("succeeded_jobs", "cancelled"), ("cancelled_jobs", "succeeded")])
async def test_succeeded_and_cancelled_jobs_are_kept_for_times_of_their_own(
    driver: Driver, sql: Database, table: str, kept: str
) -> None:
    for parent in ("succeeded_jobs", "cancelled_jobs"):
        sql.rows(
            f"CREATE TABLE jobqueue.{parent}_20200101 PARTITION OF jobqueue.{parent}"
            " FOR VALUES FROM ('2020-01-01 00:00+00') TO ('2020-01-02 00:00+00')"
        )
        sql.rows(
            "INSERT INTO jobqueue.finished_jobs (id, queue, kind, priority, state, payload, attempt, claims, created_at,"
            " available_since, finished_at, errors) VALUES (gen_random_uuid(), 'default', 'default', 0, %s, '{}', 1, 1,"
            " now(), now(), '2020-01-01 12:00+00', '[]')",
            parent.removesuffix("_jobs"),
        )
    keep = {"keep_finished": 86_400.0 * 36_500, "keep_cancelled": 86_400.0 * 36_500}
    assert await driver.store.maintain(**keep) == (0, [])
    keep["keep_finished" if table == "succeeded_jobs" else "keep_cancelled"] = 86_400.0
    assert await driver.store.maintain(**keep) == (1, [])
    assert sql.states() == {kept: 1}


async def test_old_jobs_that_are_in_no_partition_of_their_day_go_in_batches(driver: Driver, sql: Database) -> None:
    insert = """
        INSERT INTO jobqueue.finished_jobs (id, queue, kind, priority, state, payload, attempt, claims, created_at, available_since,
                                            finished_at, errors)
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


async def test_completions_do_not_wait_behind_upkeep_that_waits_for_a_reader(driver: Driver, sql: Database) -> None:
    sql.rows("""
        CREATE TABLE jobqueue.succeeded_jobs_20200101 PARTITION OF jobqueue.succeeded_jobs
            FOR VALUES FROM ('2020-01-01 00:00+00') TO ('2020-01-02 00:00+00')
    """)
    await driver.submit()
    job = await driver.claim_one()
    keep = {"keep_finished": 86_400.0, "keep_cancelled": 86_400.0}
    with psycopg.connect(sql.url) as reader:
        reader.execute("SELECT count(*) FROM jobqueue.jobs")  # in a transaction that stays open, as a dump's does

        async def keep_house() -> None:
            while True:  # it soon gives up each time
                await driver.store.maintain(**keep)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(keep_house)
            await waits_for_a_lock(sql, "jobqueue housekeeping")
            with trio.fail_after(5):
                assert await driver.finish(job, "succeeded")
            nursery.cancel_scope.cancel()
    assert await driver.store.maintain(**keep) == (1, [])


async def test_a_job_is_found_among_all_finished_ones_by_its_id(driver: Driver, sql: Database) -> None:
    cancelled = await driver.submit(delay=60)
    assert await driver.store.cancel(cancelled)
    done = await driver.in_state("succeeded")
    assert not isinstance(done, str)
    rows = sql.rows("SELECT id, tableoid::regclass::text FROM jobqueue.finished_jobs")
    tables = {str(job_id): table.removeprefix("jobqueue.") for job_id, table in rows}
    assert tables[cancelled].startswith("cancelled_jobs_2")
    assert tables[done.id].startswith("succeeded_jobs_2")
